"""`report.html` of a run: from the run's files to the page."""

import logging
import time
from pathlib import Path

from lingo_ds.config.known_tasks import registry
from lingo_ds.data.task import Task
from lingo_ds.evaluation.evaluate import remark_on_decisions
from lingo_ds.monitor.html_report import (
    Block,
    Cell,
    Code,
    Column,
    Page,
    PageSection,
    PageTable,
    Text,
    Warnings,
    write_page,
)
from lingo_ds.training.page.course import curve_blocks, rank_blocks, repeat_blocks, speed_blocks
from lingo_ds.training.page.pictures import picture_blocks
from lingo_ds.training.page.record import PAGE, RunRecord, read_run, value_at
from lingo_ds.training.page.result import by_output_table, result_blocks, wrong_blocks
from lingo_ds.training.page.words import OUTCOMES, capital, joined, written_from

logger = logging.getLogger(__name__)

MAX_OUTPUTS = 40
"""Classes or labels that are counted one by one."""


def write_run_page(folder: Path) -> Path:
    """Writes `report.html` into the folder of a run, from the files that lie there.

    Returns:
        The page's path.

    Raises:
        UserError: where the folder holds no run, or a file of it is damaged.
        OSError: where the page cannot be written.
    """
    write_page(folder / PAGE, run_page(read_run(folder)))
    return folder / PAGE


def try_write_page(folder: Path) -> None:
    """Writes the page of a run that has just ended; a failure is a warning, as the run has succeeded."""
    began = time.monotonic()
    try:
        write_run_page(folder)
    except Exception as error:  # whatever it is, the run's results are there already
        command = f"lingo-ds report {folder}"
        logger.warning("%s: %s: %s; try %s", folder / PAGE, type(error).__name__, error, command)
    else:
        logger.info("%s written in %.1f s", folder / PAGE, time.monotonic() - began)


def run_page(record: RunRecord) -> Page:
    """The page of a run; further parts, e.g. motifs, are further sections here."""
    ended = OUTCOMES.get(record.report.get("outcome", ""), "The run has not ended.")
    name = record.task.name if record.task else str(record.config.get("name", record.folder.name))
    sections = [
        PageSection("result", "Result", [*_warnings(record), *result_blocks(record), *_log(record)]),
        PageSection("task", "Task", _task(record)),
        PageSection("data", "Data", _data(record)),
        PageSection(
            "answers", f"Answers on {record.shown}", [*picture_blocks(record), *by_output_table(record)]
        ),
        PageSection("wrong", "Most wrong", wrong_blocks(record)),
        PageSection("training", "Training", curve_blocks(record)),
        PageSection("ranks", "Ranks", rank_blocks(record)),
        PageSection("speed", "Speed and memory", speed_blocks(record)),
        PageSection("repeat", "Repeat it", repeat_blocks(record)),
    ]
    return Page(
        name,
        "lingo_ds, report of a run",
        f"{_purpose(record)} {ended}",
        sections,
        written_from(record.folder),
    )


def _purpose(record: RunRecord) -> str:
    """The task in a sentence."""
    task = record.task
    if task is None:
        return ""
    about = f"{capital(task.domain)}: the" if task.domain else "The"
    names, word = joined(list(task.output_names)), "value" if task.classes == 1 else "values"
    what = {
        "regression": f"predicts the {word} {names} of a DNA sequence",
        "multilabel": f"tells which of {task.classes} labels ({names}) are true of a DNA sequence",
    }.get(task.kind, f"decides to which of {task.classes} classes ({names}) a DNA sequence belongs")
    return f"{about} model {what}."


def _warnings(record: RunRecord) -> list[Block]:
    """What a reader must know first."""
    report, items = record.report, list(value_at(record.report, "data.remarks") or [])
    if (ended := report.get("outcome", "")) not in ("finished", "early stopping"):
        items.insert(0, OUTCOMES.get(ended, "The run failed, was killed, or is still running."))
    for split, kept in record.answers.items():
        if record.task and (remark := remark_on_decisions(kept.answers, kept.labels, record.task)):
            items.append(f"{split}: {remark}")
    sampled = value_at(report, "rank_sampling.mode") not in (None, "off")
    if sampled and record.metrics("dev") and not report.get("selected_at_budget"):
        items.append("the adapter was selected before it had reached its rank budget")
    if skipped := report.get("skipped_steps"):
        steps = report.get("steps", 0)
        items.append(f"{skipped:,} of {steps:,} steps were skipped, as their gradient was not finite")
    if divergences := value_at(report, "sync.divergences"):
        items.append(f"processes differed {divergences:,} times and were repaired: check the machines")
    return [Warnings(items)] if items else []


def _log(record: RunRecord) -> list[Block]:
    """The end of the log of a run that has no report."""
    return [Code("The last lines of its log", "\n".join(record.log))] if record.log else []


def _task(record: RunRecord) -> list[Block]:
    """The task, the backbone and the prompt."""
    blocks: list[Block] = []
    known = registry().tasks.get(value_at(record.config, "data.task") or "")
    if known:
        blocks.append(
            Text(f"{known.name}: {known.question} Organism: {known.organism}. Assay: {known.assay}.")
        )
    blocks.append(Text(_backbone(record)))
    if record.task:
        blocks += _reading(record.task)
    return blocks


def _backbone(record: RunRecord) -> str:
    size = value_at(record.report, "parameters.backbone") or value_at(
        record.plan, "facts.backbone_parameters"
    )
    parts = [f"The backbone is {value_at(record.config, 'backbone.path')}"]
    if size:
        parts.append(f", a language model of {size:,} frozen parameters")
    if rank := value_at(record.report, "adapter.rank"):
        parts.append(f"; adapters of rank {rank} or less and a head are all that was learned")
    return "".join(parts) + "."


def _reading(task: Task) -> list[Block]:
    """How the model reads a sequence."""
    template = (task.template or "{sequence}").replace("{domain}", task.domain or "{domain}")
    tokens = (
        "one token for each base" if task.tokens == "nucleotides" else "text, in the backbone's own tokens"
    )
    text = f"It reads this, as {tokens}, up to {task.max_length:,} tokens:"
    blocks: list[Block] = [Code(text, template)]
    if task.thresholds and len(task.thresholds) == 1:
        blocks.append(
            Text(f"Class {task.output_names[1]} is decided above a probability of {task.thresholds[0]:.4g}.")
        )
    return blocks


def _data(record: RunRecord) -> list[Block]:
    """Rows of each split, and of each class or label in it."""
    rows = value_at(record.report, "data.rows")
    if not rows:
        return [Text(f"The data is {value_at(record.config, 'data.path')}.")]
    counts = value_at(record.report, "data.by_output") or {}
    cells: list[list[Cell]] = [["all", *(f"{count:,}" for count in rows.values())]]
    names = record.task.output_names if record.task else ()
    if counts:
        for place, name in enumerate(names[:MAX_OUTPUTS]):
            cells.append([name, *(_count(counts[split][place], rows[split]) for split in rows)])
    word = {"multilabel": "label", "regression": ""}.get(record.task.kind if record.task else "", "class")
    columns = [Column(word or "rows"), *(Column(split, numeric=True) for split in rows)]
    more = f"Shown are {MAX_OUTPUTS} of {len(names)}. " if counts and len(names) > MAX_OUTPUTS else ""
    note = f"{more}Read from {value_at(record.config, 'data.path')}."
    return [PageTable("Sequences", columns, cells, note=note), *_lost(record)]


def _count(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.0%})" if rows else f"{count:,}"


def _lost(record: RunRecord) -> list[Block]:
    """Whether equal rows were found and sequences were cut, also where all is well."""
    truncated = sum((value_at(record.report, "data.truncated") or {}).values())
    doubled = sum((value_at(record.report, "data.duplicates") or {}).values())
    if truncated or doubled:
        return []
    return [Text("No sequence was cut, and none occurs in two rows.")]
