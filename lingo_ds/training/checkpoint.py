"""Checkpoints of a few megabytes: the bank and where the run stands.

No backbone byte, no pickle, any world size.
"""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lingo_ds import distributed
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
from lingo_ds.files import write_aside

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Attributes:
        folder: holds one `step-XXXXXXXX` folder per checkpoint.
        keep_last: how many stay.
        meaning: what must be equal for a checkpoint to be taken up: the run's settings, data and backbone.
    """

    folder: Path
    keep_last: int
    meaning: dict[str, Any]

    def save(self, step: int, bank: AdapterBank, progress: dict[str, Any]) -> None:
        """Writes one checkpoint (on one process) and removes the oldest ones beyond `keep_last`."""
        tensors = {name: value.cpu() for name, value in bank.state().items()}
        state = {"step": step, "ranks": bank.layout.ranks, "progress": progress, "meaning": self.meaning}

        def write(aside: Path) -> None:
            aside.mkdir()
            save_file(tensors, aside / "bank.safetensors")
            (aside / "state.json").write_text(json.dumps(state))

        write_aside(self.folder / f"step-{step:08d}", write)
        for old in self._steps()[: -self.keep_last]:
            shutil.rmtree(old)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole."""
        for folder in reversed(self._steps()):
            try:
                json.loads((folder / "state.json").read_text())
                load_file(folder / "bank.safetensors")
            except (OSError, ValueError, SafetensorError) as error:
                logger.warning("%s is damaged (%s); trying an older checkpoint", folder, error)
            else:
                return folder
        return None

    def load(self, path: Path, bank: AdapterBank, env: DistEnv) -> tuple[int, dict[str, Any]]:
        """Puts a checkpoint's tensors into the bank of every process; returns its step and progress.

        Raises:
            UserError: where it was written by a run that means something else.
        """
        state, tensors = None, {}
        with distributed.together(env):
            if env.is_main:
                state, tensors = self._read(path)
        state, names = distributed.share_json([state, list(tensors)], env)
        bank.reshape(state["ranks"], importance="sensitivity" in names)
        with torch.no_grad():
            for name, value in bank.state().items():
                if env.is_main:
                    value.copy_(tensors[name])
                distributed.broadcast_(value)
        bank.masks_from_tensor()
        return state["step"], state["progress"]

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        try:
            state = json.loads((path / "state.json").read_text())
            tensors = load_file(path / "bank.safetensors")
            other = self._other_meaning(path, state["meaning"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            rule = f"is no whole checkpoint ({error})"
            raise UserError(Mistake("checkpoint.resume", path, rule, "name another one")) from None
        if other:
            raise UserError(other)
        return state, tensors

    def _other_meaning(self, path: Path, theirs: dict[str, Any]) -> Mistake | None:
        for field in [*self.meaning, *theirs]:
            if self.meaning.get(field) != theirs.get(field):
                rule = f"the checkpoint {path} was written with {theirs.get(field)!r}"
                fix = "set it back, choose another output_dir, or set checkpoint.resume=never"
                return Mistake(field, self.meaning.get(field), rule, fix)
        return None
