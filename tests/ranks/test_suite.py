"""A suite on two processes under ZeRO-3: one sharded backbone for all runs, each the same as alone."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lingo_ds.distributed.process_group import free_port
from tests.ranks.launching import BIN, CHECKOUT, Ended, run_command, starting
from tests.ranks.spawn import run_ranks

TASKS = ("prom_core_tata", "mouse_0")
RECIPE = """\
name: small
backbone: {{path: {shared}/backbones/stories260k}}
data: {{root: {root}, prefix: published, cache_dir: {root}/cache}}
adapter: {{rank: 4}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 1, t_final: 3}}
train: {{global_batch_size: 8, max_steps: 6, eval_steps: 3}}
zero: {{stage: 3}}
"""


@pytest.fixture
def root(tmp_path, shared) -> Path:
    """A folder with the first rows of two of GUE's sets and a recipe over them."""
    for task in TASKS:
        (tmp_path / task).mkdir()
        for split in ("train", "dev", "test"):
            lines = (shared / f"data/gue/{task}/{split}.csv").read_text().splitlines(keepends=True)
            (tmp_path / task / f"{split}.csv").write_text("".join(lines[:49]))
    (tmp_path / "small.yaml").write_text(RECIPE.format(shared=shared, root=tmp_path))
    return tmp_path


def train(root: Path, *overrides: str) -> Ended:
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    script = [str(CHECKOUT / "launchers/train.py"), "--config", str(root / "small.yaml")]
    with starting() as start:
        return start([*launcher, *script, *overrides], root).wait(300)


def run_of(folder: Path) -> tuple[dict, dict]:
    """A run's report and its adapter."""
    return json.loads((folder / "report.json").read_text()), load_file(
        folder / "adapter/adapter_model.safetensors"
    )


@pytest.mark.slow
def test_all_runs_share_one_sharded_backbone_and_are_the_same_as_alone(root):
    suite = (f"tasks=[{','.join(TASKS)}]", "seeds=[1]", f"output_dir={root / 'suite'}")
    ended = train(root, *suite)
    assert ended.status == 0 and not ended.orphans, ended.output
    assert ended.output.count("backbone loaded") == 1, ended.output
    for task in TASKS:
        alone = train(
            root, f"data.task={task}", f"name={task}", "seed=1", f"output_dir={root / task / 'run'}"
        )
        assert alone.status == 0, alone.output
        (ours, adapter), (theirs, expected) = (
            run_of(folder) for folder in (root / f"suite/{task}/seed-1", root / task / "run")
        )
        assert (ours["world_size"], ours["zero"]["stage"]) == (2, 3)
        assert ours["metrics"] == theirs["metrics"]
        assert adapter.keys() == expected.keys()
        assert all(tensor.equal(expected[name]) for name, tensor in adapter.items())
    again = train(root, *suite)
    assert again.status == 0 and again.output.count("already finished") == 2, again.output


def train_here(rank: int, world_size: int, words: list[str]) -> tuple[int, str]:
    return run_command(["train", *words])


def test_missing_data_is_reported_once(root):
    suite = ["--config", str(root / "small.yaml"), "tasks=[mouse_0,tf_3]", f"output_dir={root / 'suite'}"]
    ended = run_ranks(train_here, 2, suite)
    assert [status for status, _ in ended] == [2, 2], ended
    output = "".join(output for _, output in ended)
    assert output.count("error: ") == 1 and "has no folder of tf_3" in output, output
