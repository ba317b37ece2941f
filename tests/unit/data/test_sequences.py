"""Files of sequences that are no such files, or stop being one further down."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lingo_ds.data.streams.sequences import Records
from lingo_ds.utils.errors import UserError


def test_text_that_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"id,sequence\na,ACGT\n\xff,ACGT\n")
    records = Records(tmp_path / "in.csv")
    with pytest.raises(UserError, match=r"in.csv:3: 'byte 0xff': is not UTF-8"):
        list(records.chunks(most=10, most_bases=100))


def test_a_pipe_or_device_is_no_input(tmp_path):
    """It cannot be read again by a job that resumes, and may never end."""
    os.mkfifo(tmp_path / "in.fa")
    (tmp_path / "in.csv").symlink_to("/dev/zero")
    for name in ("in.fa", "in.csv"):
        with pytest.raises(UserError, match="is not a regular file"):
            Records(tmp_path / name)


def test_a_parquet_file_that_breaks_further_down_is_named(tmp_path):
    pq.write_table(pa.table({"sequence": ["ACGT"] * 1000}), tmp_path / "in.parquet", compression="none")
    data = bytearray((tmp_path / "in.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    (tmp_path / "in.parquet").write_bytes(data)
    with pytest.raises(UserError, match="is no readable Parquet file"):
        list(Records(tmp_path / "in.parquet").chunks(most=10, most_bases=100))


def test_many_mistakes_are_counted(tmp_path):
    (tmp_path / "in.csv").write_text("sequence\n" + "XX\n" * 30)
    with pytest.raises(UserError) as caught:
        list(Records(tmp_path / "in.csv").chunks(most=100, most_bases=1000))
    (mistake,) = caught.value.mistakes
    assert mistake.where.endswith(":2") and "(30 lines: 2, 3, 4, ..)" in mistake.rule


@pytest.mark.parametrize(
    "name, text, says",
    [
        (
            "in.csv",
            "id,sequence\na,ACGT\nb,ACGT\na,CCCC\na,GGGG\n",
            "2 of 4 ids are those of an earlier row, first 'a'",
        ),
        ("in.fa", ">x one\nACGT\n>x two\nAC\n", "1 of 2 ids are those of an earlier row, first 'x'"),
        ("in.csv", "sequence\nACGT\nACGT\n", ""),
        ("in.csv", "id,sequence\na,ACGT\nb,ACGT\n", ""),
    ],
)
def test_ids_that_come_twice_are_counted(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    records = Records(tmp_path / name)
    for _ in range(2):
        list(records.chunks(skip=1, most=100, most_bases=1000))
        assert records.doubled.remark().startswith(says) and bool(records.doubled.remark()) == bool(says)
