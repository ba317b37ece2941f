"""The CPU's attention kernel, and torch's in its place, against every score written out in fp64."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lingo_ds.models.ops import attention, compiled
from tests.unit.models.test_packed_attention import (
    Case,
    assert_alike,
    inputs,
    of_pack,
    oracle,
    out_and_gradients,
)

LENGTHS = [1, 70, 15, 48, 101, 49, 16]
"""Own tokens: below, at and beyond a vector's lanes and a block's queries."""


@pytest.fixture
def kernel() -> None:
    if compiled.library() is None:
        pytest.skip("no C++ compiler, or a processor without AVX2")


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(attention, "library", lambda: None)
    else:
        request.getfixturevalue("kernel")


@pytest.fixture
def anew(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path))
    compiled.library.cache_clear()
    yield tmp_path / "kernels"
    compiled.library.cache_clear()


def as_models_have_them(parts: list[Tensor], layout: str) -> list[Tensor]:
    """The same entries in another order of memory: behind rotary positions, or cut from one map's output."""
    width = {"one map": 3, "rotary": 0}[layout]
    laid = [part.detach().transpose(1, 2).contiguous() for part in parts]
    laid = [torch.cat([part, part[..., :width]], dim=-1)[..., : part.shape[-1]] for part in laid]
    return [part.transpose(1, 2).requires_grad_() for part in laid]


@pytest.mark.parametrize("window", [None, 2, 20, 64, 1000])
@pytest.mark.parametrize("prefix", [0, 1, 53])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(2, 2, 1), (4, 2, 20), (3, 1, 64)])
def test_tokens_of_any_length_see_what_they_should(way, window, prefix, heads, key_heads, size):
    case = Case(prefix, LENGTHS, window, heads=heads, key_heads=key_heads)
    found = out_and_gradients(of_pack(case), inputs(case, size=size, dtype=torch.float32))
    assert_alike(found, oracle(case, size=size), 2e-6)


def test_in_an_encoder_every_token_sees_its_whole_example(way):
    case = Case(0, LENGTHS, causal=False)
    assert_alike(out_and_gradients(of_pack(case), inputs(case, dtype=torch.float32)), oracle(case), 2e-6)


@pytest.mark.parametrize("layout", ["rotary", "one map"])
def test_layout_in_memory_makes_no_difference(kernel, layout):
    case = Case(5, LENGTHS, heads=4, key_heads=2)
    plain = inputs(case, size=16, dtype=torch.float32)
    laid = as_models_have_them(plain, layout)
    assert [part.stride() for part in laid] != [part.stride() for part in plain]
    for one, other in zip(*(out_and_gradients(of_pack(case), parts) for parts in (laid, plain)), strict=True):
        assert torch.equal(one, other)


def test_what_is_no_number_is_seen_where_it_is_looked_at(kernel):
    case = Case(0, [60])
    parts = [part.detach() for part in inputs(case, dtype=torch.float32)]
    for kind, seen in ((0, [33]), (1, range(33, 60))):  # a query is its own; a key is of all that see it
        changed = [part.clone() for part in parts]
        changed[kind][0, 1, 33, 5] = float("nan")
        out = of_pack(case)(*changed)[0]
        lost = torch.zeros(out.shape, dtype=torch.bool)
        lost[seen, 1] = True
        assert torch.equal(out.isnan(), lost)


def test_high_scores_leave_nothing_to_the_others(way):
    case = Case(0, LENGTHS)
    parts, exact = inputs(case, dtype=torch.float32), inputs(case)
    with torch.no_grad():
        parts[0] *= 300
        exact[0] *= 300
    # rounding of the scores, in the hundreds, is what is left
    assert_alike([of_pack(case)(*parts)], [of_pack(case)(*exact)], 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_below_fp32_nothing_is_rounded_in_between(kernel, dtype):
    case = Case(5, LENGTHS)
    found = out_and_gradients(of_pack(case), inputs(case, dtype=dtype))
    exact = [part.detach().double().requires_grad_() for part in inputs(case, dtype=dtype)]
    assert all(part.dtype == dtype for part in found)
    assert_alike(found, out_and_gradients(of_pack(case), exact), torch.finfo(dtype).eps)


def test_threads_give_the_same_bits(kernel):
    case, before, seen = Case(5, LENGTHS, heads=8, key_heads=4), torch.get_num_threads(), []
    try:
        for count in (1, 3, 9):
            torch.set_num_threads(count)
            seen.append(out_and_gradients(of_pack(case), inputs(case, dtype=torch.float32)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(seen[0] * 2, seen[1] + seen[2], strict=True):
        assert torch.equal(one, other)


def test_processor_without_avx512_computes_the_same(kernel, anew, monkeypatch):
    case, results = Case(5, LENGTHS, window=30), []
    for flags in (compiled.FLAGS, (*compiled.FLAGS, "-mno-avx512f")):
        monkeypatch.setattr(compiled, "FLAGS", flags)
        compiled.library.cache_clear()
        results.append(out_and_gradients(of_pack(case), inputs(case, size=24, dtype=torch.float32)))
    assert len(list(anew.glob("*.so"))) == 2
    assert_alike(*results, 1e-6)


def test_it_is_compiled_once(kernel, anew, monkeypatch):
    assert compiled.library() is not None
    (kept,) = anew.iterdir()
    monkeypatch.setattr(compiled, "_compile", None)
    compiled.library.cache_clear()
    assert compiled.library() is not None
    assert list(anew.iterdir()) == [kept]


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_torch_stands_in_and_it_is_said(kernel, anew, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CXX", compiler)
    case = Case(5, LENGTHS)
    for _ in range(2):
        assert_alike(out_and_gradients(of_pack(case), inputs(case, dtype=torch.float32)), oracle(case), 2e-6)
    assert not list(anew.glob("*"))
    (record,) = caplog.records
    assert "could not be compiled" in record.getMessage() and compiler in record.getMessage()
