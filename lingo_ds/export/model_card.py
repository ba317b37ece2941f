"""The README.md of an adapter or a merged model: what it is for, how good, and code that loads it.

Its text is the Jinja template beside this module; here are the values that it shows.
"""

import inspect
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.tokenization import NUCLEOTIDES, NucleotideTokens, PromptTokens
from lingo_ds.export.adapter_card import QUANTIZED, Card, SavedAdapter
from lingo_ds.export.hub import is_hub_id
from lingo_ds.models.backbone.families import CLASSIFIERS
from lingo_ds.models.backbone.spec import BackboneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

README = "README.md"

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")

Form = Literal["adalora", "lora", "classifier", "base"]
"""PEFT's two formats; a merged model with its head inside; a merged base model with the head beside it."""

TITLES: dict[Form, str] = {
    "adalora": "an AdaLoRA adapter in PEFT's format",
    "lora": "a LoRA adapter in PEFT's format",
    "classifier": "a merged model with its head in Hugging Face's format",
    "base": "a merged base model in Hugging Face's format; the head is in head.safetensors",
}

POOLED = {
    "last": "hidden[range(len(hidden)), tokens.attention_mask.sum(1) - 1]",
    "mean": "(hidden * tokens.attention_mask[..., None]).sum(1) / tokens.attention_mask.sum(1, keepdim=True)",
    "first": "hidden[:, 0]",
}
"""How the card's code pools the hidden states."""


class CardNotes(NamedTuple):
    """What an adapter does not know of itself.

    Attributes:
        license: license of the exported weights, as the hub names it.
        test: metrics on test, of the run that trained it.
        frame: tokens of the text around the DNA, where that is read as nucleotides.
        pad: a token to pad with that no text of the task ends with; None: the tokenizer has none.
        hub: the hub id under which it is published; None: it is not.
    """

    license: str = "other"
    test: dict[str, float | None] | None = None
    frame: PromptTokens | None = None
    pad: str | None = None
    hub: str | None = None


def task_notes(
    task: Task,
    spec: BackboneSpec,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    license: str = "other",
    test: dict[str, float | None] | None = None,
) -> CardNotes:
    """What the backbone's tokenizer makes of a task, beside a license and metrics on test."""
    prompt, vocabulary = make_prompt(task.template, domain=task.domain), spec.embedding_shape[0]
    frame = None
    if task.tokens == "nucleotides":
        frame = NucleotideTokens(tokenizer, vocabulary).frame(prompt)
        ends = set(frame.after[-1:])
    else:
        ends = {tokenizer(prompt.render(base))["input_ids"][-1] for base in NUCLEOTIDES}
    return CardNotes(license, test, frame, _padding_token(tokenizer, ends, vocabulary=vocabulary))


def _padding_token(tokenizer: "PreTrainedTokenizerBase", ends: set[int], *, vocabulary: int) -> str | None:
    """A token to pad with: transformers' classifiers take the last token that is another one."""
    for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
        number = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if isinstance(number, int) and number not in ends and number < vocabulary:
            return str(token)
    return None


def model_card(
    adapter: SavedAdapter,
    spec: BackboneSpec,
    *,
    form: Form,
    backbone_path: str,
    notes: CardNotes,
    remarks: tuple[str, ...] = (),
) -> str:
    """The whole text of README.md.

    Args:
        adapter: what the folder holds, merged or not.
        spec: shapes of its backbone.
        form: format of the folder.
        backbone_path: how others find the backbone.
        notes: what the adapter does not know of itself.
        remarks: paragraphs of the format's own.
    """
    card, is_peft = adapter.card, form in ("adalora", "lora")
    nucleotides = card.task.tokens == "nucleotides"
    assert notes.frame is not None or not nucleotides, "nucleotides need the prompt's tokens"
    dataset = card.data.name if card.data else None
    if notes.hub:  # which refuses a card whose front matter names anything but hub ids
        dataset = dataset if dataset and is_hub_id(dataset) else None
    data = ModelCardData(
        license=notes.license,
        base_model=backbone_path if not notes.hub or is_hub_id(backbone_path) else None,
        library_name="peft" if is_peft else "transformers",
        pipeline_tag="text-classification",
        tags=["genomics", "dna", "lingo_ds", form if is_peft else "merged"],
        datasets=[dataset] if dataset else None,
    )
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        adapter=adapter,
        ascii=ascii,
        bases=NUCLEOTIDES,
        card=card,
        form=form,
        frame=notes.frame,
        hub=notes.hub,
        has_classifier=spec.model_type in CLASSIFIERS,
        is_peft=is_peft,
        layout=adapter.layout,
        line=_line,
        has_pooler="add_pooling_layer" in inspect.signature(type(spec.skeleton).__init__).parameters,
        nucleotides=nucleotides,
        pad=notes.pad,
        pooled=POOLED[card.pooling],
        quantized=QUANTIZED.get(card.backbone.quantization),
        ranks=_ranks(adapter),
        remarks=remarks,
        spec=spec,
        task=card.task,
        title=TITLES[form],
        vocabulary=spec.embedding_shape[0],
        wrap=_wrap,
        **_prompt(card.task),
        **_outputs(card.task),
        **_metrics(card, notes),
    ).content
    return text + "\n"


def _prompt(task: Task) -> dict[str, Any]:
    """The text around the DNA: as one reads it, in a fence of its own, and as an expression of Python."""
    prompt = make_prompt(task.template, domain=task.domain)
    text, (before, after) = prompt.render("{sequence}"), (prompt.before, prompt.after)
    parts = (before and ascii(before), "dna", after and ascii(after))
    return {
        "prompt": text,
        "fence": "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0)),
        "text_around_dna": " + ".join(filter(None, parts)),
    }


def _outputs(task: Task) -> dict[str, str]:
    """Names of the outputs, and the probability above which one is true."""
    thresholds = sorted(set(task.thresholds or (0.5,)))
    one_for_all = f"{thresholds[0]:.4g}"
    return {
        "names": f" ({', '.join(map(_line, task.names))})" if task.names else "",
        "threshold": one_for_all if len(thresholds) == 1 else "its own threshold in the adapter's task.json",
    }


def _metrics(card: Card, notes: CardNotes) -> dict[str, Any]:
    """The splits, and each metric's value on all of them."""
    splits = {"dev": card.dev, **({"test": notes.test} if notes.test else {})}
    names = dict.fromkeys(name for metrics in splits.values() for name in metrics)
    values = {name: [metrics.get(name) for metrics in splits.values()] for name in names}
    return {"splits": list(splits), "metrics": values}


def _ranks(adapter: SavedAdapter) -> dict[str, list[int]]:
    """Ranks of the sites that kept any, by kind of map."""
    by_kind = defaultdict(list)
    for site, rank, _ in adapter.kept():
        by_kind[re.sub(r"^(.*\.)?\d+\.", "", site.name)].append(rank)
    return dict(by_kind)


def _wrap(code: str) -> str:
    """A long list of numbers on several lines."""
    return textwrap.fill(code, 100, subsequent_indent="    ")


def _line(text: str) -> str:
    """Free text as one line of Markdown that is nothing else."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
