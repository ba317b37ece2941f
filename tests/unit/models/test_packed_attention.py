"""Attention of one pack, by each of its kernels, against a softmax over who sees whom written out."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lingo_ds.models.backbone import flash_support, packed_attention
from lingo_ds.models.backbone.pack_places import MAX_PADDING, Kernel, PackPlaces, find_places
from lingo_ds.models.backbone.packed_attention import PackedAttention, Rule, choose_kernel
from lingo_ds.utils.transfer import to_device

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
OF_FLASH = {name: case for name, case in CASES.items() if case.softcap is None}
flash_cases = pytest.mark.parametrize("case", OF_FLASH.values(), ids=OF_FLASH)


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


def of_pack(case: Case, *, kernel: Kernel | None = None) -> Callable[..., Tensor]:
    """The pack's attention by a kernel; None: by the one that is chosen for a backbone like this."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ahead = case.window is not None and not case.causal
        spec: Any = SimpleNamespace(softcap=case.softcap, windows_ahead=ahead, head_size=query.shape[-1])
        chosen = kernel or choose_kernel(spec, query.dtype, query.device)
        places = find_places(case.prefix, case.lengths, kernel=chosen, pooled=None)
        return PackedAttention(to_device(places, query.device))(query, key, value, rule_of(case))

    return attend


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


def places_of(prefix: int, lengths: list[int], pooled: str | None, **how: Any) -> PackPlaces:
    return find_places(prefix, lengths, **{"kernel": "cpp", "pooled": pooled, **how})


def test_places_in_a_pack():
    last = places_of(3, [2, 1, 4], "last")
    assert last.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6]]
    assert last.pooled.tolist() == [4, 5, 9]
    assert places_of(3, [2, 1, 4], "first").pooled.tolist() == [0, 0, 0]
    alone = [2, 1, 4]
    assert places_of(0, alone, "last").positions.tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert [places_of(0, alone, which).pooled.tolist() for which in ("last", "first")] == [
        [1, 2, 6],
        [0, 2, 3],
    ]
    assert places_of(0, alone, "last", first_position=2).positions.tolist() == [[2, 3, 2, 2, 3, 4, 5]]
    assert places_of(3, alone, None).counts.tolist() == [[5], [4], [7]]


def test_only_what_is_needed_is_found():
    """Everything costs time in the thread that reads the data, and a copy to the device."""
    needed = {
        ("flash", None): {"counts", "flash"},
        ("flash", "last"): {"pooled", "flash", "flash_of_one"},
        ("cpp", None): {"counts", "sequences"},
        ("cpp", "last"): {"pooled", "sequences", "buckets"},
        ("groups", None): {"counts", "buckets"},
        ("groups", "last"): {"pooled", "buckets"},
    }
    parts = {"pooled", "counts", "flash", "flash_of_one", "sequences", "buckets"}
    for (kernel, pooled), names in needed.items():
        places = places_of(3, [2, 1, 4], pooled, kernel=kernel, shortened=pooled is not None)
        assert {name for name in parts if getattr(places, name) not in (None, ())} == names


# Groups of like length


@cases
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)],
    ids=["fp64", "fp32", "bf16"],
)
def test_tokens_see_what_they_should(case, dtype, tolerance):
    assert_alike(out_and_gradients(of_pack(case), inputs(case, dtype=dtype)), oracle(case), tolerance)


def of_one_token(case: Case, pooled: str, kernel: Kernel) -> list[Callable[..., Tensor]]:
    """The attention of one token of each example, by a kernel and written out."""
    allowed = sees(case)
    places = places_of(case.prefix, case.lengths, pooled, kernel=kernel, shortened=True)
    place = places.pooled

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pack = PackedAttention(to_device(places, query.device))
        return pack.of_one_token(query[:, :, place], key, value, rule_of(case))

    def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return written_out(query, key, value, allowed, case.softcap)[:, place]

    return [attend, whole]


@cases
def test_one_token_of_each_example_sees_what_it_should(case):
    """The last one, or in an encoder any: it sees the whole example, or the window's part of it."""
    for pooled in ["last"] if case.causal else ["last", "first"]:
        ways = of_one_token(case, pooled, "groups")
        found, expected = (out_and_gradients(how, inputs(case)) for how in ways)
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


def plain_flash(
    *args: Any, scale: float, window_size_left: int, window_size_right: int
) -> tuple[Tensor, ...]:
    """Torch's kernel by its description: queries are the last of their keys; of a window, -1 is all."""
    query, key, value, of_query, of_key, longest_query, longest_key, dropout, causal, debug_mask = args
    assert of_query.dtype == of_key.dtype == torch.int32
    assert len(of_query) == len(of_key) and of_query[0] == of_key[0] == 0
    assert int(of_query[-1]) == len(query) and int(of_key[-1]) == len(key) == len(value)
    assert int(of_query.diff().max()) == longest_query and int(of_key.diff().max()) == longest_key
    assert not dropout and not debug_mask and scale == SCALE
    left, right = window_size_left, window_size_right
    assert causal == ((left, right) == (-1, 0))
    outputs = []
    for first in range(len(of_query) - 1):
        own, seen = (slice(*starts[first : first + 2].tolist()) for starts in (of_query, of_key))
        q, k, v = query[own], key[seen], value[seen]
        apart = torch.arange(len(k)) - (torch.arange(len(q)) + len(k) - len(q))[:, None]
        allowed = torch.ones_like(apart, dtype=torch.bool)
        if left >= 0:
            allowed &= apart >= -left
        if right >= 0:
            allowed &= apart <= right
        outputs.append(written_out(*(part.transpose(0, 1)[None] for part in (q, k, v)), allowed)[0])
    return (torch.cat(outputs),)


@pytest.fixture
def kernel(monkeypatch) -> list[int]:
    """A plain kernel in place of torch's, which needs a GPU; the list has the queries of each call."""
    calls: list[int] = []

    def counting(query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append(len(query))
        return plain_flash(query, *args, **kwargs)

    monkeypatch.setattr(packed_attention, "flash_attention", counting)
    return calls


@flash_cases
def test_kernel_is_asked_for_what_tokens_should_see(case, kernel):
    assert_alike(out_and_gradients(of_pack(case, kernel="flash"), inputs(case)), oracle(case), 1e-12)
    assert kernel == [case.prefix + sum(case.lengths)]  # all of them, at once


@flash_cases
def test_kernel_is_asked_once_for_one_token_of_each_example(case, kernel):
    found, expected = (out_and_gradients(how, inputs(case)) for how in of_one_token(case, "last", "flash"))
    assert_alike(found, expected, 1e-12)
    assert kernel == [len(case.lengths)]


def test_no_keys_are_copied_where_nothing_is_shared():
    alone, shared = (places_of(prefix, [2, 1], "last", kernel="flash") for prefix in (0, 3))
    assert alone.flash.copies is None
    assert shared.flash.copies.source.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5]


def test_kernel_serves_half_precision_on_a_gpu_alone():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not flash_support.is_flash(dtype, 64, CPU)


@pytest.mark.gpu
@cases
def test_real_kernel_is_as_good_as_fp32(case):
    """bf16 on the GPU through torch's kernel, against groups of like length in fp32, forward and backward."""
    device = torch.device("cuda")
    half = inputs(case, size=64, dtype=torch.bfloat16, device=device)
    assert flash_support.is_flash(torch.bfloat16, 64, device)
    exact = [part.detach().float().requires_grad_() for part in half]
    found, expected = (out_and_gradients(of_pack(case), parts) for parts in (half, exact))
    assert_alike(found, expected, 0.02)


@pytest.mark.gpu
@cases
def test_real_kernel_serves_one_token_of_each_example(case):
    """Also with several heads of queries to one of keys, for which torch has another way at one query."""
    half = inputs(case, size=64, dtype=torch.bfloat16, device=torch.device("cuda"))
    exact = [part.detach().double().cpu().requires_grad_() for part in half]
    ways = of_one_token(case, "last", "flash")
    found, expected = (out_and_gradients(how, parts) for how, parts in zip(ways, (half, exact), strict=True))
    assert_alike(found, expected, 0.02)
