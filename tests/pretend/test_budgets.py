"""What a step may cost the host: waits for the card by line, operators by layer and update, layers at once.

`budgets.yaml` is the list of what is allowed, with the reasons.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.training.joint_pass import Work
from tests.pretend.runs import predict, some_data, train

BUDGETS = yaml.safe_load(Path(__file__).with_name("budgets.yaml").read_text())
DEPTHS = {"two layers": 2, "six layers": 6}
WAYS = {
    "one pack": ("two layers", "train.micro_batch_size=8"),
    "four packs": ("two layers", "train.micro_batch_size=2"),
    "six layers": ("six layers", "train.micro_batch_size=8"),
    "group after group": ("two layers", "train.micro_batch_size=8", "backbone.dtype=fp32"),
    "padded": ("two layers", "train.micro_batch_size=2", "data.packing=off"),
    "sharded": ("six layers", "train.micro_batch_size=8", "zero.stage=3"),
}
SHARDED = {
    "gradient": ["sharded", "run ahead"],
    "evaluation": ["sharded evaluation", "run ahead in evaluation"],
}
"""What sharded weights are allowed beyond the others; one process predicts with a whole copy."""
COUNTED = 5
"""The step that is counted: masks are final by then, and DeepSpeed knows the order of its gathers."""

Found = Mapping[tuple[str, str, str, int], int]
"""Waits by file, text of the line, function of a library below it, and the line's number."""


def write_backbones(folder: Path) -> None:
    """The tiny backbone with other numbers of layers."""
    write_backbone(folder / "tiny")
    for name, depth in DEPTHS.items():
        LlamaForCausalLM.from_pretrained(folder / "tiny", num_hidden_layers=depth).save_pretrained(
            folder / name
        )
        AutoTokenizer.from_pretrained(folder / "tiny").save_pretrained(folder / name)


def count_one(way: str, folder: Path) -> dict[str, Any]:
    """Trains one way; counts one step, one change of the masks, all evaluations, and a prediction."""
    from lingo_ds.evaluation import evaluate, predictor
    from lingo_ds.evaluation.predictor import Predictor
    from lingo_ds.rank_sampling.sampler import RankSampler
    from lingo_ds.training import joint_pass
    from lingo_ds.training.optimizer_step import OptimizerStep
    from tests.pretend.probe import Probe

    probe, now = Probe(), Counter[str]()
    compute, reduce = joint_pass.compute_gradients, joint_pass.reduce_gradients
    move, masks = OptimizerStep.move, RankSampler.after_step

    def counted_gradient(works: Sequence[Work], **how: Any) -> None:
        (work,) = works
        now["step"] = work.seed[1]
        if now["step"] != COUNTED:
            return compute(works, **how)
        if way == "sharded":
            probe.watch(list(work.model.backbone.module.get_submodule("layers").children()))
        return probe.during("gradient", compute)(works, **how)

    def in_update(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **how: Any) -> Any:
            section = {1: "update with importance", COUNTED: "update"}.get(now["step"])
            return (probe.during(section, function) if section else function)(*args, **how)

        return counted

    def counted_masks(self: RankSampler, number: int) -> Any:
        final = number == self._schedule.final_step
        return probe.during("final mask" if final else "mask event", masks)(self, number)

    with pytest.MonkeyPatch.context() as patch, probe:
        patch.setattr(joint_pass, "compute_gradients", counted_gradient)
        patch.setattr(joint_pass, "reduce_gradients", in_update(reduce))
        patch.setattr(OptimizerStep, "move", in_update(move))
        patch.setattr(RankSampler, "after_step", counted_masks)
        patch.setattr(evaluate, "own_logits", probe.during("evaluation", evaluate.own_logits))
        backbone, *more = WAYS[way]
        every_site = "rank_sampling.min_rank=1"  # one without triplets would cost less
        train(folder / "data", folder / way, f"backbone.path={folder / backbone}", every_site, *more)
        patch.setattr(Predictor, "_predict", probe.during("chunk of predictions", Predictor._predict))
        patch.setattr(predictor, "own_logits", probe.during("prediction", predictor.own_logits))
        predict(folder / way / "adapter", folder / "data", folder / f"{way}.csv")
    waits = {name: {tuple(place): n for place, n in found.items()} for name, found in probe.waits.items()}
    return {"waits": waits, "operators": dict(probe.operators), "gathered": probe.gathered}


def count_all(folder: Path) -> dict[str, Any]:
    write_backbones(folder)
    return {way: count_one(way, folder) for way in WAYS}


def beyond(found: Found, *sections: str) -> Iterator[str]:
    """What is not allowed, with its file and line."""
    allowed = {tuple(where): times for name in sections for times, *where in BUDGETS["waits"][name]}
    for (*where, number), times in found.items():
        if times > (most := allowed.get(tuple(where), 0)):
            file, line, within = where
            yield f"{file}:{number}: waits {times} times, allowed {most}: {line} {within}"


@pytest.fixture(scope="module")
def seen(cards, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("budgets")
    some_data(folder)
    (value,) = cards.call(count_all, folder)
    return value


AFTER_THE_GRADIENT = (
    "update",
    "mask event",
    "final mask",
    "evaluation",
    "prediction",
    "chunk of predictions",
)


@pytest.mark.parametrize("section", ["gradient", *AFTER_THE_GRADIENT])
@pytest.mark.parametrize("way", WAYS)
def test_the_host_waits_where_it_is_allowed(seen, way, section):
    more = SHARDED.get(section, []) if way == "sharded" else []
    assert not list(beyond(seen[way]["waits"].get(section, {}), section, *more))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "sharded"])
def test_a_step_waits_once_whatever_its_number_of_packs(seen, way):
    found = seen[way]["waits"]
    assert sum(sum(found.get(section, {}).values()) for section in ("gradient", "update")) == 1


def test_nothing_is_allowed_that_is_not_needed(seen):
    sections = {more: section for section, names in SHARDED.items() for more in names}
    for name, entries in BUDGETS["waits"].items():
        found = seen["sharded"]["waits"].get(sections.get(name, name), {})
        needed = {tuple(where): times for (*where, _), times in found.items()}
        for times, *where in entries:
            assert needed.get(tuple(where)) == times, (
                f"{name}: {where} waits {needed.get(tuple(where), 0)} times"
            )


def test_a_new_wait_is_named_by_file_and_line():
    text = "waits = tensor.item()"
    (said,) = beyond({("lingo_ds/new.py", text, "", 12): 1}, "update")
    assert said.startswith("lingo_ds/new.py:12: waits 1 times, allowed 0") and text in said


def test_operators_of_a_layer(seen):
    layers = DEPTHS["six layers"] - DEPTHS["two layers"]
    deep, flat = (seen[way]["operators"]["gradient"] for way in ("six layers", "one pack"))
    assert (deep - flat) / layers <= BUDGETS["operators"]["each layer"]


@pytest.mark.parametrize("section", ["update", "update with importance"])
def test_operators_of_an_update_whatever_the_depth(seen, section):
    found = {way: seen[way]["operators"][section] for way in WAYS}
    assert found["one pack"] == found["six layers"] == max(found.values()) <= BUDGETS["operators"][section]


def test_layers_that_are_whole_at_once(seen):
    assert 1 <= seen["sharded"]["gathered"] <= BUDGETS["gathered layers"]
