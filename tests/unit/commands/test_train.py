"""`lingo-ds train` and `evaluate` as a user meets them, on a small real backbone and real promoters."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lingo_ds.commands.cli import main
from lingo_ds.config.suite_config import load_runs
from tests.first_rows import first_rows
from tests.unit.running import at_step, command, contents, crash, ctrl_c, report_of

CHECKOUT = Path(__file__).resolve().parents[3]
STEPS = 30
LEARNING_RATE = 3e-3
ROWS = {"train": 200, "dev": 40, "test": 40}
MAPS = {  # (d_out, d_in) of the linear maps in each of the backbone's 5 layers, from its config.json
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (172, 64),
    "mlp.up_proj": (172, 64),
    "mlp.down_proj": (64, 172),
}
RECIPE = """\
name: small
backbone: {{path: {backbone}}}
data:
  path: {data}
  cache_dir: {cache}
adapter: {{rank: 8}}
rank_sampling: {{target_rank: 4, interval: 3, t_init: 3, t_final: 9, audit_interval: 10}}
train: {{global_batch_size: 8, max_steps: {steps}, eval_steps: 5, learning_rate: {rate}}}
zero: {{stage: 0}}
checkpoint: {{every: 6}}
"""
QUICK = ("rank_sampling.mode=off", "train.max_steps=2", "train.eval_steps=null")
"""Settings of a run of two steps that is evaluated at its end only."""


@pytest.fixture(scope="module")
def backbone(shared) -> Path:
    return shared / "backbones/stories260k"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shared, backbone) -> Path:
    """A recipe over the first rows of the human core promoters with TATA box."""
    folder = tmp_path_factory.mktemp("recipe")
    first_rows(shared / "data/gue/prom_core_tata", folder / "data", ROWS)
    text = RECIPE.format(
        backbone=backbone, data=folder / "data", cache=folder / "cache", steps=STEPS, rate=LEARNING_RATE
    )
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


def learned(out: Path, step: int = STEPS) -> dict[str, bytes]:
    """All that training decides: the adapter on disk, and the weights, moments and counts at a step."""
    checkpoint = contents(out / f"checkpoints/step-{step:08d}")
    state = json.loads(checkpoint.pop("state.json"))
    del checkpoint["SHA256SUMS"], state["config"]  # they know the folder's name
    return contents(out / "adapter") | checkpoint | {"state.json": json.dumps(state).encode()}


def decided(report: dict[str, Any]) -> dict[str, Any]:
    """The parts of a report that do not tell of time and memory."""
    of_time = ("throughput", "traffic", "memory", "checkpoints")
    return {key: value for key, value in report.items() if key not in of_time}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    """Folder of a run that went through."""
    out = tmp_path_factory.mktemp("run") / "finished"
    status, shown = command("train", recipe, out, drawn=True)
    assert status == 0, shown
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, recipe) -> tuple[Path, str]:
    """Folder and words of a run that was stopped by Ctrl-C in step 12."""
    out = tmp_path_factory.mktemp("run") / "stopped"
    with at_step(12, ctrl_c):
        status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out, shown


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    return lambda out: Path(shutil.copytree(out, tmp_path / "copy"))


# -- what a run leaves


def test_everything_that_is_promised_lies_in_the_folder(finished):
    for name in (
        "config.yaml",
        "plan.json",
        "report.json",
        "adapter",
        "tensorboard",
        "train.log",
        "report.html",
        "metrics.jsonl",
        "predictions/dev.parquet",
        "predictions/test.parquet",
        f"checkpoints/step-{STEPS:08d}",
    ):
        assert (finished / name).exists(), name
    hidden = [path.name for path in finished.rglob(".*")]
    assert hidden == [".lock"], "nothing half-written stays behind"


def test_report_has_every_key_of_the_contract(finished):
    report = report_of(finished)
    contract = {
        "metrics": ("dev", "test"),
        "rank_sampling": (
            "mode",
            "initial_triplets",
            "target_triplets",
            "kept_triplets",
            "mask_events",
            "returned_triplets",
            "ranks",
        ),
        "parameters": ("trainable", "backbone", "fraction"),
        "sync": ("audits", "divergences", "repairs"),
        "throughput": (
            "seconds",
            "examples_per_second",
            "tokens_per_second",
            "padding_fraction",
            "shared_prefix_fraction",
            "mfu",
        ),
        "memory": ("peak_host_bytes", "peak_device_bytes"),
    }
    assert set(report) >= {"task", "selected_step", "steps", "seed", "world_size", "versions", *contract}
    for section, keys in contract.items():
        assert set(report[section]) >= set(keys), section


def test_report_says_what_happened(finished):
    report = report_of(finished)
    assert (report["outcome"], report["steps"], report["seed"], report["world_size"]) == (
        "finished",
        STEPS,
        0,
        1,
    )
    assert report["task"]["classes"] == 2 and report["data"]["rows"] == ROWS
    assert report["sync"] == {"audits": 4, "divergences": 0, "repairs": 0}
    trainable = 5 * sum(8 * (d_out + d_in + 1) for d_out, d_in in MAPS.values()) + 2 * 64
    assert report["parameters"]["trainable"] == trainable
    assert report["parameters"]["backbone"] == 260_032
    assert report["parameters"]["fraction"] == pytest.approx(trainable / 260_032)
    throughput = report["throughput"]
    assert throughput["tokens_per_second"] > throughput["examples_per_second"] > 0
    assert throughput["examples_per_second"] == pytest.approx(STEPS * 8 / throughput["seconds"], rel=0.01)
    assert 0 <= throughput["padding_fraction"] < 0.2
    assert throughput["mfu"] is None or throughput["mfu"] > 0
    (peak,) = report["memory"]["peak_host_bytes"]
    assert peak > 10**8
    assert {"lingo_ds", "torch", "transformers", "deepspeed", "python"} <= set(report["versions"])


def test_the_budget_is_met(finished):
    sampling = report_of(finished)["rank_sampling"]
    assert (sampling["mode"], sampling["initial_triplets"], sampling["target_triplets"]) == (
        "exact",
        280,
        140,
    )
    assert sampling["kept_triplets"] == sum(sampling["ranks"].values()) == 140
    assert set(sampling["ranks"]) == {f"layers.{layer}.{name}" for layer in range(5) for name in MAPS}
    assert all(0 <= rank <= 8 for rank in sampling["ranks"].values())
    assert len(set(sampling["ranks"].values())) > 2, "ranks follow importance, they are not all alike"
    assert sampling["mask_events"] == 6  # steps 6, 9, 12, 15, 18 and the final one, 21
    assert 0 < sampling["returned_triplets"] < 5 * 140


def test_the_saved_adapter_is_the_selected_one(finished):
    report, card = report_of(finished), json.loads((finished / "adapter/task.json").read_text())
    assert report["selected_step"] == card["step"]
    assert report["selected_step"] in (25, 30), "at the target budget and evaluated"
    assert report["metrics"]["dev"] == card["dev"]


def test_loss_falls(finished):
    losses = [event.value for event in tensorboard(finished).Scalars("train/loss")]
    assert sum(losses[-10:]) < sum(losses[:10]) - 0.2


def test_resolved_config_and_plan_repeat_the_run(finished, recipe):
    repeated = load_runs(finished / "config.yaml")
    numbers = [
        f"train.learning_rate={repeated.train.learning_rate}",
        f"adapter.alpha={repeated.adapter.alpha}",
        f"rank_sampling.interval={repeated.rank_sampling.interval}",
    ]
    assert not any(number.endswith("auto") for number in numbers)
    assert repeated == load_runs(recipe, [f"output_dir={finished}", *numbers])
    plan = json.loads((finished / "plan.json").read_text())
    assert (plan["steps"], plan["steps_per_epoch"], plan["micro_batch_size"]) == (STEPS, 25, 8)


def test_log_holds_the_arithmetic_of_the_run(finished):
    log = (finished / "train.log").read_text()
    for words in (
        "ceil(200 rows / 8) = 25 steps",
        "280 -> 140 triplets",
        "46,648 trainable / 260,032 backbone",
    ):
        assert words in log


def test_predictions_reproduce_the_metrics(finished, recipe):
    metrics = report_of(finished)["metrics"]["test"]
    table = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    lines = (recipe.parent / "data/test.csv").read_text().splitlines()[1:]
    labels, predicted, positive = table["label"], table["predicted"], table["probability_1"]
    assert table["row"] == list(range(ROWS["test"]))
    assert labels == [int(line.partition(",")[2]) for line in lines]
    assert predicted == [int(p > 0.5) for p in positive]
    assert [a + b for a, b in zip(table["probability_0"], positive, strict=True)] == pytest.approx(
        [1.0] * len(labels)
    )
    assert metrics["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predicted))
    assert metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    assert metrics["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, positive))
    assert metrics["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(labels, positive))


def test_predictions_are_those_of_stock_peft_with_the_saved_adapter(finished, recipe, backbone):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    plain = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    model = PeftModel.from_pretrained(plain, finished / "adapter").eval()
    lines = (recipe.parent / "data/test.csv").read_text().splitlines()[1:]
    with torch.no_grad():
        logits = [model(**tokenizer(line.partition(",")[0], return_tensors="pt")).logits for line in lines]
    probabilities = torch.cat(logits).softmax(1)[:, 1].tolist()
    table = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    assert table["probability_1"] == pytest.approx(probabilities, abs=1e-4)
    assert max(probabilities) - min(probabilities) > 0.05


def test_predict_says_of_the_test_file_what_the_run_said(finished, recipe, tmp_path):
    files = ["--adapter", finished / "adapter", "--input", recipe.parent / "data/test.csv"]
    assert main(["predict", *map(str, files), "--output", str(tmp_path / "out.parquet")]) == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pydict()
    expected = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    assert found["id"] == expected["row"] and found["label"] == expected["predicted"]
    for name in ("probability_0", "probability_1"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)


def test_evaluate_gives_the_reports_numbers_again(finished, copy):
    out = copy(finished)
    shutil.rmtree(out / "predictions")
    status, _ = command("evaluate", finished / "config.yaml", out)
    assert status == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["metrics"]["test"] == report_of(finished)["metrics"]["test"]
    again, before = (pq.read_table(folder / "predictions/test.parquet") for folder in (out, finished))
    assert again.equals(before)
    assert contents(out / "adapter") == contents(finished / "adapter")


def test_evaluate_knows_how_the_adapter_was_trained(finished, copy):
    """What the adapter folder says about pooling and prompt holds, or a contradiction is refused."""
    out, trained = copy(finished), report_of(finished)["metrics"]["test"]
    for override in ("head.pooling=mean", "data.prefix='Sequence: {sequence}'", "adapter.targets=[q_proj]"):
        status, _ = command("evaluate", finished / "config.yaml", out, override)
        if status == 0:
            found = json.loads((out / "evaluation.json").read_text())["metrics"]["test"]
            assert found == pytest.approx(trained, rel=1e-6), override  # packs may be of another size
        else:
            assert status == 2


# -- TensorBoard


def tensorboard(out: Path) -> EventAccumulator:
    return EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()


def test_tensorboard_has_the_tags_of_the_contract(finished):
    tags = tensorboard(finished).Tags()
    assert set(tags["scalars"]) >= {
        "train/loss",
        "train/penalty",
        "train/grad_norm",
        "train/lr",
        "dev/mcc",
        "rank/budget",
        "rank/kept",
        "rank/returned",
        "sync/divergences",
        "throughput/tokens_per_second",
    }
    assert "rank/map" in tags["images"]


def test_tensorboard_has_the_numbers_of_the_run(finished):
    events, report = tensorboard(finished), report_of(finished)

    def points(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    every_step = list(range(1, STEPS + 1))
    for tag in ("train/loss", "train/lr", "train/grad_norm", "rank/budget"):
        assert [event.step for event in events.Scalars(tag)] == every_step
    warmup = 2  # 0.05 of 30 steps, to the nearest
    rates = [
        LEARNING_RATE * min(step / warmup, 1 - (step - warmup) / (STEPS - warmup + 1)) for step in every_step
    ]
    assert list(points("train/lr").values()) == pytest.approx(rates)
    history = report["rank_sampling"]["history"]
    assert points("rank/kept") == {event["step"]: event["kept"] for event in history}
    assert points("rank/returned") == {event["step"]: event["returned"] for event in history}
    assert points("rank/budget")[STEPS] == 140 and points("rank/budget")[1] == 280
    assert sorted(points("dev/mcc")) == [5, 10, 15, 20, 25, 30]
    assert points("dev/mcc")[report["selected_step"]] == pytest.approx(report["metrics"]["dev"]["mcc"])
    assert set(points("sync/divergences").values()) == {0}
    pictures = events.Images("rank/map")
    assert [picture.step for picture in pictures] == [6, 12, 18, 21]  # every other one, and the final
    picture = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
    assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 20)) > 3


def test_where_the_budget_went_is_told_three_times_alike(finished):
    """In the report, in TensorBoard at the final mask, and as pictures."""
    events, sampling = tensorboard(finished), report_of(finished)["rank_sampling"]
    for group, shares in sampling["shares"].items():
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            assert events.Scalars(f"rank_{group}/{name}")[-1].value == pytest.approx(share)
    assert sampling["shares"]["by_layer"].keys() == set("01234")
    assert sampling["shares"]["by_kind"].keys() == MAPS.keys()
    scores = sampling["scores"]
    assert (scores["step"], sum(scores["kept"]), sum(scores["pruned"])) == (21, 140, 140)
    filled = {name: np.flatnonzero(scores[name]) for name in ("kept", "pruned")}
    assert filled["pruned"].max() <= filled["kept"].min()  # the final mask keeps the best
    for name in ("map", "history", "shares", "scores"):
        shown = Image.open(io.BytesIO(events.Images(f"rank/{name}")[-1].encoded_image_string)).convert("RGB")
        kept = Image.open(finished / "pictures" / f"rank_{name}.png").convert("RGB")
        assert list(kept.get_flattened_data()) == list(shown.get_flattened_data())


# -- the same again, and going on


def test_the_same_command_again_begins_anew_and_ends_the_same(finished, recipe, copy):
    out = copy(finished)
    (out / "checkpoints/step-99999999").mkdir()
    status, _ = command("train", recipe, out)
    assert status == 0
    assert learned(out) == learned(finished)
    assert decided(report_of(out)) == decided(report_of(finished))
    assert contents(out / "predictions") == contents(finished / "predictions")
    assert not (out / "checkpoints/step-99999999").exists()
    assert len(tensorboard(out).Scalars("train/loss")) == STEPS, "the curves of the old run are gone"


def test_the_seed_decides_what_is_learned(recipe, tmp_path):
    for name, seed in (("zero", 0), ("again", 0), ("one", 1)):
        status, shown = command(
            "train", recipe, tmp_path / name, *QUICK, f"seed={seed}", "checkpoint.every=2"
        )
        assert status == 0, shown
    zero, again, one = (learned(tmp_path / name, 2) for name in ("zero", "again", "one"))
    assert zero == again
    assert zero["adapter_model.safetensors"] != one["adapter_model.safetensors"]
    assert zero["bank.safetensors"] != one["bank.safetensors"]


def test_ctrl_c_ends_the_run_well_and_says_how_to_go_on(stopped):
    out, shown = stopped
    report = report_of(out)
    assert (report["outcome"], report["steps"]) == ("interrupted", 12)
    assert report["metrics"]["test"] is None and not (out / "predictions/test.parquet").exists()
    assert (out / "checkpoints/step-00000012/bank.safetensors").exists()
    assert "interrupted after step 12: run the same command again to resume from there" in shown
    assert "Traceback" not in shown


def test_a_stopped_run_goes_on_and_ends_as_if_it_never_stopped(stopped, finished, recipe, copy):
    out = copy(stopped[0])
    status, shown = command("train", recipe, out)
    assert status == 0 and "continuing with step 13" in shown
    assert learned(out) == learned(finished)
    assert decided(report_of(out)) == decided(report_of(finished))
    assert contents(out / "predictions") == contents(finished / "predictions")


def test_a_crashed_run_goes_on_from_its_checkpoint(finished, recipe, tmp_path):
    with at_step(17, crash), pytest.raises(RuntimeError, match="on fire"):
        command("train", recipe, tmp_path / "out")
    assert not (tmp_path / "out/report.json").exists()
    time.sleep(
        max(0.0, 1.1 - time.time() % 1)
    )  # event files are read in the order of the second in their names
    newest = max(int(folder.name[5:]) for folder in (tmp_path / "out/checkpoints").glob("step-*"))
    assert newest in (12, 15), "one of every six steps, or of the best so far"
    status, shown = command("train", recipe, tmp_path / "out")
    assert status == 0 and f"continuing with step {newest + 1}" in shown
    assert learned(tmp_path / "out") == learned(finished)
    steps = [event.step for event in tensorboard(tmp_path / "out").Scalars("train/loss")]
    assert steps == list(range(1, STEPS + 1)), "a curve goes through every step once"


def test_ctrl_c_in_the_last_step_loses_no_result(recipe, tmp_path):
    with at_step(2, ctrl_c):
        assert command("train", recipe, tmp_path / "out", *QUICK)[0] == 0
    status, shown = command("train", recipe, tmp_path / "out", *QUICK)
    assert status == 0, shown
    report = report_of(tmp_path / "out")
    assert (report["outcome"], report["steps"], report["selected_step"]) == ("finished", 2, 2)
    assert report["metrics"]["test"] and (tmp_path / "out/adapter").is_dir()


def test_sigint_to_a_real_process_and_going_on(finished, recipe, tmp_path):
    out = tmp_path / "out"
    arguments = [
        sys.executable,
        "-m",
        "lingo_ds.commands.cli",
        "train",
        "--config",
        str(recipe),
        f"output_dir={out}",
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints/step-00000006").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    report = report_of(out)
    assert report["outcome"] == "interrupted" and 6 <= report["steps"] < STEPS
    assert (
        f"interrupted after step {report['steps']}: run the same command again to resume from there" in shown
    )
    status, shown = command("train", recipe, out)
    assert status == 0 and f"continuing with step {report['steps'] + 1}" in shown
    assert learned(out) == learned(finished)


def test_another_learning_rate_does_not_go_on(stopped, recipe, copy):
    out = copy(stopped[0])
    before = learned(out, 12), report_of(out)
    status, shown = command("train", recipe, out, "train.learning_rate=1e-3")
    assert status == 2
    (error,) = errors(shown)
    assert error.startswith("error: train.learning_rate: '0.001': ")
    assert "0.003" in error and "step-00000012" in error and "checkpoint.resume=never" in error
    assert (learned(out, 12), report_of(out)) == before, "the stopped run can still go on"


def test_resume_never_begins_anew(stopped, recipe, copy):
    out = copy(stopped[0])
    with at_step(2, ctrl_c):
        status, shown = command("train", recipe, out, "train.learning_rate=1e-3", "checkpoint.resume=never")
    assert status == 0 and "resumed" not in shown
    assert report_of(out)["steps"] == 2
    assert os.listdir(out / "checkpoints") == ["step-00000002"]


def test_going_on_elsewhere_keeps_the_best_so_far(finished, recipe, tmp_path):
    last = finished / f"checkpoints/step-{STEPS:08d}"
    status, shown = command("train", recipe, tmp_path / "out", f"checkpoint.resume={last}")
    assert status == 0, shown
    assert report_of(tmp_path / "out")["metrics"] == report_of(finished)["metrics"]
    assert contents(tmp_path / "out/adapter") == contents(finished / "adapter")


def test_a_run_without_sampling_keeps_every_triplet(recipe, tmp_path):
    assert command("train", recipe, tmp_path / "out", *QUICK)[0] == 0
    sampling = report_of(tmp_path / "out")["rank_sampling"]
    assert sampling["kept_triplets"] == 280 and set(sampling["ranks"].values()) == {8}
    assert (sampling["mode"], sampling["mask_events"], sampling["returned_triplets"]) == ("off", 0, 0)


# -- other methods: LoRA, and the head alone


OTHER_RECIPE = """\
name: other
backbone: {{path: builtin:tiny}}
data: {{path: builtin:promoters, cache_dir: {cache}}}
adapter: {{method: {method}, rank: 4}}
rank_sampling: {{mode: off, audit_interval: 5}}
train: {{global_batch_size: 8, max_steps: 10, eval_steps: 5, learning_rate: 3.0e-3}}
zero: {{stage: 0}}
checkpoint: {{every: 5}}
"""
OTHER_MAPS = {  # in each of builtin:tiny's 3 layers
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 64),
    "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (176, 64),
    "mlp.up_proj": (176, 64),
    "mlp.down_proj": (64, 176),
}


@pytest.fixture(scope="module")
def other_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["lora", "none"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def other_recipe(tmp_path_factory, other_cache, method) -> Path:
    path = tmp_path_factory.mktemp(method) / "other.yaml"
    path.write_text(OTHER_RECIPE.format(cache=other_cache, method=method))
    return path


@pytest.fixture(scope="module")
def other(other_recipe) -> Path:
    """Folder of a run of 10 steps with another method."""
    out = other_recipe.parent / "run"
    status, shown = command("train", other_recipe, out)
    assert status == 0, shown
    return out


def test_report_of_another_method(other, method):
    report = report_of(other)
    ranks = {f"layers.{layer}.{name}": 4 for layer in range(3) for name in OTHER_MAPS}
    of_adapters = 3 * sum(4 * (d_out + d_in) for d_out, d_in in OTHER_MAPS.values())
    if method == "none":
        ranks, of_adapters = {}, 0
    assert (report["outcome"], report["steps"], report["skipped_steps"]) == ("finished", 10, 0)
    parameters, sampling = report["parameters"], report["rank_sampling"]
    assert (parameters["trainable"], parameters["backbone"]) == (of_adapters + 2 * 64, 157_440)
    assert parameters["saved"] == parameters["trainable"]
    assert parameters["fraction"] == pytest.approx(parameters["trainable"] / 157_440)
    assert sampling["ranks"] == ranks
    assert (sampling["mode"], sampling["target_triplets"], sampling["history"]) == ("off", None, [])
    assert (sampling["mask_events"], sampling["returned_triplets"]) == (0, 0)
    assert sampling["initial_triplets"] == sampling["kept_triplets"] == 4 * len(ranks)
    assert report["sync"]["divergences"] == 0
    assert not [tag for tag in tensorboard(other).Tags()["scalars"] if tag.startswith("rank/")]


def test_other_method_learns_what_it_says(other, method):
    """Every tensor has moved from the value it began with, and there are no more than there should be."""
    tensors = load_file(other / "adapter/adapter_model.safetensors")
    adapters = {name: value for name, value in tensors.items() if "score" not in name}
    assert len(adapters) == (2 * 3 * len(OTHER_MAPS) if method == "lora" else 0)
    assert all(value.any() for name, value in adapters.items() if "lora_B" in name)  # began as zeros
    first, last = (
        load_file(other / f"checkpoints/step-{step:08d}/bank.safetensors")["master"] for step in (5, 10)
    )
    assert len(first) == report_of(other)["parameters"]["trainable"]
    assert (first != last).float().mean() > 0.95
    losses = [event.value for event in tensorboard(other).Scalars("train/loss")]
    assert len(set(losses)) == 10


def test_other_methods_predictions_are_those_of_stock_peft(other, other_cache):
    (backbone,) = other_cache.glob("builtin/tiny-*")
    (data,) = other_cache.glob("builtin/promoters-*")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    plain = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
    model = PeftModel.from_pretrained(plain, other / "adapter").eval()
    texts = [line.partition(",")[0] for line in (data / "test.csv").read_text().splitlines()[1:]]
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        probabilities = model(**tokens).logits.softmax(1)[:, 1].tolist()
    table = pq.read_table(other / "predictions/test.parquet").to_pydict()
    assert table["probability_1"] == pytest.approx(probabilities, abs=1e-4)
    assert max(probabilities) - min(probabilities) > 0.05


@pytest.mark.parametrize("override", ["seed=0", "adapter.method=svd"])
def test_evaluate_gives_another_methods_numbers_again(other, copy, override):
    """Also where the config has another method: the adapter's folder says which one it is."""
    out, trained = copy(other), report_of(other)["metrics"]["test"]
    shutil.rmtree(out / "predictions")
    status, shown = command("evaluate", other / "config.yaml", out, override)
    assert status == 0, shown
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["test"] == trained
    again, before = (pq.read_table(folder / "predictions/test.parquet") for folder in (out, other))
    assert again.equals(before)


def test_other_method_goes_on_as_if_it_never_stopped(other, other_recipe, tmp_path):
    with at_step(7, ctrl_c):
        assert command("train", other_recipe, tmp_path / "out")[0] == 0
    status, shown = command("train", other_recipe, tmp_path / "out")
    assert status == 0 and "continuing with step 8" in shown
    assert learned(tmp_path / "out", 10) == learned(other, 10)
    assert decided(report_of(tmp_path / "out")) == decided(report_of(other))


def test_other_method_does_not_go_on_as_a_third(other, other_recipe, method, tmp_path):
    with at_step(2, ctrl_c):
        assert command("train", other_recipe, tmp_path / "out")[0] == 0
    third = {"lora": "none", "none": "lora"}[method]
    status, shown = command("train", other_recipe, tmp_path / "out", f"adapter.method={third}")
    assert status == 2
    (error,) = errors(shown)
    assert error.startswith(f"error: adapter.method: '{third}': ") and f"'{method}'" in error


def test_other_method_refuses_sampling(other_recipe, method, tmp_path):
    error = refused(other_recipe, tmp_path / "out", "rank_sampling.mode=exact")
    assert error == (
        "error: rank_sampling.mode (command line): 'exact': "
        f"needs adapter.method svd, not {method}: set rank_sampling.mode=off"
    )


# -- the user's mistakes


def errors(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("error: ")]


def refused(recipe: Path, out: Path, *overrides: str) -> str:
    """The one error that a command ends with."""
    status, shown = command("train", recipe, out, *overrides)
    assert status == 2
    assert "Traceback" not in shown
    (error,) = errors(shown)
    assert len(error.split(": ")) >= 5, "where, value, rule and fix"
    assert not (out / "report.json").exists()
    return error


@pytest.mark.parametrize(
    "override, where, says",
    [
        ("train.learning_rat=1", "train.learning_rat (command line)", "did you mean train.learning_rate?"),
        ("data.path=/nowhere", "data.path", "'/nowhere': is not there"),
        ("data.path=builtin:genes", "", "builtin:promoters"),
        ("backbone.path=/nowhere", "backbone.path", "'/nowhere': is not a folder"),
        ("adapter.targets=[q_porj]", "adapter.targets", "did you mean q_proj?"),
        ("adapter.targets=.*nothing", "adapter.targets", "matches no linear map"),
        ("data.max_length=513", "data.max_length", "above the backbone's context of 512"),
        ("data.max_length=1", "data.max_length", "leaves no room"),
        ("rank_sampling.interval=500", "rank_sampling.interval", "no mask step"),
        ("rank_sampling.t_final=0.9", "rank_sampling.t_init + rank_sampling.t_final", "the run's 30 steps"),
        ("train.max_steps=3", "rank_sampling", "3 steps"),
        ("checkpoint.resume=/nowhere", "checkpoint.resume", "is incomplete or damaged"),
        ("data.cache_dir={recipe}", "data.cache_dir", "{recipe}"),
    ],
)
def test_mistake_is_one_line_that_says_where(recipe, tmp_path, override, where, says):
    error = refused(recipe, tmp_path / "out", override.format(recipe=recipe))
    assert where in error.removeprefix("error: ").partition(": ")[0]
    assert says.format(recipe=recipe) in error


def test_all_bad_rows_are_named_before_anything_is_trained(recipe, tmp_path):
    data = Path(shutil.copytree(recipe.parent / "data", tmp_path / "data"))
    with (data / "train.csv").open("a") as file:
        file.write("ACXT,1\nACGT,one\n")
    with (data / "test.csv").open("a") as file:
        file.write(",1\n")
    status, shown = command("train", recipe, tmp_path / "out", f"data.path={data}")
    assert status == 2
    places = [error.removeprefix("error: ").split(": ")[0] for error in errors(shown)]
    assert places == [f"{data}/train.csv:202", f"{data}/train.csv:203", f"{data}/test.csv:42"]
    assert not (tmp_path / "out/adapter").exists()


@pytest.fixture
def broken(backbone, tmp_path) -> Callable[..., Path]:
    """A copy of the backbone's folder without some files, and with others."""

    def make(*without: str, **others: bytes) -> Path:
        folder = Path(shutil.copytree(backbone, tmp_path / "backbone"))
        for name in without:
            (folder / name).unlink()
        for name, content in others.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder

    return make


def test_backbone_without_weights(recipe, broken, tmp_path):
    folder = broken("model.safetensors")
    error = refused(recipe, tmp_path / "out", f"backbone.path={folder}")
    assert error.startswith(f"error: backbone.path: '{folder}': has no model.safetensors")


def test_backbone_with_pickled_weights_only(recipe, broken, tmp_path):
    folder = broken("model.safetensors", pytorch_model__bin=b"not even a pickle")
    error = refused(recipe, tmp_path / "out", f"backbone.path={folder}")
    assert "pickle" in error and "save_pretrained" in error


def test_backbone_with_damaged_weights(recipe, broken, backbone, tmp_path):
    whole = (backbone / "model.safetensors").read_bytes()
    folder = broken(model__safetensors=whole[: len(whole) // 2])
    error = refused(recipe, tmp_path / "out", f"backbone.path={folder}")
    assert f"{folder}/model.safetensors" in error and "cannot be read" in error


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_backbone_without_config_or_tokenizer(recipe, broken, tmp_path, missing):
    error = refused(recipe, tmp_path / "out", f"backbone.path={broken(missing)}")
    assert error.startswith("error: backbone.path: ") and missing.removesuffix(".json") in error


def test_recipe_that_is_not_there(tmp_path):
    status, shown = command("train", tmp_path / "none.yaml", tmp_path / "out")
    assert status == 2 and "none.yaml" in shown and "No such file" in shown
    status, shown = command("train", Path("quikstart"), tmp_path / "out")
    assert status == 2 and "use 'quickstart'" in shown


def test_output_dir_that_is_a_file(recipe, tmp_path):
    status, shown = command("train", recipe, recipe)
    assert status == 2
    assert errors(shown)[0].startswith("error: output_dir: ") and str(recipe) in shown


def test_evaluate_before_there_is_an_adapter(recipe, tmp_path):
    status, shown = command("evaluate", recipe, tmp_path / "out")
    assert status == 2 and f"{tmp_path / 'out'}/adapter" in errors(shown)[0]


def test_a_real_process_ends_with_status_2_and_without_a_traceback(recipe, tmp_path):
    arguments = ["train", "--local_rank=0", "--config", str(recipe), f"output_dir={tmp_path / 'out'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "lingo_ds.commands.cli", *arguments, "train.max_stepz=3", "nonsense"],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == errors(ended.stderr)
    assert [line.split(": ")[1] for line in errors(ended.stderr)] == [
        "command line",
        "train.max_stepz (command line)",
    ]
