"""Pairs of sequences as one text."""


def join(sequence: str, pair: str | None, separator: str) -> str:
    """The two sequences of a pair with the separator between them; a sequence alone as it is."""
    return sequence if pair is None else sequence + separator + pair


def first_bases(sequence: str, pair: str | None, bases: int) -> tuple[str, str | None]:
    """An example shortened to so many bases; the two of a pair lose the same share of their ends."""
    if pair is None:
        return sequence[:bases], None
    of_pair = bases * len(pair) // (len(sequence) + len(pair))
    return sequence[: bases - of_pair], pair[:of_pair]
