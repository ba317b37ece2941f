"""The data of a run: files -> checked examples -> token ids, each made once per host and cached."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import data_folder
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import Examples, read_examples
from lingo_ds.data.prompt import Prompt, make_prompt
from lingo_ds.data.summary import describe, describe_tokens, remark_on_labels, remark_on_tokens
from lingo_ds.data.task import Task
from lingo_ds.data.token_cache import read_tokenized, tokenized_fingerprint, write_tokenized
from lingo_ds.data.tokenization import NUCLEOTIDES, Tokenize, make_tokenize, probe, tokens_fingerprint
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """How a tokenizer reads DNA in a run's prompt.

    Attributes:
        fingerprint: see `tokens_fingerprint`.
        around: tokens of the text around a sequence, special ones included.
    """

    fingerprint: str
    around: int


class Tokenizer(Protocol):
    """What the data needs of a backbone's tokenizer.

    Attributes:
        fingerprint: changes with what the tokenizer does.
        loaded: the tokenizer itself, which may be loaded at the first access.
    """

    fingerprint: str

    @property
    def loaded(self) -> "PreTrainedTokenizerBase": ...


def learned_tokens(config: RunConfig) -> int:
    """The number of token ids behind the backbone's vocabulary that `data.tokens` adds."""
    return len(NUCLEOTIDES) if config.data.tokens == "nucleotides" else 0


def length_limit(config: RunConfig, *, context: int) -> int:
    """Tokens of the longest example that a run reads; `context` is the backbone's longest input.

    Raises:
        UserError: where `data.max_length` is above the context.
    """
    asked = config.data.max_length or context
    if asked > context:
        rule, fix = f"is above the backbone's context of {context}", "lower it or set null"
        raise UserError(Mistake("data.max_length", asked, rule, fix))
    return asked


def require_tokens(config: RunConfig, tokenizer: Tokenizer, *, vocabulary: int, cache: Path) -> Reading:
    """Checks, once for a tokenizer and a prompt, that it reads DNA, and has no token without an embedding.

    Args:
        config: of the run.
        tokenizer: of the backbone.
        vocabulary: rows of the backbone's input embedding.
        cache: the folder that keeps what was found.

    Raises:
        UserError: where it does not belong to the backbone.
    """
    settings = _tokenize_settings(config, vocabulary=vocabulary, max_length=0)
    asked = [tokenizer.fingerprint, vocabulary, settings, Reading._fields]
    kept = cache / "probes" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
    if kept.exists():
        return Reading(*json.loads(kept.read_text()))
    ids = probe(_make_tokenize(config, tokenizer, vocabulary=vocabulary), _make_prompt(config))
    _require_embedded(
        config,
        largest=max(max(one, default=-1) for one in ids),
        shortest=min(map(len, ids)),
        rows=vocabulary + learned_tokens(config),
    )
    found = Reading(tokens_fingerprint(ids), len(ids[0]) - 1)  # the first probe is one base
    atomic_write(kept, lambda aside: aside.write_text(json.dumps(found)))
    return found


def _make_tokenize(config: RunConfig, tokenizer: Tokenizer, *, vocabulary: int) -> Tokenize:
    data = config.data
    return make_tokenize(
        data.tokens, tokenizer.loaded, vocabulary=vocabulary, pair_separator=data.pair_separator
    )


def _make_prompt(config: RunConfig) -> Prompt:
    return make_prompt(config.data.prefix, domain=config.data.domain)


def tokenized_data(
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    vocabulary: int,
    max_length: int,
    cache: Path,
    env: DistEnv,
) -> TokenizedData:
    """The token ids of a run's data; call it on all processes.

    Args:
        config: of the run.
        tokenizer: of the backbone.
        vocabulary: rows of the backbone's input embedding.
        max_length: tokens of the longest example, see `length_limit`.
        cache: the folder that keeps examples and token ids.
        env: this process.

    Raises:
        UserError: for mistakes in the data, or where it does not fit the tokenizer.
    """
    examples = _convert_once_per_host(config, cache=cache, env=env)
    settings = _tokenize_settings(config, vocabulary=vocabulary, max_length=max_length)
    fingerprint = tokenized_fingerprint(examples, tokenizer=tokenizer.fingerprint, settings=settings)
    entry = cache / "tokenized" / fingerprint

    def tokenize() -> None:
        if not entry.exists():
            rows = read_examples(examples)
            _check_strands(config, rows)
            _tokenize(entry, rows, config, tokenizer, vocabulary=vocabulary, max_length=max_length)

    agreement.run_once_per_host(tokenize, env)
    data = replace(read_tokenized(entry), examples=examples)
    rows = vocabulary + learned_tokens(config)
    _require_embedded(config, largest=data.largest_id, shortest=data.shortest, rows=rows)
    return data


def labelled_examples(config: RunConfig, *, cache: Path) -> Examples:
    """The checked examples of a run without any token ids, for one process alone.

    Raises:
        UserError: for mistakes in the data.
    """
    examples = read_examples(_convert(config, cache))
    _check_strands(config, examples)
    return examples


def _convert_once_per_host(config: RunConfig, *, cache: Path, env: DistEnv) -> Path:
    """The cache entry of the run's examples: one process of each host makes it, then the others find it."""
    with agreement.errors_raised_on_all(env):
        made = _convert(config, cache) if env.local_rank == 0 else None
    with agreement.errors_raised_on_all(env):
        return made or _convert(config, cache)


def _convert(config: RunConfig, cache: Path) -> Path:
    """The cache entry of the run's examples, made where the cache lacks it."""
    data = config.data
    return convert_once(data, data_folder(data.path, cache), kind=config.task.kind, cache=cache)


def _tokenize_settings(config: RunConfig, *, vocabulary: int, max_length: int) -> dict[str, Any]:
    """What token ids depend on beside examples and tokenizer; its JSON names the cache entry."""
    data = config.data
    settings: dict[str, Any] = {
        "prefix": data.prefix,
        "domain": data.domain,
        "pair_separator": data.pair_separator,
        "max_length": max_length,
        "both_strands": _reads_both_strands(config),
    }
    if learned_tokens(config):
        settings["tokens"] = [data.tokens, NUCLEOTIDES, vocabulary]
    return settings


def _reads_both_strands(config: RunConfig) -> bool:
    return config.data.reverse_complement != "off"


def _check_strands(config: RunConfig, examples: Examples) -> None:
    if _reads_both_strands(config) and examples.pairs:
        rule, fix = "has no meaning for pairs of sequences", "set it to off"
        raise UserError(Mistake("data.reverse_complement", config.data.reverse_complement, rule, fix))


def _tokenize(
    entry: Path,
    examples: Examples,
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    vocabulary: int,
    max_length: int,
) -> None:
    write_tokenized(
        entry,
        examples,
        tokenize=_make_tokenize(config, tokenizer, vocabulary=vocabulary),
        prompt=_make_prompt(config),
        max_length=max_length,
        both_strands=_reads_both_strands(config),
    )


def _require_embedded(config: RunConfig, *, largest: int, shortest: int, rows: int) -> None:
    """Checks that each text has a token and each token an embedding: tokenizer and weights fit.

    Args:
        config: of the run.
        largest: the largest token id.
        shortest: tokens of the shortest text.
        rows: of the embedding.
    """
    problem = None
    if largest >= rows:
        problem = f"has a tokenizer that gives token {largest}, and an embedding of {rows} rows"
    elif not shortest:
        problem = "has a tokenizer that gives no token for some sequence"
    if problem:
        fix = "add the tokenizer files that belong to the weights"
        raise UserError(Mistake("backbone.path", config.backbone.path, problem, fix))


def log_data_summary(data: TokenizedData, task: Task, *, around: int) -> None:
    """Logs rows, outputs and tokens, and warns of what may spoil the result; `around` as in `Reading`."""
    for line in [*describe(data, task), describe_tokens(data, around=around)]:
        logger.info("data: %s", line)
    for remark in remarks_on(data, task):
        logger.warning("%s", remark)


def remarks_on(data: TokenizedData, task: Task) -> Iterator[str]:
    """What may spoil the result."""
    yield from data.remarks
    yield from remark_on_labels(data, task)
    yield from remark_on_tokens(data)
