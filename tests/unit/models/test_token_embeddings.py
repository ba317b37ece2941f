"""One token per base: the ids, and logits and gradients against plain models with a larger embedding."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, XGLMConfig

from lingo_ds.data.batches import Batch, make_batch
from lingo_ds.data.packing import Pack, make_pack
from lingo_ds.data.prompt import Prompt, make_prompt
from lingo_ds.data.tokenization import (
    NUCLEOTIDES,
    ExampleText,
    NucleotideTokens,
    TextTokens,
    letter_ids,
    make_tokenize,
)
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout, Site, uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.families import LEARNS_TOKENS
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.utils.errors import UserError
from tests.unit.data.test_packing import split_of
from tests.unit.models.test_packed_forward import ALONE, CLASSES, CPU, ENCODERS, FAMILIES, VOCABULARY, folders  # noqa: F401
from tests.unit.running import command

PROMPT = Prompt("Domain: toys\nSequence: ", "\nAnnotation:")
NOTHING = Prompt("", "")
SCALE = 2.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    write_backbone(folder)
    return folder


@pytest.fixture(scope="module", params=["tiny", "babyllama_char"])
def by_letters(request, tiny) -> Path:
    """A backbone whose tokenizer gives one token per character."""
    if request.param == "tiny":
        return tiny
    return request.getfixturevalue("shared") / "backbones" / request.param


def ids_of(tokenize: Callable, sequences: list[str], prompt: Prompt, *, most: int = 1000) -> list[list[int]]:
    return [
        [int(k) for k in tokens.ids] for tokens in tokenize(list(map(ExampleText, sequences)), prompt, most)
    ]


# -- ids


@pytest.mark.parametrize("prompt", [PROMPT, NOTHING], ids=["prompt", "alone"])
def test_with_letters_for_bases_it_is_the_text(tiny, prompt: Prompt):
    tokenizer, spec = AutoTokenizer.from_pretrained(tiny), read_spec(tiny)
    first = spec.embedding_shape[0]
    sequences = ["ACGT", "N", "TTTACGN" * 9]
    found = ids_of(NucleotideTokens(tokenizer, first), sequences, prompt)
    letters = dict(enumerate(tokenizer.convert_tokens_to_ids(list(NUCLEOTIDES)), first))
    assert ids_of(TextTokens(tokenizer), sequences, prompt) == [
        [letters.get(k, k) for k in ids] for ids in found
    ]
    assert found[0][-4 - len(prompt.after) : len(found[0]) - len(prompt.after)] == [
        first + k for k in range(4)
    ]


def test_u_is_t_and_every_other_letter_is_n(tiny):
    (found,) = ids_of(
        NucleotideTokens(AutoTokenizer.from_pretrained(tiny), 1000), ["ACGTUNRYSWKMBDHV"], NOTHING
    )
    assert found[1:] == [1000, 1001, 1002, 1003, 1003, *[1004] * 11]


def test_pairs_and_columns_are_read_as_text_reads_them(tiny):
    """With one token a letter both readings have the same length, and the same text around the bases."""
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(tiny), read_spec(tiny).embedding_shape[0]
    prompt = make_prompt("in {cell}: {sequence}.", domain=None)
    rows = [
        ExampleText("ACGT", "TTG", ("liver",)),
        ExampleText("AC", None, ("skin",)),
        ExampleText("A" * 50, "C" * 50, ("skin",)),
    ]
    ours, theirs = (
        list(make_tokenize(how, tokenizer, vocabulary=vocabulary, pair_separator=" | ")(rows, prompt, 40))
        for how in ("nucleotides", "text")
    )
    assert [one.cut for one in ours] == [one.cut for one in theirs] == [0, 0, 74]
    letters = tokenizer.convert_tokens_to_ids(list(NUCLEOTIDES))
    for one, other in zip(ours, theirs, strict=True):
        back = [letters[k - vocabulary] if k >= vocabulary else k for k in map(int, one.ids)]
        assert back == list(other.ids)


def test_a_sequence_too_long_loses_what_text_loses(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sequences = ["ACGT" * 10, "ACG"]
    most = len(ids_of(TextTokens(tokenizer), ["A" * 7], PROMPT)[0])
    ours, theirs = (
        list(make_tokenize(how, tokenizer, vocabulary=99)(list(map(ExampleText, sequences)), PROMPT, most))
        for how in ("nucleotides", "text")
    )
    assert [(len(one.ids), one.cut) for one in ours] == [(len(one.ids), one.cut) for one in theirs]
    assert [one.cut for one in ours] == [33, 0] and len(ours[0].ids) == most
    assert [int(k) - 99 for k in ours[0].ids[-19:-12]] == [0, 1, 2, 3, 0, 1, 2]


def test_a_prompt_that_leaves_no_room_is_refused(tiny):
    tokenize = NucleotideTokens(AutoTokenizer.from_pretrained(tiny), 99)
    full = len(ids_of(tokenize, ["A"], PROMPT)[0])
    assert len(ids_of(tokenize, ["ACGT"], PROMPT, most=full)[0]) == full
    with pytest.raises(UserError, match=f"data.max_length: '{full - 1}': leaves no room"):
        ids_of(tokenize, ["A"], PROMPT, most=full - 1)


def test_text_behind_the_sequence_has_no_mark_of_a_new_text(shared):
    """Llama's tokenizers put one before every text; the suffix is not the beginning of a text."""
    folder = shared / "backbones" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    frame = NucleotideTokens(tokenizer, 512).frame(PROMPT)
    whole = tokenizer("x" + PROMPT.after)["input_ids"]
    assert frame.after == whole[-len(frame.after) :]
    assert (
        tokenizer.decode(frame.before + frame.after, skip_special_tokens=True).strip()
        == PROMPT.before + PROMPT.after
    )
    assert frame.before[0] == tokenizer.bos_token_id


class Wrapping:
    """A tokenizer of single characters that puts 1 before every text and 2 behind it, as BERT's do."""

    name_or_path = "wrapping"

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool, **_more: bool) -> dict:
        ids = [ord(letter) for letter in text]
        wrapped = [1, *ids, 2] if add_special_tokens else ids
        return {"input_ids": wrapped, "special_tokens_mask": [1, *[0] * len(ids), 1]}

    def get_vocab(self) -> dict[str, int]:
        return {"A": 65, "C": 67}


def test_special_tokens_stand_around_the_whole():
    (found,) = ids_of(NucleotideTokens(Wrapping(), 200), ["CA"], Prompt("<", ">!"))
    assert found == [1, ord("<"), 201, 200, ord(">"), ord("!"), 2]


def test_a_letter_without_a_token_is_spelled():
    assert letter_ids(Wrapping(), vocabulary=99) == [[65], [67], [71], [84], [78]]


@pytest.mark.parametrize(
    ("vocabulary", "use"),
    [
        (84, lambda tokenizer, rows: letter_ids(tokenizer, vocabulary=rows)),
        (60, lambda tokenizer, rows: ids_of(NucleotideTokens(tokenizer, rows), ["A"], Prompt("<", ">"))),
    ],
    ids=["letters", "prompt"],
)
def test_a_tokenizer_beyond_the_embedding_is_refused(vocabulary: int, use: Callable):
    with pytest.raises(UserError, match=f"gives token (84|62), and an embedding of {vocabulary} rows"):
        use(Wrapping(), vocabulary)


# -- logits and gradients


def adapted(
    folder: Path,
    *,
    packed: bool = False,
    learned: bool = True,
    sites: Callable[[list[Site]], list[Site]] = lambda sites: sites,
    rank: int = 4,
    pooling: str = "last",
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AdaptedModel:
    """A model with random adapters and head, alike for every call; learned tokens are the letters' rows."""
    spec = read_spec(folder)
    chosen = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    shape = (len(NUCLEOTIDES), spec.embedding_shape[1]) if learned else (0, 0)
    layout = uniform_layout(
        sites(chosen), rank=rank, head_shape=(CLASSES, spec.output_size), token_shape=shape
    )
    options = BackboneOptions(
        activation_checkpointing=checkpointing, packed=packed, embedding_rows=tuple(letters_of(folder))
    )
    backbone = load_backbone(spec, options, dtype=dtype, env=ALONE)
    bank = AdapterBank(layout, scale=SCALE, dtype=dtype, device=CPU, scalars=5, importance=False)
    bank.initialize(0, tokens=backbone.embedding_rows if learned else None)
    own = layout.size - layout.token_size
    bank.master[:own] = 0.3 * torch.randn(own, generator=torch.Generator().manual_seed(3))
    bank.refresh()
    return AdaptedModel(backbone, bank, pooling=pooling, dropout=0.0, shared_inputs=spec.shared_inputs)


LETTERS = (11, 90, 7, 23, 64)
"""Ids that stand for A C G T N in models without a tokenizer."""


def letters_of(folder: Path) -> Sequence[int]:
    if not (folder / "tokenizer.json").exists():
        return LETTERS
    ids = letter_ids(AutoTokenizer.from_pretrained(folder), vocabulary=10**6)
    return [one for (one,) in ids]


def examples_of(first: int) -> list[list[int]]:
    """Ids of sequences between a common beginning of text and a common end; `first` is that of A."""
    draw = np.random.default_rng(7)
    before, after = draw.integers(30, 60, 6).tolist(), draw.integers(30, 60, 3).tolist()
    bases = [draw.integers(first, first + 5, length).tolist() for length in (12, 5, 12, 20, 1)]
    return [before + own + after for own in bases]


def batches(examples: list[list[int]], *, share_prefix: bool) -> tuple[Batch, Pack]:
    split, rows, ones = split_of(examples), np.arange(len(examples)), np.ones(len(examples))
    pack = make_pack(split, rows, ones, share_prefix=share_prefix)
    assert (pack.prefix >= 6) == share_prefix
    return make_batch(split, rows, ones), pack


def backward(model: AdaptedModel, batch: Batch | Pack) -> tuple[Tensor, Tensor]:
    """Logits by row, and the gradient of the whole bank."""
    model.backbone.train()
    model.bank.zero_grad()
    logits = batch.logits(model)
    cross_entropy_sum(logits, batch.labels, batch.weights).backward()
    model.bank.collect_grad()
    model.bank.finish_grad()
    return logits.detach()[batch.rows.argsort()], model.bank.grad.clone()


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_started_from_the_letters_it_computes_what_text_does(by_letters, packed: bool):
    """To the last bit, with the prompt's tokens and N among the bases."""
    tokenizer, vocabulary = (
        AutoTokenizer.from_pretrained(by_letters),
        read_spec(by_letters).embedding_shape[0],
    )
    sequences, logits = ["ACGTNACC", "TTG", "GATTACAGATTACA"], []
    for how in ("text", "nucleotides"):
        tokenize = make_tokenize(how, tokenizer, vocabulary=vocabulary)
        examples = ids_of(tokenize, sequences, PROMPT)
        batch = batches(examples, share_prefix=True)[packed]
        model = adapted(by_letters, packed=packed, learned=how == "nucleotides")
        logits.append(backward(model, batch)[0])
        assert (max(map(max, examples)) >= vocabulary) == (how == "nucleotides")
    assert torch.equal(*logits)
    assert logits[0].std() > 0.01


def plain_result(
    folder: Path, layout: BankLayout, master: Tensor, examples: list[list[int]], pooling: str
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of everything that learns, by transformers and autograd, one example a time.

    The plain model's embedding matrix is five rows longer, and learns as a whole.
    """
    model = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
    embedding = model.get_input_embeddings()
    whole = torch.cat([embedding.weight, layout.tokens(master)]).requires_grad_()
    by = getattr(embedding, "embed_scale", 1.0)  # Gemma's
    embedding.forward = lambda ids: F.embedding(ids, whole) * by
    named = [[t.clone().requires_grad_() for t in layout.site(master, k)] for k in range(len(layout.sites))]
    head = layout.head(master).clone().requires_grad_()

    def add(_module: nn.Module, args: tuple[Tensor], output: Tensor, *, adapter: list[Tensor]) -> Tensor:
        p, lam, q = adapter
        return output + SCALE * (args[0] @ q.T @ torch.diag(lam) @ p)

    for site, adapter in zip(layout.sites, named, strict=True):
        model.get_submodule(site.name).register_forward_hook(partial(add, adapter=adapter))
    pools = {
        "last": lambda hidden: hidden[-1],
        "first": lambda hidden: hidden[0],
        "mean": lambda h: h.mean(0),
    }
    rows = [
        pools[pooling](
            model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long())[0][0]
        )
        for ids in examples
    ]
    logits = torch.stack(rows) @ head.T
    F.cross_entropy(logits, torch.arange(len(examples)) % 3, reduction="sum").backward()
    expected = torch.zeros(layout.size)
    layout.head(expected).copy_(head.grad)
    layout.tokens(expected).copy_(whole.grad[len(embedding.weight) :])
    for k, adapter in enumerate(named):
        for view, value in zip(layout.site(expected, k), adapter, strict=True):
            view.copy_(value.grad)
    return logits.detach(), expected


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_logits_and_gradients_of_a_plain_model(folders, family: str, pooling: str):  # noqa: F811
    examples = examples_of(VOCABULARY)
    batch, pack = batches(examples, share_prefix=family not in ENCODERS)
    models = {packed: adapted(folders(family), packed=packed, pooling=pooling) for packed in (False, True)}
    bank = models[False].bank
    with torch.no_grad():  # away from the letters' rows
        bank.layout.tokens(bank.master).add_(torch.randn(bank.layout.token_shape))
        models[True].bank.master.copy_(bank.master)
    expected = plain_result(folders(family), bank.layout, bank.master, examples, pooling)
    tokens = bank.layout.tokens(expected[1])
    assert (tokens.norm(dim=1) > 1e-3 * expected[1].norm()).all(), "all five learn"
    for packed, model in models.items():
        model.bank.refresh()
        logits, grad = backward(model, pack if packed else batch)
        assert distance(logits, expected[0]) < 2e-5
        assert distance(grad, expected[1]) < 2e-5
        assert distance(model.bank.layout.tokens(grad), tokens) < 5e-5


def test_every_family_in_the_table_is_tested():
    assert {config.model_type for config in FAMILIES.values()} < LEARNS_TOKENS  # others: test_families


def no_sites(_sites: list[Site]) -> list[Site]:
    return []


def of_the_last_layer(sites: list[Site]) -> list[Site]:
    return [site for site in sites if ".1." in site.name][-1:]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("sites", [no_sites, of_the_last_layer])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_they_learn_below_all_adapters(folders, family: str, sites: Callable, packed: bool):  # noqa: F811
    """Where nothing else needs a gradient from the first layers, or from the backbone at all."""
    examples = examples_of(VOCABULARY)
    model = adapted(folders(family), packed=packed, sites=sites)
    expected = plain_result(folders(family), model.bank.layout, model.bank.master, examples, "last")
    logits, grad = backward(model, batches(examples, share_prefix=True)[packed])
    assert len(model.bank.layout.sites) == (sites is of_the_last_layer)
    assert distance(logits, expected[0]) < 2e-5 and distance(grad, expected[1]) < 2e-5


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputed_activations_give_the_same(folders, family: str, packed: bool):  # noqa: F811
    batch = batches(examples_of(VOCABULARY), share_prefix=True)[packed]
    kept, recomputed = (
        backward(adapted(folders(family), packed=packed, checkpointing=on), batch) for on in (False, True)
    )
    assert torch.equal(kept[0], recomputed[0])
    assert distance(recomputed[1], kept[1]) < 1e-6


def test_the_gradient_is_the_same_at_every_run(folders):  # noqa: F811
    model, (batch, _) = adapted(folders("llama")), batches(examples_of(VOCABULARY), share_prefix=True)
    assert torch.equal(backward(model, batch)[1], backward(model, batch)[1])


def test_in_bf16_rows_are_what_the_backbone_would_look_up(folders):  # noqa: F811
    """A learned row is rounded as the frozen embedding's are."""
    text = [
        [LETTERS[k - VOCABULARY] if k >= VOCABULARY else k for k in ids] for ids in examples_of(VOCABULARY)
    ]
    found = []
    for learned, examples in ((True, examples_of(VOCABULARY)), (False, text)):
        model = adapted(folders("llama"), learned=learned, dtype=torch.bfloat16)
        found.append(backward(model, batches(examples, share_prefix=True)[0])[0])
    assert torch.equal(*found)


def test_in_bf16_the_gradient_reaches_the_fp32_sum(folders):  # noqa: F811
    batch = batches(examples_of(VOCABULARY), share_prefix=True)[0]
    half, full = (adapted(folders("llama"), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    ours, theirs = (model.bank.layout.tokens(backward(model, batch)[1]) for model in (half, full))
    assert ours.dtype == torch.float32
    assert 0 < distance(ours, theirs) < 0.05


# -- the bank


def bank_of(*, seed: int = 0) -> AdapterBank:
    layout = uniform_layout([Site("a", 5, 7), Site("b", 6, 5)], rank=3, head_shape=(2, 5), token_shape=(5, 4))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=1, importance=True)
    bank.initialize(seed, tokens=torch.arange(20.0).view(5, 4))
    return bank


def test_everything_else_starts_as_it_does_without_them():
    bank = bank_of()
    text = uniform_layout(bank.layout.sites, rank=3, head_shape=(2, 5))
    other = AdapterBank(text, scale=1.0, dtype=torch.float32, device=CPU, scalars=1, importance=True)
    other.initialize(0)
    assert torch.equal(bank.master[: text.size], other.master)
    assert torch.equal(bank.layout.tokens(bank.master), torch.arange(20.0).view(5, 4))
    assert torch.equal(bank.compute.tokens.detach(), bank.layout.tokens(bank.master))


def test_masks_and_compaction_leave_them_alone():
    bank, kept = bank_of(), np.array([True, False, True, False, False, True])
    before = bank.layout.tokens(bank.master).clone()
    bank.layout.tokens(bank.exp_avg).fill_(3.0)
    bank.set_mask(kept)
    layout, values = bank.kept_values()
    assert torch.equal(layout.tokens(values), before) and layout.token_shape == (5, 4)
    bank.compact(kept)
    assert torch.equal(bank.compute.tokens.detach(), before)
    assert (bank.layout.tokens(bank.exp_avg) == 3.0).all()
    bank.zero_grad()
    (bank.compute.tokens.sum() * 2).backward()
    assert (bank.layout.tokens(bank.grad) == 2).all()
    assert bank.grad.count_nonzero() == bank.layout.token_size


def test_an_embedding_that_does_more_than_look_up_is_refused_in_words(tmp_path, shared):
    """Before any weight is read; XGLM's scales its rows, and is no family of the table."""
    AutoModel.from_config(
        XGLMConfig(vocab_size=512, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48)
    ).save_pretrained(tmp_path / "xglm")
    AutoTokenizer.from_pretrained(shared / "backbones/stories260k").save_pretrained(tmp_path / "xglm")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: x\nbackbone: {{path: {tmp_path / 'xglm'}}}\n"
        f"data: {{path: 'builtin:promoters', tokens: nucleotides, cache_dir: {tmp_path / 'cache'}}}\n"
    )
    status, shown = command("plan", recipe, tmp_path / "out")
    assert status == 2 and "is not known to work with the embedding of family xglm" in shown
