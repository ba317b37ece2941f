"""Attention of one pack, by each of its kernels, against a softmax over who sees whom written out."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.overrides import TorchFunctionMode

from lingo_ds.models.backbone import flash_support, packed_attention
from lingo_ds.models.backbone.packed_attention import MAX_PADDING, PackedAttention, Rule

CPU = torch.device("cpu")
SCALE = 0.37


class Case(NamedTuple):
    """A pack, and what its tokens may see."""

    prefix: int
    lengths: list[int]
    window: int | None = None
    causal: bool = True
    heads: int = 4
    key_heads: int = 4
    softcap: float | None = None


MIXED = [3, 4, 17, 18, 18, 30]
CASES = {
    "causal": Case(0, MIXED),
    "prefix": Case(9, MIXED),
    "one": Case(0, [5]),
    "alike": Case(9, [7, 7, 7]),
    "not in order": Case(9, [18, 3, 30, 17, 4]),
    "window": Case(0, MIXED, window=6),
    "window over the prefix": Case(9, MIXED, window=13),
    "window of two": Case(2, [3, 5], window=2),
    "wide window": Case(9, MIXED, window=500),
    "grouped heads": Case(9, MIXED, key_heads=2),
    "one key head": Case(9, MIXED, window=6, key_heads=1),
    "encoder": Case(0, MIXED, causal=False),
    "encoder, grouped heads": Case(0, [7, 7, 30], causal=False, key_heads=2),
    "encoder, window": Case(0, MIXED, window=6, causal=False),
    "encoder, window of alike": Case(0, [7, 7, 7], window=2, causal=False),
    "capped": Case(9, MIXED, key_heads=2, softcap=0.5),
    "capped, window": Case(0, MIXED, window=6, softcap=0.5),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def sees(case: Case) -> Tensor:
    """(tokens, tokens) bool, from what a pack is: row is the one that looks."""
    owner = [-1] * case.prefix + [k for k, own in enumerate(case.lengths) for _ in range(own)]
    place = [*range(case.prefix), *(case.prefix + i for own in case.lengths for i in range(own))]
    allowed = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for i, (mine, here) in enumerate(zip(owner, place, strict=True)):
        for j, (theirs, there) in enumerate(zip(owner, place, strict=True)):
            near = (there <= here or not case.causal) and (
                case.window is None or abs(here - there) < case.window
            )
            allowed[i, j] = near and theirs in (mine, -1)
    return allowed


def written_out(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, softcap: float | None = None
) -> Tensor:
    """(1, queries, heads, size) of (1, heads, queries, size); `allowed` (queries, keys)."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    scores = query @ key.mT * SCALE
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def inputs(
    case: Case, *, size: int = 8, dtype: torch.dtype = torch.float64, device: torch.device = CPU
) -> list[Tensor]:
    """Query, key and value of a pack's tokens."""
    generator, tokens = torch.Generator().manual_seed(0), case.prefix + sum(case.lengths)
    shapes = [(1, heads, tokens, size) for heads in (case.heads, case.key_heads, case.key_heads)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [part.to(device, dtype).requires_grad_() for part in drawn]


def out_and_gradients(attend: Callable[..., Tensor], parts: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of a sum in which each entry has its own weight."""
    out = attend(*parts)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights.to(out)).sum(), parts)]


def of_pack(case: Case, device: torch.device = CPU) -> Callable[..., Tensor]:
    pack = PackedAttention(case.prefix, case.lengths, device)
    return lambda *parts: pack(*parts, rule_of(case))


def rule_of(case: Case) -> Rule:
    return Rule(SCALE, case.window, case.causal, case.softcap)


def assert_alike(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative, in the Euclidean norm."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double().cpu() - other.double().cpu()).norm() <= tolerance * other.double().norm().cpu()


def oracle(case: Case, **how: Any) -> list[Tensor]:
    allowed = sees(case)
    return out_and_gradients(lambda *parts: written_out(*parts, allowed, case.softcap), inputs(case, **how))


# Where what lies


def test_places_in_a_pack():
    pack = PackedAttention(3, [2, 1, 4], CPU)
    assert pack.tokens == 10
    assert pack.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6]]
    assert pack.last.tolist() == [4, 5, 9]
    assert pack.first.tolist() == [0, 0, 0]
    alone = PackedAttention(0, [2, 1, 4], CPU)
    assert alone.positions.tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert (alone.last.tolist(), alone.first.tolist()) == ([1, 2, 6], [0, 2, 3])


# Groups of like length


@cases
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)],
    ids=["fp64", "fp32", "bf16"],
)
def test_tokens_see_what_they_should(case, dtype, tolerance):
    assert_alike(out_and_gradients(of_pack(case), inputs(case, dtype=dtype)), oracle(case), tolerance)


@cases
def test_one_token_of_each_example_sees_what_it_should(case):
    """The last one, or in an encoder the first: it sees the whole example, or the window's part of it."""
    pack, allowed = PackedAttention(case.prefix, case.lengths, CPU), sees(case)
    for place in [pack.last] if case.causal else [pack.last, pack.first]:

        def attend(query: Tensor, key: Tensor, value: Tensor, place: Tensor = place) -> Tensor:
            first = place is pack.first
            return pack.of_one_token(query[:, :, place], key, value, rule_of(case), first=first)

        def whole(query: Tensor, key: Tensor, value: Tensor, place: Tensor = place) -> Tensor:
            return written_out(query, key, value, allowed, case.softcap)[:, place]

        found, expected = (out_and_gradients(how, inputs(case)) for how in (attend, whole))
        assert_alike(found, expected, 1e-12)


class Products(TorchFunctionMode):
    """Notes how many examples and queries each of attention's batched products has."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.shapes.append((args[0].shape[0], args[0].shape[2]))
        return func(*args, **(kwargs or {}))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(deadline=None, max_examples=30)
def test_little_of_the_products_is_padding(lengths):
    case = Case(0, sorted(lengths), heads=1, key_heads=1)
    with Products() as products, torch.no_grad():
        of_pack(case)(*inputs(case, size=2))
    computed = sum(count * width for count, width in products.shapes)
    assert sum(lengths) <= computed <= sum(lengths) / (1 - MAX_PADDING) + 1e-9
    assert sum(count for count, _ in products.shapes) == len(lengths)
    assert len(products.shapes) <= len(set(lengths))  # those of one length are one product


def test_neighbours_of_like_length_are_one_product():
    """A few large products are faster than one for every length."""
    for case, shapes in (
        (CASES["causal"], [(2, 4), (3, 18), (1, 30)]),
        (Case(0, list(range(90, 101))), [(11, 100)]),
    ):
        with Products() as products, torch.no_grad():
            of_pack(case)(*inputs(case))
        assert products.shapes == shapes


# The kernel for sequences of different length


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    *longest: int,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's kernel by its description: queries are the last of their keys; (left, right), -1 is all.

    `longest` are the most tokens of a sequence's queries, and of its keys.
    """
    max_q, max_k = longest
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert len(cu_seq_q) == len(cu_seq_k) and cu_seq_q[0] == cu_seq_k[0] == 0
    assert int(cu_seq_q[-1]) == len(query) and int(cu_seq_k[-1]) == len(key) == len(value)
    assert int(cu_seq_q.diff().max()) <= max_q and int(cu_seq_k.diff().max()) <= max_k
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = window_size
    outputs = []
    for sequence in range(len(cu_seq_q) - 1):
        of_query, of_key = (slice(*cu[sequence : sequence + 2].tolist()) for cu in (cu_seq_q, cu_seq_k))
        q, k, v = query[of_query], key[of_key], value[of_key]
        apart = torch.arange(len(k)) - (torch.arange(len(q)) + len(k) - len(q))[:, None]
        allowed = torch.ones_like(apart, dtype=torch.bool)
        if left >= 0:
            allowed &= apart >= -left
        if right >= 0:
            allowed &= apart <= right
        assert scale == SCALE
        outputs.append(written_out(*(part.transpose(0, 1)[None] for part in (q, k, v)), allowed)[0])
    return torch.cat(outputs)


def older_varlen(*args: Any, scale: float, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """That of a torch which has no grouped heads."""
    return plain_varlen(*args, scale=scale, window_size=window_size)


@pytest.fixture(params=[plain_varlen, older_varlen], ids=["torch", "older torch"])
def kernel(request, monkeypatch) -> Iterator[list[int]]:
    """A plain kernel in place of torch's, which needs a GPU; the list has an entry for each call."""
    calls: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(args[0]))
        return request.param(*args, **kwargs)

    counting.__signature__ = inspect.signature(request.param)
    monkeypatch.setattr(varlen, "varlen_attn", counting)
    monkeypatch.setattr(packed_attention, "is_flash", lambda query: True)
    flash_support.varlen_options.cache_clear()
    yield calls
    flash_support.varlen_options.cache_clear()


@cases
def test_kernel_is_asked_for_what_tokens_should_see(case, kernel):
    assert_alike(out_and_gradients(of_pack(case), inputs(case)), oracle(case), 1e-12)
    at_once = [case.prefix + sum(case.lengths)]
    assert kernel == ([] if case.softcap else at_once)  # it has no bound on scores


def test_kernel_serves_half_precision_on_a_gpu_alone():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not flash_support.is_flash(torch.zeros(1, dtype=dtype))


@pytest.mark.gpu
@cases
def test_real_kernel_is_as_good_as_fp32(case):
    """bf16 on the GPU through torch's kernel, against groups of like length in fp32, forward and backward."""
    device = torch.device("cuda")
    half = inputs(case, size=64, dtype=torch.bfloat16, device=device)
    assert flash_support.is_flash(half[0])
    exact = [part.detach().float().requires_grad_() for part in half]
    found, expected = (out_and_gradients(of_pack(case, device), parts) for parts in (half, exact))
    assert_alike(found, expected, 0.02)
