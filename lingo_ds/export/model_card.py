"""The README.md of an adapter or a merged model: what it is for, how good, and code that loads it."""

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import yaml

from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.tokenization import NUCLEOTIDES, NucleotideTokens, PromptTokens
from lingo_ds.export.adapter_card import QUANTIZED, Card, SavedAdapter
from lingo_ds.models.backbone.families import CLASSIFIERS
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

README = "README.md"

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

STRANDS = (
    " It was evaluated, and predicts in lingo_ds, with the mean of the probabilities of a sequence and of "
    "its reverse complement."
)
EXAMPLES = '("ACGTACGTACGTACGT", "TATAAA")'

HOW_READ = {
    "text": "",
    "nucleotides": "with one token per base, A, C, G, T or N, that has a learned embedding, ",
}

LIMITS = """## Intended use and limits

For research on sequences like those it was trained on; its numbers hold for that data alone.
Not for diagnosis or any decision on a person; longer or other input is not covered by the metrics."""


class CardNotes(NamedTuple):
    """What an adapter does not know of itself.

    Attributes:
        license: of the exported weights, as the hub names it.
        test: metrics on test, of the run that trained it.
        frame: tokens of the text around the DNA, where that is read as nucleotides.
    """

    license: str = "other"
    test: dict[str, float | None] | None = None
    frame: PromptTokens | None = None


def task_frame(
    task: Task, spec: BackboneSpec, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> PromptTokens | None:
    """For `CardNotes`: None where DNA is read as text. Without a `tokenizer` it is the one in the folder."""
    if task.tokens == "text":
        return None
    tokens = NucleotideTokens(tokenizer or read_tokenizer(spec.folder), spec.embedding_shape[0])
    return tokens.frame(make_prompt(task.template, domain=task.domain))


def model_card(
    adapter: SavedAdapter,
    spec: BackboneSpec,
    *,
    form: Form,
    backbone_path: str,
    notes: CardNotes,
    remarks: tuple[str, ...] = (),
) -> str:
    """The whole text of README.md; `remarks` are paragraphs of the format's own."""
    card = adapter.card
    title = f"# {_line(card.task.name)}: {TITLES[form]}"
    front = _front_matter(card, form, backbone_path, notes.license)
    use = "## Use\n\n" + _use(card, spec, form, notes.frame)
    parts = [
        front,
        title,
        _task(card),
        _data(card),
        _metrics(card, notes),
        _ranks(adapter),
        *_quantized(card, form),
        use,
        *remarks,
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card, form: Form, backbone_path: str, licence: str) -> str:
    merged = form in ("classifier", "base")
    fields = {
        "license": licence,
        "base_model": backbone_path,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification",
        "tags": ["genomics", "dna", "lingo_ds", "merged" if merged else form],
    }
    if card.data:
        fields["datasets"] = [card.data.name]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _task(card: Card) -> str:
    task, prompt = card.task, make_prompt(card.task.template, domain=card.task.domain)
    text = prompt.render("{sequence}")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return (
        f"{_what(task)} The model reads\n\n{fence}text\n{text}\n{fence}\n\n"
        f"{HOW_READ[task.tokens]}cut to {task.max_length} tokens inside the sequence, and answers by its "
        f"{card.pooling} "
        f"{'hidden state' if card.pooling == 'mean' else 'token'}."
        + (STRANDS if card.average_strands else "")
    )


def _what(task: Task) -> str:
    """What the outputs are, in a sentence or more."""
    names = f" ({', '.join(map(_line, task.names))})" if task.names else ""
    if task.kind == "regression":
        return (
            f"Predicts {task.outputs} of DNA sequences{names}. The head gives standardised values: an output "
            "o means mean + scale o, with mean and scale of the training rows, as in the code below."
        )
    thresholds = sorted(set(task.thresholds or (0.5,)))
    above = f"{thresholds[0]:.4g}" if len(thresholds) == 1 else "its own threshold in the adapter's task.json"
    if task.kind == "multilabel":
        return (
            f"Says of DNA sequences which of {task.classes} labels are true{names}: those whose probability "
            f"is above {above}."
        )
    decided = f" Class 1 is where its probability is above {above}." if task.thresholds else ""
    classes = f"{task.classes} classes, 0 to {task.classes - 1} ({task.kind})"
    return f"Classifies DNA sequences into {classes}{names}.{decided}"


def _data(card: Card) -> str:
    if not card.data:
        return "## Data\n\nNot recorded."
    rows = ", ".join(f"{number:,} {_line(split)}" for split, number in card.data.rows.items())
    return f"## Data\n\n{_line(card.data.name)}: {rows} rows (fingerprint {_line(card.data.fingerprint)})."


def _metrics(card: Card, notes: CardNotes) -> str:
    splits = {"dev": card.dev, **({"test": notes.test} if notes.test else {})}
    names = dict.fromkeys(name for metrics in splits.values() for name in metrics)
    rows = [f"| metric | {' | '.join(splits)} |", f"|---|{'---|' * len(splits)}"]
    for name in names:
        values = (metrics.get(name) for metrics in splits.values())
        shown = " | ".join("undefined" if value is None else f"{value:.4f}" for value in values)
        rows.append(f"| {_line(name)} | {shown} |")
    table = "\n".join(rows) + "\n\n" if names else ""
    budget = "at" if card.at_budget else "before it had reached"
    return f"## Metrics\n\n{table}After step {card.step:,}, {budget} its rank budget; selected on dev."


def _ranks(adapter: SavedAdapter) -> str:
    by_kind = defaultdict(list)
    for site, rank, _ in adapter.kept():
        by_kind[re.sub(r"^(.*\.)?\d+\.", "", site.name)].append(rank)
    layout = adapter.layout
    lines = [
        f"| {kind} | {len(ranks)} | {min(ranks)} | {sum(ranks) / len(ranks):.2f} | {max(ranks)} |"
        for kind, ranks in by_kind.items()
    ]
    table = "\n".join(["| map | sites | least | mean | most |", "|---|---|---|---|---|", *lines])
    return (
        f"## Ranks\n\n{table if lines else 'The backbone has no adapters: the head alone was trained.'}\n\n"
        f"{layout.triplets:,} triplets in all at sites that kept any, trained from rank {adapter.rank} with "
        f"alpha {adapter.alpha:g}; {layout.size:,} learned parameters, "
        f"{layout.head_size:,} of them the head's{_of_bases(layout.token_size)}."
    )


def _of_bases(entries: int) -> str:
    return f" and {entries:,} the embeddings of A, C, G, T and N" if entries else ""


def _quantized(card: Card, form: Form) -> Iterator[str]:
    """What the backbone was when the adapter was trained, where that is not what its files hold."""
    if (quantization := card.backbone.quantization) == "none":
        return
    now = "Here it is added to the files' own, unquantised weights, on which its answers differ"
    if form in ("adalora", "lora"):
        now = "On the files' own, unquantised weights its answers differ"
    what = f"{quantization} ({QUANTIZED[quantization][0]}) by bitsandbytes"
    yield f"## Backbone\n\nTrained over linear maps that were quantised to {what}. {now}."


def _use(card: Card, spec: BackboneSpec, form: Form, frame: PromptTokens | None) -> str:
    if form in ("adalora", "lora") and spec.model_type not in CLASSIFIERS:
        return (
            f"transformers' classifier for {spec.model_type} has another head than this adapter's, so stock "
            "PEFT cannot load the folder. `lingo-ds export --to merged` writes what transformers loads."
        )
    load = {"classifier": _load_classifier, "base": _load_base}.get(form, _load_adapter)
    read = _read_text(card) if card.task.tokens == "text" else _read_bases(spec, frame)
    code = [*load(card, spec), "", *read, *_run(card, form)]
    return "In this folder:\n\n```python\n" + "\n".join(code) + "\n```"


def _load_adapter(card: Card, spec: BackboneSpec) -> list[str]:
    rows = spec.embedding_shape[0] + len(NUCLEOTIDES)
    name, quantized = "", []
    if (quantization := card.backbone.quantization) != "none":
        settings = f'{QUANTIZED[quantization][1]}, llm_int8_skip_modules=["score"]'
        name, quantized = ", BitsAndBytesConfig", [f"    quantization_config=BitsAndBytesConfig({settings}),"]
    room = f"model.resize_token_embeddings({rows}, mean_resizing=False)  # room for A, C, G, T and N"
    return [
        "import torch",
        "from peft import PeftConfig, PeftModel",
        f"from transformers import AutoModelForSequenceClassification, AutoTokenizer{name}",
        "",
        'folder = "."',
        "backbone = PeftConfig.from_pretrained(folder).base_model_name_or_path",
        'tokenizer = AutoTokenizer.from_pretrained(backbone, padding_side="right")',
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token",
        "model = AutoModelForSequenceClassification.from_pretrained(",
        f"    backbone, num_labels={card.task.classes}, pad_token_id=tokenizer.pad_token_id,",
        *quantized,
        ")",
        *([room] if card.task.tokens == "nucleotides" else []),
        "model = PeftModel.from_pretrained(model, folder).eval()",
    ]


def _load_classifier(card: Card, spec: BackboneSpec) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'folder = "."',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()",
    ]


def _load_base(card: Card, spec: BackboneSpec) -> list[str]:
    without = ", add_pooling_layer=False" if spec.model_type not in CLASSIFIERS else ""
    return [
        "import torch",
        "from safetensors.torch import load_file",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'folder = "."',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = AutoModel.from_pretrained(folder{without}).eval()",
        'head = load_file(f"{folder}/head.safetensors")["score.weight"]',
    ]


def _read_text(card: Card) -> list[str]:
    prompt = make_prompt(card.task.template, domain=card.task.domain)
    before, after = prompt.before, prompt.after
    around = " + ".join(part for part in (before and ascii(before), "dna", after and ascii(after)) if part)
    return [
        f"texts = [{around} for dna in {EXAMPLES}]",
        'tokens = tokenizer(texts, return_tensors="pt", padding=True)',
    ]


def _read_bases(spec: BackboneSpec, frame: PromptTokens | None) -> list[str]:
    assert frame is not None, "notes on an adapter of nucleotides need the prompt's tokens"
    return [
        *textwrap.wrap(f"before = {frame.before}", 100, subsequent_indent="    "),
        *textwrap.wrap(f"after = {frame.after}", 100, subsequent_indent="    "),
        "",
        "",
        "def read(dna):",
        '    """One token per base, behind the vocabulary\'s: U is read as T, and what is no base as N."""',
        f'    places = ["{NUCLEOTIDES}".find(base) % 5 for base in dna.upper().replace("U", "T")]',
        f"    return before + [{spec.embedding_shape[0]} + place for place in places] + after",
        "",
        "",
        f"rows = [read(dna) for dna in {EXAMPLES}]",
        'tokens = tokenizer.pad({"input_ids": rows}, return_tensors="pt")',
    ]


def _run(card: Card, form: Form) -> list[str]:
    inputs = "input_ids=tokens.input_ids, attention_mask=tokens.attention_mask"
    pooled = f"pooled = {POOLED[card.pooling]}"
    if form == "base":
        hidden = f"hidden = model({inputs}).last_hidden_state.float()"
        compute = [hidden, pooled, "logits = pooled @ head.T"]
    elif card.pooling == "last":
        compute = [f"logits = model({inputs}).logits"]
    else:
        hidden = f"hidden = base.base_model({inputs}).last_hidden_state"
        compute = ["base = model.get_base_model()", hidden, pooled, "logits = base.score(pooled)"]
    return [
        "with torch.no_grad():",
        *(f"    {line}" for line in compute),
        *_answers(card.task),
    ]


def _answers(task: Task) -> list[str]:
    if task.kind == "regression":
        mean, scale = list(task.mean), list(task.scale)
        return [f"values = logits * torch.tensor({scale}) + torch.tensor({mean})"]
    return [f"probabilities = logits.{'sigmoid()' if task.kind == 'multilabel' else 'softmax(-1)'}"]


def _line(text: str) -> str:
    """Free text as one line of Markdown that is nothing else."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
