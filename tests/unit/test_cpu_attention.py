"""The CPU's attention kernel and torch's, which stands in for it, against every score written out in fp64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lingo_ds.backbone import cpu_attention
from lingo_ds.backbone.attention import PackedAttention

CPU = torch.device("cpu")
LENGTHS = [1, 70, 15, 48, 101, 49, 16]
"""Own tokens: below, at and beyond a vector's lanes and a block's queries."""


@pytest.fixture(params=["kernel", "torch"])
def way(request, monkeypatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(cpu_attention, "library", lambda: None)
    elif cpu_attention.library() is None:
        pytest.skip("no C++ compiler, or a processor without AVX2")
    return request.param


@pytest.fixture
def kernel() -> None:
    if cpu_attention.library() is None:
        pytest.skip("no C++ compiler, or a processor without AVX2")


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path))
    cpu_attention.library.cache_clear()
    yield tmp_path / "kernels"
    cpu_attention.library.cache_clear()


def tensors(tokens: int, *, heads: int, key_heads: int, size: int, layout: str = "heads first") -> list[Tensor]:
    """Queries, keys, values (1, heads, tokens, size), laid out in memory as models have them."""
    made = torch.Generator().manual_seed(tokens)

    def draw(count: int, layout: str) -> Tensor:
        if layout == "heads first":  # behind rotary positions
            return torch.randn(1, count, tokens, size, generator=made)
        width = size + 3 if layout == "sliced" else size  # as of one map for all three
        return torch.randn(1, tokens, count, width, generator=made)[..., :size].transpose(1, 2)

    kinds = (layout, layout, layout if layout == "sliced" else "tokens first")
    counts = (heads, key_heads, key_heads)
    return [draw(count, kind).requires_grad_() for count, kind in zip(counts, kinds, strict=True)]


def seen_by_all(prefix: int, lengths: Sequence[int], *, window: int | None, causal: bool) -> Tensor:
    """(tokens, tokens): what each token of a pack sees, one by one."""
    owner = [-1] * prefix + [n for n, length in enumerate(lengths) for _ in range(length)]
    position = [*range(prefix), *(prefix + i for length in lengths for i in range(length))]
    rows = [
        [
            owner[key] in (-1, owner[query])
            and (not causal or position[key] <= position[query])
            and (window is None or position[key] > position[query] - window)
            for key in range(len(owner))
        ]
        for query in range(len(owner))
    ]
    return torch.tensor(rows)


def written_out(inputs: Sequence[Tensor], mask: Tensor, weights: Tensor) -> list[Tensor]:
    """Output (1, tokens, heads, size) and gradients, in fp64."""
    query, key, value = leaves = [part.detach().double().requires_grad_() for part in inputs]
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = (0.3 * query @ key.mT).masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ value).transpose(1, 2)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def attended(inputs: Sequence[Tensor], pack: PackedAttention, weights: Tensor, **how: object) -> list[Tensor]:
    out = pack(*inputs, scale=0.3, **how)
    return [out, *torch.autograd.grad((out * weights).sum(), inputs)]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("window", [None, 1, 20, 64, 1000])
@pytest.mark.parametrize("prefix", [0, 1, 53])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "layout"),
    [(2, 2, 16, "heads first"), (4, 2, 64, "tokens first"), (3, 1, 20, "sliced"), (1, 1, 1, "heads first")],
)
def test_every_token_sees_the_prefix_and_its_own_example(way, window, prefix, heads, key_heads, size, layout):
    tokens = prefix + sum(LENGTHS)
    inputs = tensors(tokens, heads=heads, key_heads=key_heads, size=size, layout=layout)
    weights = torch.randn(1, tokens, heads, size, generator=torch.Generator().manual_seed(0))
    mask = seen_by_all(prefix, LENGTHS, window=window, causal=True)
    found = attended(inputs, PackedAttention(prefix, LENGTHS, CPU), weights, window=window, causal=True)
    for one, other in zip(found, written_out(inputs, mask, weights), strict=True):
        assert distance(one, other) < 1e-6 or float(other.norm()) < 1e-6


def test_in_an_encoder_every_token_sees_its_whole_example(way):
    inputs = tensors(sum(LENGTHS), heads=2, key_heads=2, size=16)
    weights = torch.randn(1, sum(LENGTHS), 2, 16)
    mask = seen_by_all(0, LENGTHS, window=None, causal=False)
    found = attended(inputs, PackedAttention(0, LENGTHS, CPU), weights, window=None, causal=False)
    for one, other in zip(found, written_out(inputs, mask, weights), strict=True):
        assert distance(one, other) < 1e-6


def test_scores_far_apart_and_not_finite(way):
    """A score of a thousand leaves nothing to the others; what is no number comes out as none."""
    inputs = [part.detach() for part in tensors(60, heads=1, key_heads=1, size=16)]
    inputs[0] *= 300
    out = PackedAttention(0, [60], CPU)(*inputs, scale=1.0, window=None, causal=True)
    scores = (inputs[0].double() @ inputs[1].double().mT)[0, 0].masked_fill(
        ~torch.ones(60, 60).tril().bool(), float("-inf")
    )
    assert distance(out[0, :, 0], scores.softmax(-1) @ inputs[2][0, 0].double()) < 1e-4
    inputs[0][0, 0, 33, 5] = float("nan")
    out = PackedAttention(0, [60], CPU)(*inputs, scale=1.0, window=None, causal=True)[0, :, 0]
    assert out[33].isnan().all()
    assert out[:33].isfinite().all() and out[34:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_below_fp32_the_inputs_are_rounded_and_nothing_else(kernel, dtype):
    inputs = [part.detach().to(dtype) for part in tensors(sum(LENGTHS), heads=2, key_heads=2, size=16)]
    pack = PackedAttention(0, LENGTHS, CPU)
    weights = torch.randn(1, pack.tokens, 2, 16).to(dtype)
    found = attended([part.requires_grad_() for part in inputs], pack, weights, window=None, causal=True)
    mask = seen_by_all(0, LENGTHS, window=None, causal=True)
    assert all(part.dtype == dtype for part in found)
    for one, other in zip(found, written_out(inputs, mask, weights.double()), strict=True):
        assert distance(one, other) < 2 * torch.finfo(dtype).eps


def test_threads_give_the_same_bits(kernel):
    inputs = tensors(5 + sum(LENGTHS), heads=8, key_heads=4, size=16)
    weights = torch.randn(1, 5 + sum(LENGTHS), 8, 16)
    before, seen = torch.get_num_threads(), []
    try:
        for count in (1, 3, 9):
            torch.set_num_threads(count)
            seen.append(
                attended(inputs, PackedAttention(5, LENGTHS, CPU), weights, window=None, causal=True)
            )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(seen[0] * 2, seen[1] + seen[2], strict=True):
        assert torch.equal(one, other)


def test_processor_without_avx512_computes_the_same(kernel, anew, monkeypatch):
    narrow = (*cpu_attention.FLAGS, "-mno-avx512f")
    wide, results = cpu_attention.FLAGS, []
    inputs = tensors(5 + sum(LENGTHS), heads=2, key_heads=2, size=24)
    weights = torch.randn(1, 5 + sum(LENGTHS), 2, 24)
    for flags in (wide, narrow):
        monkeypatch.setattr(cpu_attention, "FLAGS", flags)
        cpu_attention.library.cache_clear()
        results.append(attended(inputs, PackedAttention(5, LENGTHS, CPU), weights, window=30, causal=True))
    assert len(list(anew.glob("*.so"))) == 2
    for one, other in zip(*results, strict=True):
        assert distance(one, other.double()) < 1e-6


def test_it_is_compiled_once(kernel, anew, monkeypatch):
    assert cpu_attention.library() is not None
    (kept,) = anew.iterdir()
    made = kept.stat().st_mtime_ns
    monkeypatch.setattr(cpu_attention, "_compile", None)
    cpu_attention.library.cache_clear()
    assert cpu_attention.library() is not None
    assert kept.stat().st_mtime_ns == made


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_torch_stands_in_and_it_is_said(kernel, anew, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CXX", compiler)
    inputs = tensors(40, heads=1, key_heads=1, size=8)
    out = PackedAttention(0, [40], CPU)(*inputs, scale=0.3, window=None, causal=True)
    assert out.shape == (1, 40, 1, 8)
    assert not list(anew.glob("*"))
    (record,) = caplog.records
    assert "could not be compiled" in record.getMessage() and compiler in record.getMessage()
