"""From a sequence and its prompt to token ids: by the backbone's tokenizer, or one token per base."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from lingo_ds.data.dna import first_bases, join
from lingo_ds.data.prompt import Prompt
from lingo_ds.data.token_losses import Token, unknown_bases
from lingo_ds.utils.errors import Mistake, UserError, reason_of

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

NUCLEOTIDES = "ACGTN"
"""Learned tokens, in the order of their ids. U is read as T, every other letter as N."""

MANY = 1 << 20
"""More tokens than any probe has."""

SAMPLED = 64
"""Of so many examples one is looked at closely; from then on all, where its tokenizer dropped a base."""

_PLACE = np.full(128, NUCLEOTIDES.index("N"), np.int32)
for _letter in "ACGT":
    _PLACE[ord(_letter)] = NUCLEOTIDES.index(_letter)
_PLACE[ord("U")] = NUCLEOTIDES.index("T")


_DRAWN = "".join("ACGT"[byte % 4] for k in range(16) for byte in hashlib.sha256(bytes([k])).digest())
PROBES = (*(_DRAWN[length * (length - 1) // 2 :][:length] for length in range(1, 30)), "N", "ACGTNNNNACGT")
"""Sequences by whose tokens two tokenizers are told apart."""


class ExampleText(NamedTuple):
    """The parts of an example's text: a sequence, the second one of a pair, cells of the prompt's columns."""

    sequence: str
    pair: str | None = None
    cells: Sequence[str] = ()

    def first(self, bases: int) -> "ExampleText":
        """The same example, shortened to so many bases."""
        return ExampleText(*first_bases(self.sequence, self.pair, bases), self.cells)

    @property
    def bases(self) -> int:
        """Bases of both sequences."""
        return len(self.sequence) + len(self.pair or "")


class Tokens(NamedTuple):
    """Token ids of one example, (length,), and bases of it that they do not hold.

    Attributes:
        ids: the token ids.
        cut: bases that were cut off to fit.
        unknown: bases of the others that are no token's, see `unknown_bases`.
    """

    ids: Sequence[int] | np.ndarray
    cut: int = 0
    unknown: int = 0


Tokenize = Callable[[Sequence[ExampleText], Prompt, int], Iterable[Tokens]]
"""Turns examples into tokens, with a prompt around each and at most so many tokens per example."""


def make_tokenize(
    tokens: Literal["text", "nucleotides"],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    vocabulary: int,
    pair_separator: str = "",
) -> Tokenize:
    """The way to tokens that `data.tokens` names.

    Args:
        tokens: `data.tokens`, how DNA is read.
        tokenizer: the backbone's.
        vocabulary: rows of the backbone's embedding.
        pair_separator: text between the two sequences of a pair.

    Raises:
        UserError: when it is used, where the tokenizer cannot read text or does not belong to the backbone.
    """
    if tokens == "text":
        return TextTokens(tokenizer, pair_separator)
    return NucleotideTokens(tokenizer, vocabulary, pair_separator)


class TextTokens:
    """Sequences as the backbone's tokenizer reads them, in one text with their prompt."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", pair_separator: str = ""):
        self._tokenizer, self._separator = tokenizer, pair_separator
        self._drops = False  # whether it was seen to give no token at all for some base

    def __call__(self, rows: Sequence[ExampleText], prompt: Prompt, max_length: int) -> Iterator[Tokens]:
        """The tokens of each example.

        Raises:
            UserError: where not even one base fits between prefix and suffix.
        """
        batch = self._encode([self._text(row, prompt) for row in rows])
        for place, (row, ids) in enumerate(zip(rows, batch["input_ids"], strict=True)):
            if len(ids) > max_length:
                yield self._cut(row, prompt, max_length)
            else:
                yield Tokens(ids, unknown=self._unknown(row, prompt, batch, place))

    def _text(self, row: ExampleText, prompt: Prompt) -> str:
        return prompt.render(self._dna(row), fields=_fields(row, prompt))

    def _dna(self, row: ExampleText) -> str:
        return join(row.sequence, row.pair, self._separator)

    def _cut(self, row: ExampleText, prompt: Prompt, max_length: int) -> Tokens:
        """Token ids with as much of the sequence's start as fits; prefix and suffix stay whole."""
        fits, too_long, best = 0, row.bases, None
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            batch = self._encode([self._text(row.first(middle), prompt)])
            if len(batch["input_ids"][0]) <= max_length:
                fits, best = middle, batch
            else:
                too_long = middle
        if best is None:
            raise _no_room(max_length)
        unknown = self._unknown(row.first(fits), prompt, best, 0)
        return Tokens(best["input_ids"][0], row.bases - fits, unknown)

    def _unknown(self, row: ExampleText, prompt: Prompt, batch: "BatchEncoding", place: int) -> int:
        """Bases that an example's tokens do not hold; counted where a token is unknown, and in a sample."""
        ids, unknown = batch["input_ids"][place], self._tokenizer.unk_token_id
        if not self._drops and place % SAMPLED and unknown not in ids:
            return 0
        if batch.encodings is None:  # a tokenizer in Python does not say where its tokens come from
            return row.bases * sum(one == unknown for one in ids) // max(len(ids), 1)
        spans = batch.encodings[place].offsets
        tokens = [Token(one, *span) for one, span in zip(ids, spans, strict=True)]
        start = len(prompt.filled(_fields(row, prompt)).before)
        found = unknown_bases(self._dna(row), tokens, start=start, unknown=unknown)
        self._drops = self._drops or (found > 0 and unknown not in ids)
        return found

    def _encode(self, texts: list[str]) -> "BatchEncoding":
        return _read(self._tokenizer, texts)


class PromptTokens(NamedTuple):
    """Token ids of the text before and after a sequence, special tokens included."""

    before: list[int]
    after: list[int]


class NucleotideTokens:
    """Sequences as one token per base, their prompt as the backbone's tokenizer reads it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, pair_separator: str = ""):
        """Takes the tokenizer and the rows of the backbone's embedding: A has the first id behind them."""
        self._tokenizer, self._first, self._separator = tokenizer, vocabulary, pair_separator

    def __call__(self, rows: Sequence[ExampleText], prompt: Prompt, max_length: int) -> Iterator[Tokens]:
        """The tokens of each example; one that is too long loses its end.

        Raises:
            UserError: where not even one base fits, or the tokenizer does not belong to the backbone.
        """
        frames: dict[tuple[str, ...], PromptTokens] = {}
        between = _plain(self._tokenizer, self._separator) if self._separator else []
        _require_rows(self._tokenizer, between, self._first)
        for row in rows:
            if (frame := frames.get(tuple(row.cells))) is None:
                frame = frames[tuple(row.cells)] = self.frame(prompt.filled(_fields(row, prompt)))
            room = max_length - len(frame.before) - len(frame.after) - (len(between) if row.pair else 0)
            if room < 1:
                raise _no_room(max_length)
            cut = max(row.bases - room, 0)
            read = row.first(room) if cut else row
            parts = [frame.before, self._ids(read.sequence)]
            if read.pair is not None:
                parts += [between, self._ids(read.pair)]
            yield Tokens(np.concatenate([*parts, frame.after]).astype(np.int32), cut)

    def _ids(self, sequence: str) -> np.ndarray:
        return self._first + _PLACE[np.frombuffer(sequence.encode("ascii"), np.uint8)]

    def frame(self, prompt: Prompt) -> PromptTokens:
        """The prompt's tokens; special ones are where the tokenizer puts them around a text.

        The text after the sequence is tokenised behind a letter, since some tokenizers begin every text with
        the mark of a space.

        Raises:
            UserError: where the tokenizer gives tokens that the backbone has no embedding for.
        """
        probe = _read(self._tokenizer, "A", return_special_tokens_mask=True)
        ids, special = probe["input_ids"], probe["special_tokens_mask"]
        if 0 not in special:
            raise _misfit(self._tokenizer, "gives no token for A")
        begin, end = special.index(0), len(special) - special[::-1].index(0)
        before, after, letter, behind = (
            _plain(self._tokenizer, text) for text in (prompt.before, prompt.after, "A", "A" + prompt.after)
        )
        after = behind[len(letter) :] if behind[: len(letter)] == letter else after
        frame = PromptTokens([*ids[:begin], *before], [*after, *ids[end:]])
        _require_rows(self._tokenizer, [*frame.before, *frame.after], self._first)
        return frame


def probe(tokenize: Tokenize, prompt: Prompt) -> list[list[int]]:
    """Token ids of each of `PROBES` in a prompt, whose columns hold an x.

    Raises:
        UserError: where the tokenizer cannot read text.
    """
    rows = [ExampleText(dna, None, ("x",) * len(prompt.columns)) for dna in PROBES]
    return [[int(one) for one in tokens.ids] for tokens in tokenize(rows, prompt, MANY)]


def tokens_fingerprint(ids: Sequence[Sequence[int]]) -> str:
    """32 hex digits that change with the tokens of `PROBES`, and with no version of a library."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:32]


def _fields(row: ExampleText, prompt: Prompt) -> dict[str, str]:
    return dict(zip(prompt.columns, row.cells, strict=True)) if row.cells else {}


def letter_ids(tokenizer: "PreTrainedTokenizerBase", *, vocabulary: int) -> list[list[int]]:
    """The backbone's tokens of each of `NUCLEOTIDES`: the letter's own, or those it is spelled with.

    Raises:
        UserError: where there is none for a letter, or one without a row among the embedding's `vocabulary`.
    """
    known = tokenizer.get_vocab()
    found = [[known[letter]] if letter in known else _plain(tokenizer, letter) for letter in NUCLEOTIDES]
    for letter, ids in zip(NUCLEOTIDES, found, strict=True):
        if not ids:
            raise _misfit(tokenizer, f"gives no token for {letter}")
        _require_rows(tokenizer, ids, vocabulary)
    return found


def _require_rows(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], vocabulary: int) -> None:
    if (largest := max(ids, default=0)) >= vocabulary:
        raise _misfit(tokenizer, f"gives token {largest}, and an embedding of {vocabulary} rows")


def _plain(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a text, special tokens left out."""
    return _read(tokenizer, text, add_special_tokens=False)["input_ids"]


def _read(tokenizer: "PreTrainedTokenizerBase", texts: str | list[str], **how: bool) -> "BatchEncoding":
    try:
        return tokenizer(texts, verbose=False, **how)
    except Exception as error:  # a tokenizer of incomplete files may fail only in use, and with anything
        raise _misfit(tokenizer, f"cannot read the data ({reason_of(error)})") from None


def _no_room(max_length: int) -> UserError:
    rule, fix = "leaves no room for the sequence", "raise it or shorten data.prefix"
    return UserError(Mistake("data.max_length", max_length, rule, fix))


def _misfit(tokenizer: "PreTrainedTokenizerBase", what: str) -> UserError:
    rule, fix = f"has a tokenizer that {what}", "add the tokenizer files that belong to the weights"
    return UserError(Mistake("backbone.path", tokenizer.name_or_path, rule, fix))
