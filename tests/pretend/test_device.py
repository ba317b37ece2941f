"""The pretend card itself: what would raise on a card raises here, and values are the host's."""

import threading
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def seen(cards) -> dict[str, Any]:
    (value,) = cards.call(try_device)
    return value


def raised(action) -> str:
    try:
        action()
    except Exception as error:
        return str(error)
    return ""


def try_device() -> dict[str, Any]:
    from tests.pretend.device import CARD
    from tests.pretend.probe import Probe

    first, second, host = torch.device("cuda", 0), torch.device("cuda", 1), torch.arange(4.0)
    x = torch.arange(4.0, device=first, requires_grad=True)
    threads: list[int] = []
    x.register_hook(lambda grad: threads.append(threading.get_ident()) or grad * 2)
    (x * x).sum().backward()
    half = torch.ones(3, 1, 12, dtype=torch.bfloat16, device=first)
    ends = torch.tensor([0, 3], dtype=torch.int32, device=first)
    flash = torch.ops.aten._flash_attention_forward

    def attend(size: int) -> Any:
        q = half[..., :1].expand(3, 1, size).contiguous()
        return flash(q, q, q, ends, ends, 3, 3, 0.0, True, False)

    out = {
        "device": str((x + 1).device),
        "second": str(torch.zeros(3, device=second).device),
        "gradient": x.grad.tolist(),
        "own thread": threads != [threading.get_ident()],
        "mixed": raised(lambda: x + host),
        "two cards": raised(lambda: x + torch.zeros(4, device=second)),
        "scalar": (x.detach() + torch.tensor(1.0)).tolist(),
        "numpy": raised(lambda: x.detach().numpy()),
        "pinned": [host.is_pinned(), host.pin_memory().is_pinned()],
        "head size 12": raised(lambda: attend(12)),
        "head size 16": raised(lambda: attend(16)),
    }
    with Probe() as probe:
        for name, action in {
            "read": lambda: x.detach().sum().item(),
            "pageable": lambda: host.to(first, non_blocking=True),
            "pinned": lambda: host.pin_memory().to(first, non_blocking=True),
            "pinned and waited for": lambda: host.pin_memory().to(first),
            "by a mask": lambda: x.detach()[x.detach() > 1],
            "by indices": lambda: x.detach()[torch.zeros(2, dtype=torch.long, device=first)],
            "made of a list": lambda: torch.tensor([1.0], device=first),
            "synchronized": torch.cuda.synchronize,
            "on the host": lambda: host.sum().item(),
        }.items():
            probe.during(name, action)()
    out["waits"] = {name: sum(places.values()) for name, places in probe.waits.items()}
    out["operators"] = probe.operators["by indices"]
    CARD.capability = (7, 5)
    out["T4"] = raised(lambda: attend(16))
    return out


def test_tensors_know_their_card(seen):
    assert seen["device"] == "cuda:0" and seen["second"] == "cuda:1"


def test_values_and_gradients_are_the_hosts(seen):
    assert seen["gradient"] == [0.0, 4.0, 8.0, 12.0] and seen["scalar"] == [1.0, 2.0, 3.0, 4.0]


def test_the_backward_pass_runs_in_the_cards_thread(seen):
    assert seen["own thread"]


@pytest.mark.parametrize("kind", ["mixed", "two cards"])
def test_operators_that_mix_devices_raise(seen, kind):
    assert "Expected all tensors to be on the same device" in seen[kind]


def test_a_cards_tensor_is_no_array(seen):
    assert "can't convert cuda:0 device type tensor to numpy" in seen["numpy"]


def test_pinned_memory_is_told_apart(seen):
    assert seen["pinned"] == [False, True]


def test_flash_attention_refuses_what_the_kernel_refuses(seen):
    assert "head size 12" in seen["head size 12"] and "Ampere" in seen["T4"] and not seen["head size 16"]


def test_waits_of_the_host_are_counted_and_nothing_else(seen):
    waiting = ("read", "pageable", "pinned and waited for", "by a mask", "made of a list", "synchronized")
    assert seen["waits"] == dict.fromkeys(waiting, 1)
    assert seen["operators"] == 2  # zeros and the choice, no view
