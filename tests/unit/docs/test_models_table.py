"""docs/models.md says what the code knows."""

import pytest

from lingo_ds.models.backbone.families import FAMILIES
from scripts.models_table import BEGIN, PAGE, main, table_lines, with_table


def test_the_page_is_up_to_date():
    assert main(["--check"]) == 0


def test_every_family_has_its_row():
    rows = list(table_lines())[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| `{name}`" for name in FAMILIES]
    assert all(row.count(" | ") == 5 for row in rows)


def test_a_stale_table_is_replaced_and_the_text_around_it_stays():
    page = PAGE.read_text()
    stale = page.replace("| `qwen2_moe` ", "").replace("| `llama` |", "| `lama` |")
    assert stale != page and with_table(stale) == page
    with pytest.raises(ValueError, match="has no lines"):
        with_table(page.replace(BEGIN, ""))
