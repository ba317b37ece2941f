"""The memory of a card: how much of it a plan counts on."""

from lingo_ds.utils.units import GIB


def planned(taken: int, reserved: int) -> int:
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.planning.plan_inputs import gather_processes
    from tests.pretend.device import CARD

    CARD.memory, CARD.taken, CARD.reserved = 80 * GIB, taken, reserved
    return gather_processes(detect()).memory_bytes


def test_the_plan_starts_from_what_others_left_free(cards):
    assert cards.call(planned, 30 * GIB, 0) == [50 * GIB]


def test_what_this_process_holds_is_its_own(cards):
    assert cards.call(planned, 30 * GIB, 20 * GIB) == [50 * GIB]


def test_a_few_bytes_make_no_other_plan(cards):
    assert cards.call(planned, 30 * GIB + 1, 0) == cards.call(planned, 30 * GIB + 2**27, 0)
