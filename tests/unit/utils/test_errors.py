"""A mistake is one line in the contract's form, whatever the names in it hold."""

import pytest

from lingo_ds.utils.errors import MAX_MESSAGE_CHARS, Mistake, UserError, one_line, reason_of


def test_the_contracts_form():
    first = Mistake("train.learning_rate", 5, "is above 1", "lower it")
    second = Mistake("train.csv:17", "J", "is not a base", "correct it")
    assert str(UserError(first)) == "error: train.learning_rate: '5': is above 1: lower it"
    assert (
        str(UserError([first, second])).splitlines()[1]
        == "error: train.csv:17: 'J': is not a base: correct it"
    )


def test_no_name_controls_the_terminal_or_fills_it():
    mistake = Mistake("a\x1b[2Jb", "v" * 1000, "r\n\u202e", "f" * 10_000)
    assert str(mistake).isprintable() and len(str(mistake)) < 3 * MAX_MESSAGE_CHARS
    assert "x1b[2J" in str(mistake)
    assert one_line("start" + "x" * 1000 + "end", most=20).startswith("start")
    assert len(one_line("\x1b" * 1000, most=20)) <= 20


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("the first line\nsecond"), "the first line"),
        (ValueError("\n  \nnot a number"), "not a number"),
        (ValueError("an error for x:\nno number"), "an error for x: no number"),
        (KeyError("foo"), "KeyError: 'foo'"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_says_what_is_wrong(error, reason):
    assert reason_of(error) == reason
