"""The built-in data and backbone of the quickstart: reproducible, balanced, and what their docstrings say."""

import csv
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.utils.errors import UserError

SPLITS = {"train": 1200, "dev": 200, "test": 201}
PROMPT = "Domain: human core promoter\nSequence: ACGTACGT\nAnnotation:"


@pytest.fixture(scope="module")
def promoters(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("promoters") / "made"
    write_promoters(folder, **SPLITS)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "made"
    write_backbone(folder)
    return folder


def rows(folder: Path, split: str) -> list[tuple[str, str]]:
    with (folder / f"{split}.csv").open(newline="") as file:
        header, *body = csv.reader(file)
    assert header == ["sequence", "label"]
    return [(sequence, label) for sequence, label in body]


def share(sequences: list[str], pattern: str, starts: range) -> float:
    """How many of the sequences have the pattern at one of the starts."""
    motif = re.compile(pattern)
    return sum(any(motif.match(s, start) for start in starts) for s in sequences) / len(sequences)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones and those in folders left behind too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_label(folder: Path) -> tuple[list[str], list[str]]:
    everything = [row for split in SPLITS for row in rows(folder, split)]
    return [s for s, label in everything if label == "1"], [s for s, label in everything if label == "0"]


def test_promoters_are_the_same_bytes_for_the_same_seed_only(promoters, tmp_path):
    write_promoters(tmp_path / "again", **SPLITS)
    write_promoters(tmp_path / "other", seed=1, **SPLITS)
    assert set(contents(promoters)) == {"train.csv", "dev.csv", "test.csv"}
    assert contents(tmp_path / "again") == contents(promoters)
    assert all(contents(tmp_path / "other")[file] != data for file, data in contents(promoters).items())


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_balanced_shuffled_dna(promoters, split):
    body = rows(promoters, split)
    labels = "".join(label for _, label in body)
    assert len(body) == SPLITS[split]
    assert labels.count("1") == SPLITS[split] // 2 and labels.count("0") == (SPLITS[split] + 1) // 2
    assert max(map(len, re.findall("0+|1+", labels))) < 25
    assert all(re.fullmatch("[ACGT]{70}", sequence) for sequence, _ in body)


def test_no_sequence_occurs_twice(promoters):
    everything = [sequence for split in SPLITS for sequence, _ in rows(promoters, split)]
    assert len(set(everything)) == sum(SPLITS.values())


@pytest.mark.parametrize("length, tss", [(70, 34), (101, 49)])
def test_motifs_lie_in_place_in_promoters_only(tmp_path, length, tss):
    write_promoters(tmp_path, length=length, **SPLITS)
    promoter, other = by_label(tmp_path)
    in_place = range(tss - 33, tss - 27)
    assert share(promoter, "TATA[AT]A", in_place) > 0.2 > 10 * share(other, "TATA[AT]A", in_place)
    assert share(promoter, "CA", range(tss - 1, tss)) > 0.7 > 4 * share(other, "CA", range(tss - 1, tss))
    initiator = "[CT][CT]A[ACGT][AT][CT][CT]"
    assert share(promoter, initiator, range(tss - 2, tss - 1)) > 0.08
    assert share(other, initiator, range(tss - 2, tss - 1)) < 0.02
    downstream = "[AG]G[AT][CT][ACG]"
    assert share(promoter, downstream, range(tss + 27, tss + 28)) > 0.2
    assert share(other, downstream, range(tss + 27, tss + 28)) < 0.05


def test_negatives_differ_in_place_rather_than_in_composition(promoters):
    promoter, other = by_label(promoters)
    assert share(other, "TATA[AT]A", range(8, 65)) > 0.1
    for bases in ("A", "C", "G", "T", "CG"):
        counts = [
            sum(sequence.count(bases) for sequence in sequences) / len(sequences)
            for sequences in (promoter, other)
        ]
        assert counts[0] == pytest.approx(counts[1], rel=0.15)


def test_impossible_sizes_are_the_users_mistakes_all_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        write_promoters(tmp_path / "none", length=69, test=1)
    assert [mistake.where for mistake in caught.value.mistakes] == ["test", "length"]
    assert not (tmp_path / "none").exists()


def test_backbone_is_the_same_bytes_for_the_same_seed_only(backbone, tmp_path):
    state = torch.random.get_rng_state()
    write_backbone(tmp_path / "again")
    write_backbone(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    made = contents(backbone)
    assert contents(tmp_path / "again") == made
    assert set(made) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    changed = {file for file, data in contents(tmp_path / "other").items() if data != made[file]}
    assert changed == {"model.safetensors"}


def test_a_token_per_character_and_the_text_back(backbone):
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    for text in (PROMPT, "ACGTNacgtn", "  two  spaces\t", "".join(map(chr, range(32, 127)))):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 1 + len(text)
        assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("\xe9", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    specials = tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert len(set(specials)) == 4


def test_backbone_loads_and_tells_the_place_of_a_base(backbone):
    model, tokenizer = AutoModel.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    assert model.num_parameters() == 157_440
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer(["A" + "C" * 69, "C" * 69 + "A", "C" * 70], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(input_ids=ids).last_hidden_state
        again = AutoModel.from_pretrained(backbone).eval()(input_ids=ids).last_hidden_state
    assert states.shape == (3, 71, 64) and torch.isfinite(states).all()
    assert torch.equal(states, again)
    assert (states[0, -1] - states[2, -1]).norm() > 1e-3 * states[2, -1].norm()
