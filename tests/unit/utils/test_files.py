"""Files and folders appear whole or not at all; locks and full disks are reported in the user's words."""

import errno
import subprocess
import sys

import pytest

from lingo_ds.utils.errors import UserError
from lingo_ds.utils.files import (
    atomic_write,
    clear_leftovers,
    exclusive_lock,
    make_folder,
    report_disk_full,
    require_free,
    write_once,
)


def write_folder(text: str):
    """Writes a folder with one file."""

    def write(path):
        path.mkdir()
        (path / "a").write_text(text)

    return write


def test_a_file_or_folder_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("old", "new"):
        atomic_write(tmp_path / "below" / "file", lambda path, text=text: path.write_text(text))
        atomic_write(tmp_path / "below" / "folder", write_folder(text))
    assert (tmp_path / "below" / "file").read_text() == "new"
    assert (tmp_path / "below" / "folder" / "a").read_text() == "new"
    assert {path.name for path in (tmp_path / "below").iterdir()} == {"file", "folder"}


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    atomic_write(tmp_path / "folder", write_folder("old"))

    def fail(path):
        write_folder("half")(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "folder", fail)
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_leftovers_of_a_killed_process_are_cleared_and_what_it_replaced_comes_back(tmp_path):
    (tmp_path / ".half.0123abcd.new").write_text("half")
    (tmp_path / ".replaced.0123abcd.old").write_text("old")
    (tmp_path / ".kept.0123abcd.old").write_text("old")
    (tmp_path / "kept").write_text("new")
    (tmp_path / ".bashrc.d").mkdir()
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"replaced", "kept", ".bashrc.d"}
    assert [(tmp_path / name).read_text() for name in ("replaced", "kept")] == ["old", "new"]


def test_a_folder_is_locked_for_other_processes_until_the_holder_leaves(tmp_path):
    code = f"""
from pathlib import Path
from lingo_ds.utils.files import exclusive_lock
with exclusive_lock(Path({str(tmp_path)!r}), setting="output_dir"):
    print("locked", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        said = rf"another run is writing there \(process {other.pid} on"
        with pytest.raises(UserError, match=said), exclusive_lock(tmp_path, setting="output_dir"):
            pytest.fail("it is locked")
        other.kill()
        other.wait()
    with exclusive_lock(tmp_path, setting="output_dir"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_a_full_disk_is_the_users_to_correct(tmp_path, number):
    said = "run the same command again to resume"
    with pytest.raises(UserError, match=said) as caught, report_disk_full(tmp_path):
        raise OSError(number, "No space left on device", str(tmp_path / "file"))
    (mistake,) = caught.value.mistakes
    assert mistake.where == str(tmp_path / "file") and mistake.value == "No space left on device"


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError), report_disk_full(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("name", ["file/below", "a\0b"])
def test_a_folder_that_cannot_be_made_names_its_setting(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"error: output_dir: .*cannot be a folder"):
        make_folder(tmp_path / name, setting="output_dir")
    assert make_folder(tmp_path / "new" / "below", setting="output_dir").is_dir()


def test_only_an_earlier_output_of_the_same_kind_is_replaced(tmp_path):
    def check(output, **options):
        options = {
            "kept": [tmp_path / "inputs" / "adapter"],
            "overwrite": True,
            "markers": ["mark"],
        } | options
        require_free(output, **options)

    earlier, other = tmp_path / "earlier", tmp_path / "other"
    for folder in (earlier, other):
        folder.mkdir()
    (earlier / "mark").touch()
    check(earlier)
    check(tmp_path / "new" / "folder")
    assert (tmp_path / "new").is_dir() and not (tmp_path / "new" / "folder").exists()
    for output, options, rule in [
        (earlier, {"overwrite": False}, "exists already"),
        (other, {}, "is not an earlier export"),
        (tmp_path / "inputs", {}, "is or holds what is read"),
    ]:
        with pytest.raises(UserError, match=rule):
            check(output, **options)


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
