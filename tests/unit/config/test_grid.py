"""Combinations of a grid: each has a name of its own, and a folder that no other has."""

import pytest

from lingo_ds.config.grid import combinations, each_once, folder_name, label_of, value_text
from lingo_ds.config.yaml import parse_yaml


def test_the_last_setting_varies_fastest_and_no_grid_has_one_empty_combination():
    found = combinations({"train.learning_rate": (1e-4, 3e-4), "adapter.rank": (4, 8)})
    assert [tuple(one.values()) for one in found] == [(1e-4, 4), (1e-4, 8), (3e-4, 4), (3e-4, 8)]
    assert combinations({}) == [{}]


@pytest.mark.parametrize(
    "setting, label",
    [
        ({"train.learning_rate": 3e-4, "adapter.rank": 8}, "learning_rate=0.0003,rank=8"),
        ({"data.max_length": None, "train.deterministic": True}, "max_length=null,deterministic=true"),
        ({"data.intervals.seed": 1, "data.split.seed": 2}, "data.intervals.seed=1,data.split.seed=2"),
        ({"adapter.targets": ["q_proj", "v_proj"]}, "targets=[q_proj,v_proj]"),
        ({"data.prefix": "a,b={sequence}\n"}, r'prefix="a,b={sequence}\n"'),
        ({"train.warmup": 2.0}, "warmup=2"),
        ({}, ""),
    ],
)
def test_a_label_names_what_differs(setting, label):
    assert label_of(setting) == label


def test_a_number_is_called_alike_however_it_is_written():
    written = parse_yaml("[3e-4, 0.0003, 3.0e-04, 1.0, 1, 007]")
    assert [value_text(one) for one in written] == ["0.0003"] * 3 + ["1", "1", "7"]
    with pytest.raises(ValueError, match="repeat an item"):
        each_once(tuple(written))


def test_text_cannot_pass_for_another_setting():
    one = {"data.prefix": "x,domain=y", "data.domain": "z"}
    other = {"data.prefix": "x", "data.domain": "y,domain=z"}
    assert label_of(one) != label_of(other)


def test_a_folder_keeps_a_plain_label_and_tells_others_apart():
    assert folder_name("learning_rate=0.0003,rank=8") == "learning_rate=0.0003,rank=8"
    odd = [
        'prefix="a/../b"',
        'prefix="a|..|b"',
        "targets=[a,b]",
        "prefix=" + "x" * 300,
        "prefix=" + "x" * 301,
    ]
    folders = [folder_name(label) for label in odd]
    assert len({*folders}) == len(odd)
    assert all("/" not in folder and len(folder) < 120 and folder.isascii() for folder in folders)
