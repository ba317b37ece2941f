"""Bytes as text."""

import pytest

from lingo_ds.utils.units import GIB, as_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 MiB"), (5 * 1024**2, "5.0 MiB"), (GIB / 10, "0.10 GiB"), (12.345 * GIB, "12.35 GiB")],
)
def test_sizes_are_shown_in_the_fitting_unit(size, text):
    assert as_bytes(size) == text
