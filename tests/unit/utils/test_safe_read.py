"""Files from strangers are read within bounds, strictly, and never outside of their folder."""

import os
from pathlib import Path

import pytest

from lingo_ds.utils.safe_read import MAX_JSON_BYTES, own_file, read_json, read_own_json, read_regular


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "absent", tmp_path / "a\0b"):
        with pytest.raises(OSError):
            read_regular(path)
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", most=5) == b"12345"
    with pytest.raises(OSError, match="holds more than 4 bytes"):
        read_regular(tmp_path / "file", most=4)


def test_a_folders_own_file_is_no_link_out_of_it(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (tmp_path / "secret").write_text("{}")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "file").write_text("{}")
    (folder / "inside").symlink_to(folder / "file")
    assert own_file(folder, "file").read_text() == own_file(folder, "inside").read_text() == "{}"
    for name, words in [
        ("out", "link out of the folder"),
        ("absent", "missing"),
        (".", "not a regular file"),
    ]:
        with pytest.raises(ValueError, match=words):
            own_file(folder, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "does not hold an object"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": {"b": 1, "b": 2}}', "'b' occurs twice"),
        ('{"a": 1', "Expecting"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_of_a_folder_is_read_strictly(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json.*{words}"):
        read_own_json(tmp_path, "config.json")


def test_json_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "value.json"
    path.write_text('{"a": [1, 2.5, null]}')
    assert read_json(path) == read_own_json(tmp_path, path.name) == {"a": [1, 2.5, None]}
    path.write_text(" " * MAX_JSON_BYTES + "{}")
    for read in (lambda: read_json(path), lambda: read_own_json(tmp_path, path.name)):
        with pytest.raises(OSError, match="holds more than"):
            read()
