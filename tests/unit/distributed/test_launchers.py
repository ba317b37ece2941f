"""The place of a process, from what each launcher leaves in the environment."""

import pytest

from lingo_ds.commands.cli import main
from lingo_ds.distributed.launchers import (
    FIRST_PORT,
    PORTS,
    find_rank,
    first_node,
    reports_first,
    tasks_per_node,
)
from lingo_ds.utils.errors import UserError

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "9",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}
LAUNCHERS = {
    "deepspeed": {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_SIZE": "8"},
    "torchrun": {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
    "Open MPI": OPEN_MPI,
    "MPICH": {"PMI_RANK": "9", "MPI_LOCALRANKID": "1", "PMI_SIZE": "16", "MPI_LOCALNRANKS": "8"},
    "srun": SRUN,
    "deepspeed in a SLURM job": SRUN
    | {"SLURM_PROCID": "0", "RANK": "9", "LOCAL_RANK": "1"}
    | {"WORLD_SIZE": "16", "LOCAL_SIZE": "8"},
    "mpirun in a SLURM job": SRUN | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"} | OPEN_MPI,
}
"""What each sets for the second process of the second host, of two hosts with eight."""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_second_process_of_the_second_of_two_hosts(launcher):
    place = find_rank(LAUNCHERS[launcher])
    assert (place.rank, place.local_rank, place.world_size, place.local_world_size) == (9, 1, 16, 8)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_is_wrong_for_all_is_told_by_the_first(launcher, monkeypatch, capsys):
    told = []
    for rank in ("9", "0"):
        with monkeypatch.context() as place:
            place.delenv("RANK", raising=False)  # of a process group that another test started
            for name, value in LAUNCHERS[launcher].items():
                place.setenv(name, rank if value == "9" else value)
            assert main(["export", "--adapter", "a", "--to", "lora", "--output", "b", "one=2"]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == "" and told[1].startswith("error: command line: 'one=2'")


def test_nobody_started_it():
    assert find_rank({}) == (0, 0, 1, 1, None, None, None)


@pytest.mark.parametrize("step", [None, "4294967290", "4294967291", "4294967292"])
def test_a_batch_script_or_a_shell_of_slurm_is_one_process(step):
    """They have SLURM_NTASKS too, and nobody would come to meet them."""
    environ = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"} | {"SLURM_PROCID": "0"}
    assert find_rank(environ | ({"SLURM_STEP_ID": step} if step else {})).world_size == 1


def test_tasks_of_slurm_meet_on_the_first_node_at_a_port_of_the_step():
    place = find_rank(SRUN)
    assert place.address == "gpu007" and FIRST_PORT <= place.port < FIRST_PORT + PORTS
    assert find_rank(SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "3"}).port == place.port
    assert find_rank(SRUN | {"SLURM_STEP_ID": "3"}).port != place.port
    assert find_rank(SRUN | {"SLURM_JOB_ID": "4712"}).port != place.port
    assert find_rank(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "7"})[-2:] == ("a", 7)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu007", "gpu007"), ("gpu[007-009,12],login", "gpu007"), ("a-b,c", "a-b"), ("n[3]", "n3")],
)
def test_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(("text", "counts"), [("4", [4]), ("8(x2),4", [8, 8, 4]), ("1,2(x3)", [1, 2, 2, 2])])
def test_tasks_per_node(text, counts):
    assert tasks_per_node(text) == counts


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "global rank: '2': is not below the 2 processes of the job"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: 'one': is not a number"),
        (SRUN | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: .*names no node"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "8"}, "local rank: '8': is not below the 8 processes"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "x"}, "SLURM_STEP_TASKS_PER_NODE: .*is not a list of counts"),
    ],
)
def test_what_cannot_be_is_told_in_words(environ, words):
    with pytest.raises(UserError, match=words):
        find_rank(environ)


def test_one_mistake_is_reported_by_one_process_of_a_job(tmp_path, monkeypatch):
    """Each job, known by its launcher and port, reports each text once; a process alone always does."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs = [LAUNCHERS["deepspeed"] | {"MASTER_PORT": port} for port in ("1", "2")]
    first, again, other_text = (reports_first(text, jobs[0]) for text in ("a", "a", "b"))
    assert (first, again, other_text) == (True, False, True)
    assert reports_first("a", jobs[1])
    assert reports_first("a", {}) and reports_first("a", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert reports_first("a", jobs[0]), "where nothing can be left, all report"
