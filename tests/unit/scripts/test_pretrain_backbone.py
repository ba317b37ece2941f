"""The script that made the embedded backbone: what it reads, and that a stopped training loses nothing."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scripts import english_text, pretrain_backbone
from scripts.backbone_card import Settings
from scripts.pretrain_backbone import Text, Training

RST = """\
Title
=====

.. note:: directives are no prose, however long their words go on and on and on and on and on.

The :func:`~os.path.join` function puts one or more path segments together, as *everyone* knows by now.

>>> join("a", "b") and more of code that is longer than sixty characters in its line

Short one.
"""
POD = """\
=head1 NAME

The B<print> function takes a list of I<values> and writes them, see L<perlfunc|the functions>, to a file.

    my $code = "is verbatim, however long it may be, and it may be very long indeed, and more so";
"""
GLOSS = (
    "00001740 03 n 02 physical_entity 0 entity 0 003 ~ 00001930 n 0000 "
    "| that which is perceived or known to have its own distinct existence\n"
)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A machine that has a few words of each collection."""
    files = {
        "doc/python3.11/html/_sources/a.rst.txt": RST,
        "perl/5.36/pod/print.pod": POD,
        "wordnet/data.noun": "  1 a licence's line | with a bar\n" + GLOSS,
        "dictd/jargon.dict.dz": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(english_text, "ROOT", tmp_path)
    return tmp_path


def lines(package):
    collection = next(one for one in english_text.COLLECTIONS if one.package == package)
    return [line for document in english_text.documents(collection) for line in document.text.splitlines()]


def test_prose_is_taken_and_markup_and_code_are_left(installed):
    assert lines("python3.11-doc") == [
        "The os.path.join function puts one or more path segments together, as everyone knows by now."
    ]
    assert lines("perl-doc") == [
        "The print function takes a list of values and writes them, see perlfunc, to a file."
    ]
    assert lines("wordnet-base") == [
        "physical entity, entity: that which is perceived or known to have its own distinct existence."
    ]


def test_a_file_found_by_two_names_is_read_once(installed):
    (installed / "doc/python3").symlink_to(installed / "doc/python3.11")
    assert len(lines("python3.11-doc")) == 1


def test_a_missing_collection_is_named(installed):
    with pytest.raises(SystemExit, match="dict-jargon: is not installed"):
        Text()


class Letters(Text):
    """Text that needs no installation."""

    def __init__(self):
        letters = np.random.default_rng(0).integers(4, 60, 40_000).astype(np.uint8)
        self.train, self.held_out, self._first = letters[:36_000], letters[36_000:], 1


SMALL = Settings(tokens=6 * 128, batch=128, short=16, long=32, short_share=0.5, warmup=2)


def test_windows_begin_with_the_first_token_and_grow():
    text = Letters()
    assert [text.batch(SMALL, step).shape for step in (1, 3, 4, 6)] == [(8, 16)] * 2 + [(4, 32)] * 2
    assert (text.batch(SMALL, 2)[:, 0] == 1).all()
    assert torch.equal(text.batch(SMALL, 2), text.batch(SMALL, 2))
    assert not torch.equal(text.batch(SMALL, 2), text.batch(SMALL, 3))


def test_the_rate_rises_and_falls_to_a_tenth():
    rates = [SMALL.learning_rate(step) for step in range(1, 7)]
    assert rates[:2] == [SMALL.peak / 2, SMALL.peak]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(SMALL.peak / 10)


def test_a_stopped_training_resumes_as_if_it_had_not_stopped(tmp_path, caplog):
    text = Letters()
    whole = Training(SMALL, tmp_path / "whole")
    losses = [whole.advance(text.batch(SMALL, step)) for step in range(1, 5)]
    first = Training(SMALL, tmp_path / "parts")
    for step in (1, 2):
        first.advance(text.batch(SMALL, step))
    first.save([{"step": 2}])
    second = Training(SMALL, tmp_path / "parts")
    with caplog.at_level(logging.INFO):
        assert second.restore() == [{"step": 2}]
    assert "resumed after step 2" in caplog.text
    assert [second.advance(text.batch(SMALL, step)) for step in (3, 4)] == losses[2:]
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_settings_start_afresh(tmp_path):
    Training(SMALL, tmp_path / "work").save([{"step": 0}])
    other = Training(Settings(tokens=999), tmp_path / "work")
    assert other.restore() == [] and other.step == 0


def test_what_is_written_is_half_as_large_and_reads_one_token_a_character(tmp_path):
    model = pretrain_backbone.new_model(0)
    count = model.num_parameters()
    pretrain_backbone.write_backbone(model, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(value.numel() for value in weights.values()) == count
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
