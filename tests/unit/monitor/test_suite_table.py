"""The tables of a suite with a grid: what was tried, what became of it, and the numbers of the chosen one."""

import csv
import io

from rich.console import Console

from lingo_ds.monitor.suite_table import (
    SettingResult,
    TaskResult,
    result_rows,
    results_table,
    setting_rows,
    write_results,
)

TRIED = [
    SettingResult("rank=4", [(0.2, 0.1), (0.5, 0.3)], dropped=0.5),
    SettingResult("rank=8", [(0.2, 0.2), (0.5, 0.4), (1.0, 0.5)], chosen=True),
    SettingResult("rank=16", [(0.2, None)], dropped=0.2, failed=1),
    SettingResult("rank=32", [(0.2, 0.2), (0.5, 0.4), (1.0, 0.45)], dropped=1.0),
]
UNDECIDED = [SettingResult("rank=4", []), SettingResult('prefix="a|b"', [(0.2, 0.1)])]
RESULTS = [
    TaskResult("a", "mcc", 2, [0.5, 0.6], [0.25, 0.35], {"M": 70.0}, TRIED),
    TaskResult("b", "auroc", 2, [], [], {}, UNDECIDED),
]


def test_what_was_tried_has_its_scores_and_its_end():
    assert [list(row.values()) for row in setting_rows(RESULTS)] == [
        ["a", "rank=4", "mcc", "10.00", "30.00", "", "dropped at 0.5"],
        ["a", "rank=8", "mcc", "20.00", "40.00", "50.00", "chosen"],
        ["a", "rank=16", "mcc", "", "", "", "dropped at 0.2, runs failed: 1"],
        ["a", "rank=32", "mcc", "20.00", "40.00", "45.00", "not chosen"],
        ["b", "rank=4", "auroc", "", "", "", ""],
        ["b", 'prefix="a|b"', "auroc", "10.00", "", "", ""],
    ]
    assert list(setting_rows(RESULTS)[0]) == [
        "task",
        "setting",
        "metric",
        "dev at 0.2",
        "dev at 0.5",
        "dev at 1",
        "outcome",
    ]


def test_the_main_table_names_the_chosen_setting_where_there_is_a_grid():
    assert [row["setting"] for row in result_rows(RESULTS)] == ["rank=8", ""]
    without = [one._replace(tried=()) for one in RESULTS]
    assert "setting" not in result_rows(without)[0] and setting_rows(without) == []


def test_files_hold_both_tables(tmp_path):
    write_results(tmp_path, RESULTS, notes=["dev, test: x"])
    text = (tmp_path / "results.md").read_text()
    main, _, tried = text.partition("\n- dev, test: x\n\n## Settings tried\n\n")
    assert main.splitlines()[2].startswith("| a | rank=8 | mcc | 2/2 | 55.00 ")
    assert '| b | prefix="a\\|b" | auroc |' in tried
    rows = list(csv.DictReader(io.StringIO((tmp_path / "settings.csv").read_text())))
    assert rows == setting_rows(RESULTS)
    assert [row["task"] for row in csv.DictReader((tmp_path / "results.csv").open())] == ["a", "b"]


def test_brackets_in_a_setting_are_shown():
    tried = [SettingResult("targets=[q_proj,v_proj]", [], chosen=True)]
    console = Console(width=200, file=io.StringIO())
    console.print(results_table("s", [TaskResult("a", "mcc", 1, [], [], {}, tried)]))
    assert "targets=[q_proj,v_proj]" in console.file.getvalue()
