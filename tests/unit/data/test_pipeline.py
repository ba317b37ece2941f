"""From examples to batches: what is tokenised and cut, and that every example counts once."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.config.data_config import DataConfig
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import MicroBatches, TrainBatches, eval_batches, make_batch
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import read_examples
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.token_cache import read_tokenized, write_tokenized
from lingo_ds.data.tokenization import TextTokens
from lingo_ds.data.tokenized import COUNTS, SCHEMA, TokenizedSplit
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.training.setup import RunSetup, prepare
from lingo_ds.utils.errors import UserError
from tests.first_rows import first_rows

GOOD = "sequence,label\nACGTACGT,0\nTTTTACGT,1\nGGGGACGT,0\n"
TEMPLATE = "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
ALONE = DistEnv(0, 0, 1, 1, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good folder in GUE's layout."""
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text(GOOD)
    return tmp_path


# -- tokens


@pytest.fixture(scope="module")
def tokenizer(shared):
    return read_tokenizer(shared / "backbones/stories260k")


@pytest.fixture
def tokenized(tmp_path, tokenizer):
    """Tokenises sequences as the splits of a new cache entry, and reads it back."""

    def make(sequences: list[str], *, template: str | None = TEMPLATE, max_length: int = 512):
        rows = [f"{sequence},{row % 2}\n" for row, sequence in enumerate(sequences)]
        (tmp_path / "data").mkdir(exist_ok=True)
        for split in ("train", "dev", "test"):
            (tmp_path / "data" / f"{split}.csv").write_text("sequence,label\n" + "".join(rows))
        config, path = DataConfig(path="data"), tmp_path / "data"
        write_tokenized(
            tmp_path / "entry",
            read_examples(convert_once(config, path, kind="multiclass", cache=tmp_path)),
            tokenize=TextTokens(tokenizer),
            prompt=make_prompt(template, domain="human core promoters"),
            max_length=max_length,
        )
        return read_tokenized(tmp_path / "entry")

    return make


def real_sequences(shared: Path, rows: int) -> list[str]:
    lines = (shared / "data/gue/prom_core_tata/train.csv").read_text().splitlines()
    return [line.partition(",")[0] for line in lines[1 : rows + 1]]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_whole_text_is_tokenised(shared, tokenizer, tokenized, template):
    sequences = [*real_sequences(shared, 1100), "A", "ACGTN" * 20]  # more than one batch of texts
    data = tokenized(sequences, template=template)
    before, after = ("Domain: human core promoters\nSequence: ", "\nAnnotation:") if template else ("", "")
    expected = [tokenizer(before + sequence + after)["input_ids"] for sequence in sequences]
    for split in data.splits.values():
        assert [split.tokens(row).tolist() for row in range(len(split))] == expected
        assert split.lengths.tolist() == [len(ids) for ids in expected]
        assert split.labels.tolist() == [row % 2 for row in range(len(sequences))]
        assert split.truncated == 0
    assert data.longest == max(map(len, expected)) and data.classes == 2


def test_a_long_sequence_loses_its_end_and_nothing_else(shared, tokenizer, tokenized):
    sequences = [*real_sequences(shared, 5), "ACGT" * 5, "ACGT" * 100]
    full = [
        tokenizer(f"Domain: human core promoters\nSequence: {s}\nAnnotation:")["input_ids"] for s in sequences
    ]
    limit = len(full[0]) - 10
    data = tokenized(sequences, max_length=limit)
    split = data.splits["train"]
    assert len(full[5]) < limit
    assert data.facts()["truncated"] == {"train": 6, "dev": 6, "test": 6}
    for row, sequence in enumerate(sequences):
        ids = split.tokens(row).tolist()
        if row == 5:
            assert ids == full[5]
            continue
        kept = next(
            n
            for n in range(len(sequence), 0, -1)
            if len(
                tokenizer(f"Domain: human core promoters\nSequence: {sequence[:n]}\nAnnotation:")["input_ids"]
            )
            <= limit
        )  # the longest start that fits, by trying them all
        text = f"Domain: human core promoters\nSequence: {sequence[:kept]}\nAnnotation:"
        assert ids == tokenizer(text)["input_ids"] and len(ids) <= limit


def test_a_sequence_of_just_the_length_is_whole(tokenizer, tokenized):
    sequences = ["ACGT" * 5, "ACGT" * 4]
    length = len(tokenizer(sequences[0])["input_ids"])
    assert tokenized(sequences, template=None, max_length=length).splits["dev"].truncated == 0


@pytest.mark.parametrize("sequence", ["A", "ACGT" * 10])
def test_no_room_for_the_sequence_is_the_users_mistake(tokenizer, tokenized, sequence, tmp_path):
    prefix = len(tokenizer("Domain: human core promoters\nSequence: \nAnnotation:")["input_ids"])
    with pytest.raises(UserError) as caught:
        tokenized([sequence] * 2, max_length=prefix - 1)
    (mistake,) = caught.value.mistakes
    assert (mistake.where, mistake.value) == ("data.max_length", prefix - 1)
    assert not (tmp_path / "entry").exists()


@pytest.mark.parametrize(
    "file, key, value, says",
    [
        (
            "tokenizer.json",
            "model",
            {"type": "BPE", "vocab": {letter: 500 + k for k, letter in enumerate("ACGTN")}, "merges": []},
            "an embedding of 101 rows",
        ),
        ("tokenizer.json", "model", {"type": "WordLevel", "vocab": {"<s>": 1}, "unk_token": "x"}, "UNK"),
        ("tokenizer.json", "model", {"type": "BPE", "vocab": {}, "merges": []}, "no token"),
    ],
)
def test_tokenizer_that_does_not_belong_to_the_weights_is_refused(folder, file, key, value, says):
    backbone = folder / "backbone"
    write_backbone(backbone)
    content = json.loads((backbone / file).read_text()) | {key: value}
    if says == "no token":
        content |= {"post_processor": None, "added_tokens": []}
    (backbone / file).write_text(json.dumps(content))
    config = {
        "name": "x",
        "backbone": {"path": str(backbone)},
        "data": {"path": str(folder), "cache_dir": folder / "cache"},
    }
    with pytest.raises(UserError, match=says) as caught:
        prepare(RunConfig.model_validate(config), ALONE)
    assert caught.value.mistakes[0].where == "backbone.path"


def test_cache_is_used_again_and_follows_what_it_depends_on(shared, tmp_path):
    first_rows(shared / "data/gue/prom_core_tata", tmp_path, {"train": 8, "dev": 4, "test": 4})
    cache = tmp_path / "cache"

    def setup(**data) -> RunSetup:
        config = {
            "name": "x",
            "backbone": {"path": str(shared / "backbones/stories260k")},
            "data": {"path": str(tmp_path), "cache_dir": cache, **data},
            "train": {"max_steps": 100},
        }
        return prepare(RunConfig.model_validate(config), ALONE)

    def state() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*")}

    def entries() -> int:
        return len(os.listdir(cache / "tokenized"))

    first, before = setup(), state()
    again = setup()
    assert state() == before and entries() == 1
    assert again.data.fingerprint == first.data.fingerprint
    assert [again.data.splits["train"].tokens(row).tolist() for row in range(8)] == [
        first.data.splits["train"].tokens(row).tolist() for row in range(8)
    ]
    changed = setup(prefix=TEMPLATE, domain="human")
    assert entries() == 2 and changed.data.longest > first.data.longest
    setup(prefix=TEMPLATE, domain="mouse")
    assert entries() == 3
    assert setup(max_length=50).data.longest == 50
    assert entries() == 4
    with (tmp_path / "train.csv").open("a") as file:
        file.write("ACGT,1\n")
    assert len(setup().data.splits["train"]) == 9
    assert entries() == 5
    shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("cache"))
    setup(path=str(tmp_path / "elsewhere"))
    assert entries() == 5, "the same files in another folder are the same data"


# -- batches


def split_of(lengths: list[int]) -> TokenizedSplit:
    """Rows of given lengths; row r holds the tokens 1000 r + 1, 1000 r + 2, .. and has label r % 3."""
    rows = range(len(lengths))
    table = {
        "input_ids": [[1000 * row + place + 1 for place in range(lengths[row])] for row in rows],
        "label": [row % 3 for row in rows],
        **{name: [0] * len(lengths) for name in COUNTS},
    }
    return TokenizedSplit(pa.table(table, schema=SCHEMA))


def test_a_split_of_several_pieces_is_read_where_it_lies(tmp_path):
    """As Arrow has it when a table was joined or written in parts; nothing is copied."""
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    whole = split_of(lengths)
    pieces = [whole.table.slice(a, b - a) for a, b in ((0, 4), (4, 9), (9, 10))]
    split = TokenizedSplit(pa.concat_tables(pieces))
    assert split.table.column("input_ids").num_chunks > 2
    assert split.lengths.tolist() == lengths
    assert split.largest_id == whole.largest_id
    for row in range(len(lengths)):
        assert split.tokens(row).tolist() == whole.tokens(row).tolist()
    rows = np.array([8, 0, 4, 9, 2])
    assert split.heads(rows, 3).tolist() == whole.heads(rows, 3).tolist()
    column = split.table.column("input_ids")
    last = column.chunks[-1].values.to_numpy()
    assert np.shares_memory(split.tokens(9), last)


def loaders(
    split: TokenizedSplit, *, world: int, batch: int, micro: int, seed: int = 0
) -> list[TrainBatches]:
    """One loader per process, with as many micro-batches as the batch needs."""
    accumulation = math.ceil(math.ceil(batch / world) / micro)
    return [
        TrainBatches(
            split,
            seed=seed,
            batch=batch,
            forwards=MicroBatches(micro, accumulation),
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]


def counted(batches) -> list[int]:
    """Rows of weight 1."""
    return [
        row
        for b in batches
        for row, weight in zip(b.rows.tolist(), b.weights.tolist(), strict=True)
        if weight
    ]


@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 50),
    world=st.integers(1, 5),
    micro=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
@settings(deadline=None, max_examples=60)
def test_an_epoch_holds_every_example_once(rows, batch, world, micro, seed):
    batch = max(batch, world)
    split = split_of([1 + row % 4 for row in range(rows)])
    processes = loaders(split, world=world, batch=batch, micro=micro, seed=seed)
    per_epoch = -(-rows // batch)
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
            shares = [process.at(step) for process in processes]
            assert len({len(share) for share in shares}) == 1, "as many forwards on every process"
            of_step = [row for share in shares for row in counted(share)]
            assert sorted(of_step) == sorted(processes[0].rows_at(step).tolist())
            assert all(1 <= len(part.rows) <= micro for share in shares for part in share)
            assert set(torch.cat([part.weights for share in shares for part in share]).tolist()) <= {0.0, 1.0}
            seen += of_step
        assert sorted(seen) == list(range(rows))


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    batch=st.integers(1, 9),
    world=st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_evaluation_sees_every_example_once_the_longest_first(lengths, batch, world):
    split = split_of(lengths)
    shares = [list(eval_batches(split, batch=batch, rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "as many forwards on every process"
    assert sorted(row for share in shares for row in counted(share)) == list(range(len(lengths)))
    for share in shares:
        seen = [lengths[row] for row in counted(share)]
        assert seen == sorted(seen, reverse=True)
        assert all(len(part.rows) <= batch for part in share)


def test_order_depends_on_seed_and_epoch_only():
    split = split_of([3] * 50)

    def order(epoch: int, *, seed: int = 0, batch: int = 8, world: int = 1, micro: int = 3) -> list[int]:
        (loader, *_) = loaders(split, world=world, batch=batch, micro=micro, seed=seed)
        per_epoch = -(-50 // batch)
        steps = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        return [row for step in steps for row in loader.rows_at(step).tolist()]

    first = order(0)
    assert order(0) == first == order(0, batch=7) == order(0, world=4, micro=1)
    assert order(5, batch=50) == order(5)
    assert len({tuple(order(epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9
    assert first != sorted(first)


def test_going_on_at_a_step_needs_no_steps_before():
    split = split_of([3] * 50)
    (walked,) = loaders(split, world=1, batch=8, micro=8)
    for step in range(1, 30):
        rows = walked.rows_at(step).tolist()
        (fresh,) = loaders(split, world=1, batch=8, micro=8)
        assert fresh.rows_at(step).tolist() == rows
    assert fresh.rows_at(3).tolist() == walked.rows_at(3).tolist()  # and back


def test_the_global_batch_is_the_same_at_any_number_of_processes():
    split = split_of([1 + row % 7 for row in range(50)])
    for step in range(1, 20):
        at_world = {}
        for world in (1, 2, 4):
            shares = [process.at(step) for process in loaders(split, world=world, batch=12, micro=2)]
            at_world[world] = sorted(row for share in shares for row in counted(share))
        assert at_world[1] == at_world[2] == at_world[4]
        assert len(at_world[1]) == (2 if step % 5 == 0 else 12)


def test_padding_and_mask_are_right():
    split = split_of([3, 1, 5, 5])
    batch = make_batch(split, np.array([2, 0, 1]), np.array([1.0, 1.0, 0.0]))
    assert batch.input_ids.tolist() == [[2001, 2002, 2003, 2004, 2005], [1, 2, 3, 0, 0], [1001, 0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.lengths.tolist() == [5, 3, 1]
    assert (batch.labels.tolist(), batch.rows.tolist()) == ([2, 0, 1], [2, 0, 1])
    assert batch.real_tokens == 8, "a filler's tokens do not count"
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    alike = make_batch(split, np.array([2, 3]), np.ones(2))
    assert alike.attention_mask is None and alike.real_tokens == 10


def test_batches_hold_what_was_tokenised(tokenized, tokenizer):
    data = tokenized(["ACGT", "ACGTACGT", "A"], template=None)
    (batch,) = eval_batches(data.splits["test"], batch=8, rank=0, world=1)
    for row, ids, length in zip(batch.rows, batch.input_ids, batch.lengths, strict=True):
        text = ["ACGT", "ACGTACGT", "A"][row]
        assert ids[:length].tolist() == tokenizer(text)["input_ids"]


def test_facts_of_the_data_are_json(tokenized):
    facts = json.loads(json.dumps(tokenized(["ACGT", "ACGT", "TTTT"]).facts()))
    assert facts["rows"] == {"train": 3, "dev": 3, "test": 3}
    assert facts["duplicates"]["train"] == 1
