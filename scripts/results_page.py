"""Writes the tables of docs/results.md anew, from the files of docs/results: one per training run.

    python -m scripts.results_page [--check]     # or: make tree

`--check` writes nothing and ends with status 1 where the page is out of date.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import baselines, real_models
from lingo_ds.config.known_tasks import registry
from lingo_ds.utils.units import GIB
from scripts.marked_page import replace_marked, write_or_check
from scripts.readme_tree import ROOT

Result = dict[str, Any]
"""One file of docs/results, as `benchmarks/real_models.py` and `benchmarks/baselines.py` write it."""

PAGE = ROOT / "docs" / "results.md"
FOLDER = ROOT / "docs" / "results"

MODELS = {baselines.ONE_HOT: "one-hot bases"} | real_models.MODELS
SETTINGS = [*baselines.GRIDS, *real_models.SETTINGS]
"""Both in the order of the tables."""

HEADER = (
    *("model", "setting", "seeds", "learning rate", "epochs", "batch", "dev MCC", "test MCC", "test AUROC"),
    *("trained parameters", "minutes", "examples/s", "peak GiB", "processes", "dtype"),
)
LIKE = ("backbone", "setting", "learning_rate", "epochs", "batch", "processes", "dtype")
"""What the runs of one row of the table of results have in common, beside the training rows."""

NONE = "No runs yet."


def read_results(folder: Path) -> list[Result]:
    """All results of a folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def result_lines(results: Sequence[Result]) -> Iterator[str]:
    """A table for each data set and number of rows: runs that differ in their seed alone share a row."""
    for title, alike in _by_data(result for result in results if not result["search"]):
        rows = [_result_row(runs) for runs in _grouped(alike, LIKE)]
        yield from _table(title, HEADER, [*rows, *_published_rows(alike[0]["data"])])


def search_lines(results: Sequence[Result]) -> Iterator[str]:
    """A table for each data set and number of rows: MCC on dev by learning rate, the best one in bold."""
    for title, alike in _by_data(result for result in results if result["search"]):
        rates = sorted({result["learning_rate"] for result in alike})
        rows = [
            _search_row(runs, rates) for runs in _grouped(alike, ("backbone", "setting", "epochs", "batch"))
        ]
        header = ("model", "setting", "epochs", "batch", "seeds", *(f"{rate:g}" for rate in rates))
        yield from _table(title, header, rows)


def machine_lines(results: Sequence[Result]) -> Iterator[str]:
    """A line for each machine, with its libraries and the days of its runs."""
    machines: dict[str, list[str]] = {}
    for result in results:
        machine, versions = result["machine"], result["versions"]
        text = f"{machine['device']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory, "
        text += f"torch {machine['torch']}, transformers {versions['transformers']}"
        machines.setdefault(text, []).append(result["date"])
    for text, days in sorted(machines.items()):
        when = " to ".join(dict.fromkeys((min(days), max(days))))
        yield f"- {text}: {len(days)} runs, {when}."


PARTS: dict[str, Callable[[Sequence[Result]], Iterator[str]]] = {
    "results": result_lines,
    "searches": search_lines,
    "machines": machine_lines,
}
"""What writes each marked part of the page."""


def marks(part: str) -> tuple[str, str]:
    """The lines before and after a part of the page."""
    return f"<!-- {part}: written by `make tree` -->", f"<!-- end of {part} -->"


def with_tables(page: str, results: Sequence[Result]) -> str:
    """The page's text with its tables as the results are now.

    Raises:
        ValueError: where a mark is missing.
    """
    for part, lines in PARTS.items():
        page = replace_marked(page, marks(part), "\n".join(lines(results)) or NONE, name=PAGE.name)
    return page


def _by_data(results: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    """Results of one data set and number of training rows, with a title for them."""
    for alike in _grouped(results, ("data", "rows")):
        rows = alike[0]["rows"]
        yield f"{alike[0]['data']}, {'all' if rows is None else f'{rows:,}'} training rows", alike


def _grouped(results: Iterable[Result], fields: Sequence[str]) -> list[list[Result]]:
    """Results with equal fields, in the order of the tables."""
    groups: dict[tuple, list[Result]] = {}
    for result in sorted(results, key=_place):
        groups.setdefault(tuple(result[field] for field in fields), []).append(result)
    return list(groups.values())


def _place(result: Result) -> tuple:
    """Where a result comes in the tables: most rows first, models and settings in the code's order."""
    rows = float("inf") if result["rows"] is None else result["rows"]
    model, setting = list(MODELS).index(result["backbone"]), SETTINGS.index(result["setting"])
    numbers = (result[field] or 0 for field in ("epochs", "batch", "learning_rate", "seed"))
    return result["data"], -rows, model, setting, *numbers


def _result_row(runs: Sequence[Result]) -> tuple[str, ...]:
    first = runs[0]
    test = [run["metrics"]["test"] for run in runs]
    return (
        *(MODELS[first["backbone"]], first["setting"], _seeds(runs)),
        *(_number(first[field]) for field in ("learning_rate", "epochs", "batch")),
        f"{statistics.mean(run['metrics']['dev']['mcc'] for run in runs):.3f}",
        _with_each([scores["mcc"] for scores in test]),
        f"{statistics.mean(scores['auroc'] for scores in test):.3f}",
        _parameters(first["parameters"]),
        f"{statistics.mean(run['seconds'] for run in runs) / 60:.3g}",
        f"{statistics.mean(run['examples_per_second'] for run in runs):,.1f}",
        f"{max(run['peak_host_bytes'] for run in runs) / GIB:.2f}",
        *(str(first["processes"]), first["dtype"]),
    )


def _published_rows(data: str) -> Iterator[tuple[str, ...]]:
    """Published test scores of a known data set, whose models were trained on all rows."""
    task = registry().tasks.get(data)
    for model, score in task.scores.items() if task else ():
        known = registry().models[model]
        cells = {"model": model, "setting": f"published, all rows ({known.source}; {known.note})"}
        cells["test MCC"] = f"{score / 100:.3f}"
        yield tuple(cells.get(column, "") for column in HEADER)


def _search_row(runs: Sequence[Result], rates: Sequence[float]) -> tuple[str, ...]:
    first = runs[0]
    found = {
        alike[0]["learning_rate"]: statistics.mean(run["metrics"]["dev"]["mcc"] for run in alike)
        for alike in _grouped(runs, ("learning_rate",))
    }
    best = max(found.values())
    cells = {rate: f"**{mcc:.3f}**" if mcc == best else f"{mcc:.3f}" for rate, mcc in found.items()}
    settings = MODELS[first["backbone"]], first["setting"], _number(first["epochs"]), _number(first["batch"])
    return *settings, _seeds(runs), *(cells.get(rate, "") for rate in rates)


def _seeds(runs: Sequence[Result]) -> str:
    return ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))


def _with_each(values: Sequence[float]) -> str:
    """The mean, and where there are several values each of them."""
    each = f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{each}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _parameters(parameters: dict[str, Any]) -> str:
    """The number of trained parameters, and their ratio to the frozen ones where there are any."""
    ratio = parameters["fraction"]
    return f"{parameters['trainable']:,}" + ("" if ratio is None else f" ({ratio:.2%})")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"**{title}**", "")
    yield from (f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    yield ""


def main(argv: list[str] | None = None) -> int:
    """Writes the tables, or with `--check` compares them."""
    return write_or_check(
        argv,
        PAGE,
        lambda page: with_tables(page, read_results(FOLDER)),
        described="the tables of docs/results.md, from docs/results",
        outdated="docs/results.md: its tables are out of date",
    )


if __name__ == "__main__":
    sys.exit(main())
