"""The data of a run: converted and tokenised once per host, read back by memory map, and checked."""

import logging
from pathlib import Path

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.builtin import data_folder
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import read_examples
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.token_cache import read_tokenized, tokenized_fingerprint, write_tokenized
from lingo_ds.data.tokenization import NUCLEOTIDES, make_tokenize
from lingo_ds.data.tokenized import TokenizedData
from lingo_ds.distributed import agreement
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import CachedTokenizer
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


def learned_tokens(config: RunConfig) -> int:
    """Ids behind the backbone's vocabulary that `data.tokens` adds."""
    return len(NUCLEOTIDES) if config.data.tokens == "nucleotides" else 0


def length_limit(config: RunConfig, spec: BackboneSpec) -> int:
    """Tokens of the longest example.

    Raises:
        UserError: where it is above the backbone's context.
    """
    asked = config.data.max_length or spec.context
    if asked > spec.context:
        raise UserError(
            Mistake(
                "data.max_length",
                asked,
                f"is above the backbone's context of {spec.context}",
                "lower it or set null",
            )
        )
    return asked


def tokenized_data(
    config: RunConfig,
    tokenizer: CachedTokenizer,
    spec: BackboneSpec,
    *,
    cache: Path,
    max_length: int,
    env: DistEnv,
) -> TokenizedData:
    """The run's data as its backbone reads it; call on all processes.

    Raises:
        UserError: for mistakes in the data, or where it does not go with the tokenizer.
    """
    data = config.data

    def converted() -> Path:
        return convert_once(data, data_folder(data.path, cache), kind=config.task.kind, cache=cache)

    made: list[Path] = []
    agreement.run_once_per_host(lambda: made.append(converted()), env)
    with agreement.errors_raised_on_all(env):
        examples = made[0] if made else converted()  # found, as the first process of the host made it
    settings = {
        "prefix": data.prefix, "domain": data.domain, "pair_separator": data.pair_separator,
        "max_length": max_length, "both_strands": (both_strands := data.reverse_complement != "off"),
    }  # fmt: skip
    if learned_tokens(config):
        settings["tokens"] = [data.tokens, NUCLEOTIDES, spec.embedding_shape[0]]
    fingerprint = tokenized_fingerprint(examples, tokenizer=tokenizer.fingerprint, settings=settings)
    entry = cache / "tokenized" / fingerprint

    def tokenise() -> None:
        if not entry.exists():
            rows = read_examples(examples)
            if both_strands and rows.pairs:
                rule = "has no meaning for pairs of sequences"
                fix = "set it to off"
                raise UserError(Mistake("data.reverse_complement", data.reverse_complement, rule, fix))
            prompt = make_prompt(data.prefix, domain=data.domain)
            write_tokenized(
                entry,
                rows,
                tokenize=make_tokenize(
                    data.tokens,
                    tokenizer.loaded,
                    vocabulary=spec.embedding_shape[0],
                    pair_separator=data.pair_separator,
                ),
                prompt=prompt,
                max_length=max_length,
                both_strands=both_strands,
            )

    agreement.run_once_per_host(tokenise, env)
    tokenized = read_tokenized(entry)
    _require_tokens(tokenized, spec, learned=learned_tokens(config))
    return tokenized


def _require_tokens(data: TokenizedData, spec: BackboneSpec, *, learned: int) -> None:
    """The tokenizer must belong to the weights: tokens for every text, a row of the embedding for each."""
    rows = spec.embedding_shape[0] + learned
    problem = None
    if data.largest_id >= rows:
        problem = f"has a tokenizer that gives token {data.largest_id}, and an embedding of {rows} rows"
    elif not data.shortest:
        problem = "has a tokenizer that gives no token for some sequence"
    if problem:
        fix = "add the tokenizer files that belong to the weights"
        raise UserError(Mistake("backbone.path", spec.folder, problem, fix))


def log_data_summary(data: TokenizedData, task: Task) -> None:
    """Logs rows, outputs, and what a user may want to mend."""
    facts = data.facts()
    logger.info("data: %s rows, %s", facts["rows"], task.outputs)
    if data.class_names:
        logger.info("classes: %s", ", ".join(f"{k} {name}" for k, name in enumerate(data.class_names)))
    if any(facts["unknown"].values()):
        logger.info("unknown labels or values, left out of loss and metrics: %s", facts["unknown"])
    if any(data.duplicates.values()):
        logger.warning("the same sequence more than once: %s", data.duplicates)
    if any(facts["truncated"].values()):
        logger.warning("sequences cut to data.max_length: %s", facts["truncated"])
