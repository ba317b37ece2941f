"""A whole run on packs does what the same run does on padded batches, and says what it saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from lingo_ds.commands.train import train
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import Batch
from lingo_ds.data.packing import Pack
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel

ROWS = {"train": 40, "dev": 12, "test": 13}
STEPS, BATCH = 6, 8
ALONE = DistEnv(0, 0, 1, 1, torch.device("cpu"))


class Run(NamedTuple):
    """What a run leaves, and (examples, tokens) of each forward that it trained with."""

    report: dict[str, Any]
    forwards: list[tuple[int, int]]
    adapter: torch.Tensor
    probabilities: list[float]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sequences of 10 to 200 bases, in front of which a prefix of about 50 letters stands."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, rows in ROWS.items():
        lines = ["".join(draw.choice(list("ACGT"), draw.integers(10, 200))) for _ in range(rows)]
        text = "".join(f"{line},{row % 2}\n" for row, line in enumerate(lines))
        (folder / f"{split}.csv").write_text(f"sequence,label\n{text}")
    return folder


@contextmanager
def forwards_noted() -> Iterator[list[tuple[int, int]]]:
    """Inside, training forwards are noted."""
    seen: list[tuple[int, int]] = []

    def noting(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def logits(self: Batch | Pack, model: AdaptedModel) -> torch.Tensor:
            if torch.is_grad_enabled():
                seen.append((len(self.rows), self.computed_tokens))
            return original(self, model)

        return logits

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Batch, Pack):
            patch.setattr(kind, "logits", noting(kind.logits))
        yield seen


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Callable[..., Run]:
    """Trains with some settings of `data` and `train`; one without any change is trained once."""
    cache, known = tmp_path_factory.mktemp("cache"), {}

    def train_packed(prefix: bool = True, packing: str = "auto", **settings: int) -> Run:
        key = prefix, packing, *sorted(settings.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            template = "Domain: human promoters\nSequence: {sequence}\nAnnotation:" if prefix else None
            config = RunConfig.model_validate(
                {
                    "name": "packs",
                    "output_dir": str(folder),
                    "backbone": {"path": "builtin:tiny", "dtype": "fp32"},
                    "data": {"path": str(data), "cache_dir": cache, "prefix": template, "packing": packing},
                    "adapter": {"rank": 4},
                    "rank_sampling": {"mode": "off"},
                    "train": {"global_batch_size": BATCH, "max_steps": STEPS, "eval_steps": 2, **settings},
                }
            )
            with forwards_noted() as forwards:
                report = train(config, ALONE)
            tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
            table = pq.read_table(folder / "predictions" / "test.parquet").to_pydict()
            assert table["row"] == list(range(ROWS["test"]))
            adapter = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
            known[key] = Run(report, forwards, adapter, table["probability_1"])
        return known[key]

    return train_packed


@pytest.mark.parametrize(
    "how",
    [{}, {"micro_batch_tokens": 300}, {"micro_batch_size": 3}, {"prefix": False}],
    ids=["one pack", "few tokens", "few examples", "no prefix"],
)
def test_run_on_packs_is_the_run_on_padded_batches(trained, how):
    packed = trained(**how)
    padded = trained(prefix=how.get("prefix", True), packing="off")
    assert packed.report["selected_step"] == padded.report["selected_step"]
    assert (packed.adapter - padded.adapter).norm() < 1e-4 * padded.adapter.norm()
    assert packed.probabilities == pytest.approx(padded.probabilities, abs=1e-4)
    assert np.ptp(padded.probabilities) > 0.01
    for split in ("dev", "test"):
        ours, theirs = (one.report["metrics"][split] for one in (packed, padded))
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_packs_are_no_larger_than_was_asked(trained):
    whole, few_tokens, few_examples = (
        trained(**how).forwards for how in ({}, {"micro_batch_tokens": 300}, {"micro_batch_size": 3})
    )
    assert [examples for examples, _ in whole] == [BATCH] * STEPS
    for packs in (few_tokens, few_examples):
        assert sum(examples for examples, _ in packs) == BATCH * STEPS  # no filler on one process
        assert len(packs) > 2 * STEPS
    assert max(tokens for _, tokens in few_tokens) <= 300
    assert max(examples for examples, _ in few_examples) == 3


def test_report_says_what_packs_saved(trained):
    packed, padded = (trained(packing=packing).report["throughput"] for packing in ("auto", "off"))
    assert packed["padding_fraction"] == 0
    assert padded["padding_fraction"] > 0.1
    # about 50 of 150 letters, in all but one of a pack's 8 examples
    assert 0.2 < packed["shared_prefix_fraction"] < 0.4
    assert padded["shared_prefix_fraction"] == 0
    assert trained(prefix=False).report["throughput"]["shared_prefix_fraction"] == 0
    for throughput in (packed, padded):
        assert 0 <= throughput["input_wait_fraction"] < 1
