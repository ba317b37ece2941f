"""Full sums and repeatable operations, by torch's own switches and its own refusals."""

import os

import pytest
import torch
import torch.utils.deterministic

from lingo_ds.distributed.numerics import WORKSPACE, repeatable, sum_in_full_precision
from lingo_ds.utils.errors import UserError


def write_twice_to_one_place() -> None:
    """An operation of which torch has no repeatable form, on a CPU either."""
    torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def switches() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_what_cannot_be_repeated_is_a_mistake_in_words():
    before = switches()
    with pytest.raises(UserError) as raised, repeatable(True):
        write_twice_to_one_place()
    assert str(raised.value) == (
        "error: train.deterministic: 'true': put_ has no form here that gives the same bits each time: "
        "set it to false"
    )
    assert switches() == before


def test_cublas_is_told_before_its_first_product(monkeypatch):
    with repeatable(True):
        assert os.environ[WORKSPACE] == ":4096:8" and switches() == (True, False, False, False)
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with repeatable(True):
        assert os.environ[WORKSPACE] == ":16:8"


def test_cublas_was_told_otherwise(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with (
        pytest.raises(UserError, match=f"error: {WORKSPACE}: ':0:0': lets products differ"),
        repeatable(True),
    ):
        raise AssertionError("must not begin")


def test_a_product_before_the_variable_was_set():
    said = "Deterministic behavior was enabled .. not deterministic because it uses CuBLAS and you have .."
    told = "came too late for cuBLAS: export CUBLAS_WORKSPACE_CONFIG=:4096:8"
    with pytest.raises(UserError, match=told), repeatable(True):
        raise RuntimeError(said)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="out of memory"), repeatable(True):
        raise RuntimeError("out of memory")


def test_nothing_changes_where_it_is_not_wanted():
    before = switches()
    with repeatable(False):
        assert switches() == before and WORKSPACE not in os.environ
        write_twice_to_one_place()


def test_sums_are_whole_before_they_are_rounded():
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = True
    sum_in_full_precision()
    assert not products.allow_bf16_reduced_precision_reduction
    assert not products.allow_fp16_reduced_precision_reduction
