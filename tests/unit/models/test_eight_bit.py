"""Maps in 8 bits: how far an entry may be off, and that no cut into pieces or parts changes one."""

import pytest
import torch
from torch import Tensor

from lingo_ds.models.backbone import eight_bit
from lingo_ds.models.backbone.eight_bit import SCALE_BLOCK, packed_bytes, packed_entries


def packed(values: Tensor, *, members: int = 1) -> Tensor:
    """Every member's part, (members, bytes), of flat values; 0 beyond their end."""
    entries = packed_entries(len(values), members)
    padded = torch.zeros(members * entries)
    padded[: len(values)] = values
    parts = torch.empty(members, packed_bytes(entries), dtype=torch.uint8)
    for part, own in zip(parts, padded.split(entries), strict=True):

        def read(start: int, out: Tensor, own: Tensor = own) -> None:
            out.copy_(own[start : start + len(out)])

        eight_bit.pack(part, read)
    return parts


def unpacked(parts: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    members, size = parts.shape
    out = torch.full((members * size // packed_bytes(SCALE_BLOCK) * SCALE_BLOCK,), torch.nan, dtype=dtype)
    eight_bit.unpack(parts, out)
    return out[:count]


@pytest.fixture
def values() -> Tensor:
    """Blocks of very different sizes; the last is not full."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-6, 6, 37).repeat_interleave(SCALE_BLOCK)
    return (torch.randn(len(sizes), generator=generator) * sizes)[:-100]


def test_an_entry_is_off_by_half_a_step_of_its_block(values):
    made = unpacked(packed(values), len(values))
    for ours, theirs in zip(made.split(SCALE_BLOCK), values.split(SCALE_BLOCK), strict=True):
        largest = theirs.abs().max()
        assert (ours - theirs).abs().max() <= largest / 254 * (1 + 1e-5)
        assert ours.abs().max() == pytest.approx(float(largest), rel=1e-6)


@pytest.mark.parametrize("members", [2, 3, 4, 64])
def test_parts_change_no_entry(values, members):
    assert torch.equal(
        unpacked(packed(values, members=members), len(values)), unpacked(packed(values), len(values))
    )


def test_pieces_change_no_entry(values, monkeypatch):
    whole = packed(values)
    made = unpacked(whole, len(values))
    monkeypatch.setattr(eight_bit, "ENTRIES_PER_READ", 3 * SCALE_BLOCK)
    monkeypatch.setattr(eight_bit, "BLOCKS_PER_UNPACK", 2)
    assert torch.equal(packed(values), whole)
    assert torch.equal(unpacked(whole, len(values)), made)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entries_are_rounded_once_more_to_the_compute_dtype(values, dtype):
    values = values.clamp(-1e4, 1e4)
    parts = packed(values)
    assert torch.equal(unpacked(parts, len(values), dtype), unpacked(parts, len(values)).to(dtype))


def test_blocks_of_zeros_and_tiny_values_stay_finite():
    values = torch.cat([torch.zeros(SCALE_BLOCK), torch.full((SCALE_BLOCK,), 1e-42), torch.ones(SCALE_BLOCK)])
    made = unpacked(packed(values), len(values))
    assert not made[:SCALE_BLOCK].any()
    assert torch.isfinite(made).all() and made[SCALE_BLOCK : 2 * SCALE_BLOCK].max() < 1e-41
    torch.testing.assert_close(made[2 * SCALE_BLOCK :], torch.ones(SCALE_BLOCK))


CUDAS_NAN = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, CUDAS_NAN])
def test_a_broken_weight_stays_broken_in_its_block_alone(values, broken, dtype):
    values[3 * SCALE_BLOCK + 5] = broken
    made = unpacked(packed(values), len(values), dtype)
    whole = torch.isfinite(made.float())
    assert not whole[3 * SCALE_BLOCK : 4 * SCALE_BLOCK].any()
    assert whole[: 3 * SCALE_BLOCK].all() and whole[4 * SCALE_BLOCK :].all()
