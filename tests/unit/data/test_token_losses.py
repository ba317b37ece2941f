"""What DNA loses on its way to tokens, of tokenizers whose losses one can count by hand."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.token_cache import tokenized_split
from lingo_ds.data.token_losses import TokenLosses
from lingo_ds.data.tokenization import TextTokens
from lingo_ds.utils.errors import UserError


def tokenizer_of(model: models.Model, split: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    made = Tokenizer(model)
    made.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def letters(known: str) -> PreTrainedTokenizerFast:
    """One token a letter, those that are not known are [UNK]."""
    vocabulary = {letter: k for k, letter in enumerate(["[UNK]", *known])}
    return tokenizer_of(models.WordLevel(vocabulary, unk_token="[UNK]"), pre_tokenizers.Split("", "isolated"))


def losses(
    tokenizer: PreTrainedTokenizerFast, *sequences: str, prefix: str | None = None, most: int = 99
) -> TokenLosses:
    split = tokenized_split(
        sequences,
        [0] * len(sequences),
        tokenize=TextTokens(tokenizer),
        prompt=make_prompt(prefix, domain=None),
        max_length=most,
    )
    return split.losses


def test_nothing_is_lost_by_letters():
    assert losses(letters("ACGTN"), "ACGT", "NNAC") == TokenLosses(2, 8, 0, 0, 0)


def test_unknown_bases_are_counted_and_unknown_n_is_not():
    """Of ACGT the G is unknown; N says nothing anyway; the prompt's own unknown letters are no bases."""
    assert losses(letters("ACT"), "ACGT", "NNNN", "ACTT", prefix="GAG: {sequence}") == TokenLosses(
        3, 12, 0, 1, 0
    )


def test_sequences_that_become_equal_are_counted():
    found = losses(letters("ACT"), "ACGT", "ACGT", "AGCT", "GGGG", "GGGA")
    assert found.equal == 0 and found.unknown == 1 + 1 + 1 + 4 + 3
    one = {"[UNK]": 0, "ACGT": 1}
    words = tokenizer_of(models.WordLevel(one, unk_token="[UNK]"), pre_tokenizers.Whitespace())
    assert losses(words, "ACGT", "AAAA", "CCCC", "GGGG").equal == 2


def test_bases_that_a_tokenizer_drops_are_lost():
    """BPE without a token of the unknown gives nothing for what it has no token for."""
    dropping = Tokenizer(models.BPE({"A": 0, "C": 1, "G": 2}, []))
    assert losses(PreTrainedTokenizerFast(tokenizer_object=dropping), "ACGT", "TTTA").unknown == 4


def test_cut_bases_are_counted_and_those_left_are_looked_at():
    assert losses(letters("ACT"), "ACGTACGT", "ACGT", most=4) == TokenLosses(2, 12, 4, 2, 0)


@pytest.mark.parametrize("bases, unknown, refused", [(100, 10, False), (100, 11, True), (0, 0, False)])
def test_much_unknown_is_refused(bases, unknown, refused):
    lost = TokenLosses(sequences=10, bases=bases, unknown=unknown)
    if not refused:
        lost.require_few()
        return
    with pytest.raises(UserError, match=r"loses the DNA: 11\.0% of the bases became unknown tokens"):
        lost.require_few()


def test_losses_in_words():
    lost = TokenLosses(sequences=1000, bases=10_000, cut=1234, unknown=1, equal=3)
    assert lost.in_words() == (
        "less than 0.1% of the bases became unknown tokens, "
        "3 of 1,000 sequences have the same tokens as a different one"
    )
    assert lost.cut_in_words() == "12.3% of the bases" and TokenLosses().in_words() == ""
