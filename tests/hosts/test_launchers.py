"""Every launcher gives the same bank: deepspeed, torchrun, mpirun, srun; what sbatch queues again resumes."""

import shutil
import sys
import time

import pytest

from lingo_ds.distributed.process_group import free_port
from tests.hosts import slurm
from tests.ranks.launching import BIN, CHECKOUT, RECIPE, STEPS

TRAIN = [str(CHECKOUT / "launchers" / "train.py"), "--config", str(RECIPE)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm.missing():
        pytest.skip(f"SLURM: {reason}")
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def test_torchrun(start, overrides, one_host, tmp_path):
    launcher = [str(BIN / "torchrun"), "--nproc-per-node=2", f"--master-port={free_port()}"]
    ended = start([*launcher, *TRAIN, *overrides, *STEPS], tmp_path).wait(300)
    assert ended.status == 0, ended.output
    one_host.require_same(tmp_path / "run", processes=2)


def test_mpirun(start, overrides, one_host, tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("Open MPI is not installed")
    script = [str(CHECKOUT / "launchers" / "mpi.sh"), "2", "--config", str(RECIPE)]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = start([*script, *overrides, *STEPS], tmp_path, **as_root, PYTHON=sys.executable).wait(300)
    assert ended.status == 0, ended.output
    one_host.require_same(tmp_path / "run", processes=2)


def test_srun(start, cluster, overrides, one_host, tmp_path):
    command = ["srun", "--ntasks=2", sys.executable, *TRAIN, *overrides, *STEPS]
    ended = start(command, tmp_path, **cluster.environment).wait(300)
    assert ended.status == 0, ended.output
    one_host.require_same(tmp_path / "run", processes=2)


@pytest.mark.slow  # SLURM lets a job that is queued again wait for two minutes
def test_a_batch_job_asked_to_stop_is_queued_again_and_resumes(cluster, overrides, tmp_path, monkeypatch):
    for name, value in {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "job.log"
    options = [
        "--nodes=1",
        "--ntasks-per-node=2",
        "--cpus-per-task=1",
        "--gpus-per-node=2",
        f"--output={log}",
        "--parsable",
    ]
    forever = ["train.max_steps=100000", "train.eval_steps=100000", "checkpoint.every=2"]
    script = [str(CHECKOUT / "launchers" / "slurm.sbatch"), "--config", str(RECIPE), *overrides, *forever]
    submitted = cluster.client("sbatch", *options, *script, cwd=CHECKOUT)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()

    def until(what, seconds=180):
        deadline = time.monotonic() + seconds
        while not what():
            state = cluster.client("scontrol", "show", "job", job).stdout
            said = log.read_text() if log.exists() else ""
            assert "FAILED" not in state and time.monotonic() < deadline, said + state
            time.sleep(0.5)

    until(lambda: list(tmp_path.glob("run/checkpoints/step-*/bank.safetensors")))
    cluster.client("scancel", "--signal=USR1", "--batch", job)
    until(lambda: "interrupted after step" in log.read_text())
    until(lambda: "Restarts=1" in cluster.client("scontrol", "show", "job", job).stdout)
    until(lambda: "resumed from" in log.read_text(), seconds=300)
    assert "Traceback" not in log.read_text()
