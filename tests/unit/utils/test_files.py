"""Folders that are written once."""

import pytest

from lingo_ds.utils.files import write_once


def test_what_another_process_finished_first_is_kept(tmp_path):
    folder = tmp_path / "entry"

    def write(aside):
        folder.mkdir()  # another process comes first
        (folder / "a").write_text("theirs")
        aside.mkdir()
        raise OSError("the name is taken")

    write_once(folder, write)
    write_once(folder, lambda _: pytest.fail("it is there already"))
    assert (folder / "a").read_text() == "theirs" and list(tmp_path.iterdir()) == [folder]


def test_an_error_that_leaves_no_folder_is_raised(tmp_path):
    def write(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_once(tmp_path / "entry", write)
    assert list(tmp_path.iterdir()) == []
