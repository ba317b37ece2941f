"""Copies to the pretend card: one for a whole forward, and nobody waits for it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lingo_ds.utils.transfer import pinned, to_device, upload


class Inner(NamedTuple):
    places: Tensor | None
    longest: int


class Forward(NamedTuple):
    ids: Tensor
    labels: Tensor
    none: Tensor
    inner: Inner
    parts: tuple[Inner, ...]


def some_forward() -> Forward:
    ids = torch.arange(7)
    parts = (Inner(torch.tensor([True, False, True]), 3), Inner(None, 4))
    return Forward(ids, torch.rand(3, 5), torch.zeros(0, 2), Inner(ids, 7), parts)


def tensors_of(forward: Forward) -> list[Tensor]:
    return [forward.ids, forward.labels, forward.none, forward.inner.places, forward.parts[0].places]


def copy_forward() -> dict[str, Any]:
    from tests.pretend.probe import Probe

    card, forward = torch.device("cuda", 0), some_forward()
    ready = pinned(forward)
    with Probe() as probe:
        copied = probe.during("block", to_device)(ready, card)
        kept = probe.during("again", to_device)(copied, card)
        turned = to_device((forward.labels.T,), card)[0]
        probe.during("upload", upload)(torch.arange(3).numpy(), card)
    return {
        "pinned": all(one.is_pinned() for one in tensors_of(ready) if one.numel()),
        "there": {str(one.device) for one in tensors_of(copied)},
        "plain": [one.cpu() for one in tensors_of(copied)],
        "same": kept.ids is copied.ids,
        "turned": turned.cpu(),
        "operators": dict(probe.operators),
        "waits": probe.waits,
        "labels": forward.labels,
        "rest": (copied.inner.longest, copied.parts[1]),
    }


def test_a_forward_goes_over_in_one_copy(cards):
    (seen,) = cards.call(copy_forward)
    expected = some_forward()._replace(labels=seen["labels"])
    assert seen["pinned"] and seen["there"] == {"cuda:0"} and seen["same"]
    for found, one in zip(seen["plain"], tensors_of(expected), strict=True):
        assert found.dtype == one.dtype and torch.equal(found, one)
    assert seen["rest"] == (7, Inner(None, 4))
    assert torch.equal(seen["turned"], expected.labels.T)
    assert seen["operators"] == {"block": 1, "upload": 1} and not seen["waits"]


def test_a_cpu_keeps_what_it_has():
    forward, values = some_forward(), torch.arange(3).numpy()
    assert to_device(forward, torch.device("cpu")) is forward
    assert upload(values, torch.device("cpu")).data_ptr() == values.ctypes.data
