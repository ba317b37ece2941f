"""Trains the embedded backbone: a small causal language model of English, one token a character.

`python -m scripts.pretrain_backbone --output lingo_ds/models/backbone/english` takes about an hour on two CPU
cores and needs the packages that `scripts/english_text.py` lists. The same command again resumes a training
that was stopped. It writes a Hugging Face folder in bf16 with its model card, and the loss curve.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from lingo_ds.models.backbone.builtin import CONTEXT, character_tokenizer, token_ids
from lingo_ds.utils.files import atomic_write
from scripts import english_text
from scripts.backbone_card import Settings, card_text, draw_curve

logger = logging.getLogger(__name__)

HELD_OUT_TOKENS = 1 << 16
"""Tokens that the held-out loss is measured on."""


class Text:
    """All characters as token ids, uint8, each document begun by `<s>`; one document in fifty is held out."""

    def __init__(self) -> None:
        tokenizer, parts = character_tokenizer(), {False: [], True: []}
        self.characters: dict[str, int] = {}
        for collection in english_text.COLLECTIONS:
            found = list(english_text.documents(collection))
            if not found:
                raise SystemExit(f"error: {collection.package}: is not installed: install it with apt-get")
            for document in found:
                parts[document.held_out].append(np.array(tokenizer(document.text)["input_ids"], np.uint8))
            self.characters[collection.package] = sum(len(document.text) for document in found)
        self.train, self.held_out = (np.concatenate(parts[part]) for part in (False, True))
        self._first = tokenizer.bos_token_id

    def batch(self, settings: Settings, step: int) -> Tensor:
        """The windows of a step, (n, window) int64, each begun by `<s>`; depends on (seed, step) alone."""
        width = settings.window(step)
        rng = np.random.Generator(np.random.Philox(key=[settings.seed, step]))
        begins = rng.integers(0, len(self.train) - width, settings.batch // width)
        return self._windows(self.train, begins, width)

    def measured(self) -> Iterator[Tensor]:
        """The held-out windows, eight at a time."""
        begins = np.arange(0, min(len(self.held_out), HELD_OUT_TOKENS) - CONTEXT, CONTEXT)
        for k in range(0, len(begins), 8):
            yield self._windows(self.held_out, begins[k : k + 8], CONTEXT)

    def _windows(self, text: np.ndarray, begins: np.ndarray, width: int) -> Tensor:
        windows = text[begins[:, None] + np.arange(width)].astype(np.int64)
        windows[:, 0] = self._first
        return torch.from_numpy(windows)


def new_model(seed: int) -> LlamaForCausalLM:
    """The model before training: Llama architecture, 1.2 million parameters, tied embeddings."""
    config = LlamaConfig(
        **token_ids(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


class Training:
    """Model, optimizer and step; saved together in one folder, from which a stopped training resumes."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings, self._folder = settings, folder
        self.model = new_model(settings.seed)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=settings.peak, betas=(0.9, 0.95), fused=True)
        self.step, self.seconds = 0, 0.0

    def advance(self, ids: Tensor) -> float:
        """One step; returns its loss in nats per character."""
        began = time.monotonic()
        self.step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(self.model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.seconds += time.monotonic() - began
        return loss.item()

    @torch.no_grad()
    def held_out_loss(self, text: Text) -> float:
        """Nats per character on documents that are never trained on."""
        return float(np.mean([_loss(self.model, ids).item() for ids in text.measured()]))

    def save(self, curve: list[dict[str, float]]) -> None:
        """Writes the checkpoint that `restore` reads, with the curve so far."""

        def write(aside: Path) -> None:
            aside.mkdir()
            tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
            for k, state in self._optimizer.state_dict()["state"].items():
                tensors |= {f"moment.{k}.{name}": value for name, value in state.items()}
            tensors = {name: value.clone() for name, value in tensors.items()}  # tied weights share memory
            save_file(tensors, aside / "state.safetensors")
            about = {"settings": vars(self.settings), "step": self.step, "seconds": self.seconds}
            (aside / "state.json").write_text(json.dumps({**about, "curve": curve}, indent=1))

        atomic_write(self._folder, write)

    def restore(self) -> list[dict[str, float]]:
        """Resumes from the folder's checkpoint if it has the same settings; returns the curve so far."""
        about = self._folder / "state.json"
        if not about.is_file() or (state := json.loads(about.read_text()))["settings"] != vars(self.settings):
            return []
        tensors = load_file(self._folder / "state.safetensors")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        optimizer = self._optimizer.state_dict()
        for name in (name for name in tensors if name.startswith("moment.")):
            _, k, part = name.split(".")
            optimizer["state"].setdefault(int(k), {})[part] = tensors[name]
        self._optimizer.load_state_dict(optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        logger.info("resumed after step %d", self.step)
        return state["curve"]


def _loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def write_backbone(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes weights in bf16, config and tokenizer as a Hugging Face folder, whole or not at all."""

    def write(aside: Path) -> None:
        model.to(torch.bfloat16).save_pretrained(aside)
        character_tokenizer().save_pretrained(aside)

    atomic_write(folder, write)


def main() -> None:
    """Trains or resumes, and writes the backbone, its card and its curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the backbone")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretraining"), help="folder for the checkpoint"
    )
    parser.add_argument("--picture", type=Path, help="PNG file for the loss curve")
    parser.add_argument("--tokens", type=int, default=Settings.tokens, help="tokens to train on, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--untrained", action="store_true", help="write the initial weights, for comparison")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    if given.untrained:
        write_backbone(new_model(given.seed), given.output)
        return
    training, text = Training(Settings(tokens=given.tokens, seed=given.seed), given.work), Text()
    curve = training.restore()
    steps = range(training.step + 1, training.settings.steps + 1)
    recent: list[float] = []
    for step in track(steps, "pretraining", total=training.settings.steps, completed=training.step):
        recent.append(training.advance(text.batch(training.settings, step)))
        if step % 200 == 0 or step == training.settings.steps:
            point = {
                "step": step,
                "tokens": step * training.settings.batch,
                "train": float(np.mean(recent)),
                "held_out": training.held_out_loss(text),
            }
            curve.append(point)
            recent.clear()
            training.save(curve)
            logger.info("step %(step)d: train %(train).4f, held out %(held_out).4f nats per character", point)
    write_backbone(training.model, given.output)
    facts = {"seconds": training.seconds, "parameters": training.model.num_parameters()}
    card = card_text(training.settings, text.characters, curve, config=training.model.config, **facts)
    (given.output / "README.md").write_text(card)
    if given.picture:
        draw_curve(given.picture, curve)


if __name__ == "__main__":
    main()
