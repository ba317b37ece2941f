"""docs/results.md says what the files of docs/results say."""

from typing import Any

import pytest

from lingo_ds.config.known_tasks import registry
from scripts.results_page import (
    FOLDER,
    NONE,
    PAGE,
    PARTS,
    machine_lines,
    main,
    marks,
    read_results,
    result_lines,
    search_lines,
    with_tables,
)


def make_result(
    mcc: float = 0.7, *, dev: float = 0.75, search: bool = False, **changed: Any
) -> dict[str, Any]:
    """A file's content, its rate and seed among what may be changed."""
    metrics = {"dev": {"mcc": dev, "auroc": 0.9}, "test": {"mcc": mcc, "auroc": 0.9}}
    if search:
        del metrics["test"]
    return {
        **{"backbone": "gemma_3_270m", "data": "prom_core_tata", "rows": None, "setting": "exact"},
        **{"epochs": 3.0, "batch": 32, "learning_rate": 1e-3, "seed": 0, "search": search},
        **{"metrics": metrics, "parameters": {"trainable": 1900784, "fraction": 0.00709}},
        **{"seconds": 90.0, "examples_per_second": 9.01, "peak_host_bytes": 3 << 30, "processes": 1},
        **{"dtype": "fp32", "date": "2026-11-30", "versions": {"transformers": "5.23.0"}},
        "machine": {"device": "x86_64", "cores": 2, "memory_gib": 23.5, "torch": "2.13.0"},
        **changed,
    }


def tables(lines) -> dict[str, list[dict[str, str]]]:
    """Rows by the title of their table."""
    found: dict[str, list[dict[str, str]]] = {}
    title, header = "", None
    for line in lines:
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("**"):
            title, header = line.strip("*"), None
        elif line and header is None:
            header = cells
        elif line and set(line) - set("|- "):
            found.setdefault(title, []).append(dict(zip(header, cells, strict=True)))
    return found


def test_the_page_is_up_to_date():
    assert main(["--check"]) == 0


def test_seeds_share_a_row_and_nothing_else_does():
    alike = [make_result(0.7, seed=0, dev=0.7), make_result(0.8, seed=1, dev=0.72)]
    other = [
        make_result(epochs=1.0),
        make_result(learning_rate=5e-4),
        make_result(batch=8),
        make_result(dtype="bf16"),
    ]
    fewer = [make_result(0.6, rows=4000), make_result(search=True), make_result(setting="LoRA")]
    found = tables(result_lines([*fewer, *other, *alike]))
    every, few = found["prom_core_tata, all training rows"], found["prom_core_tata, 4,000 training rows"]
    trained = [row for row in every if row["dtype"]]
    (row,) = (row for row in trained if row["seeds"] == "0, 1")
    assert (row["dev MCC"], row["test MCC"]) == ("0.710", "0.750 (0.700, 0.800)")
    assert (row["minutes"], row["peak GiB"], row["trained parameters"]) == (
        "1.5",
        "3.00",
        "1,900,784 (0.71%)",
    )
    assert [row["setting"] for row in trained] == ["exact"] * 5 + ["LoRA"]
    assert [row["test MCC"] for row in few if row["dtype"]] == ["0.600"]


def test_published_scores_stand_below_the_runs_of_their_set():
    rows = tables(result_lines([make_result(), make_result(data="tf_0")]))
    scores = registry().tasks["prom_core_tata"].scores
    published = {row["model"]: row["test MCC"] for row in rows["prom_core_tata, all training rows"][1:]}
    assert published == {model: f"{score / 100:.3f}" for model, score in scores.items()}
    assert len(rows["tf_0, all training rows"]) == 1 + len(registry().tasks["tf_0"].scores)


def test_a_search_is_a_row_of_rates_with_the_best_in_bold():
    runs = [
        make_result(search=True, dev=dev, learning_rate=rate, rows=rows)
        for dev, rate, rows in ((0.5, 5e-4, 2000), (0.6, 1e-3, 2000), (0.4, 2e-3, None))
    ]
    found = tables(search_lines([*runs, make_result(0.9)]))
    (row,) = found["prom_core_tata, 2,000 training rows"]
    assert (row["0.0005"], row["0.001"], row["seeds"]) == ("0.500", "**0.600**", "0")
    assert list(found["prom_core_tata, all training rows"][0])[-1] == "0.002"


def test_machines_are_said_with_the_days_of_their_runs():
    lines = list(machine_lines([make_result(), make_result(date="2026-12-02"), make_result(seed=1)]))
    machine = "x86_64, 2 cores, 23.5 GiB of memory, torch 2.13.0, transformers 5.23.0"
    assert lines == [f"- {machine}: 3 runs, 2026-11-30 to 2026-12-02."]


def test_stale_tables_are_replaced_and_the_text_around_them_stays():
    page, results = PAGE.read_text(), read_results(FOLDER)
    empty = with_tables(page, [])
    assert empty.count(NONE) == len(PARTS)
    assert with_tables(empty, results) == page
    with pytest.raises(ValueError, match="has no lines"):
        with_tables(page.replace(marks("searches")[0], ""), results)
