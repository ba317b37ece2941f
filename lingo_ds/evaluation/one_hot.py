"""An adapter as a `torch.nn.Module` that reads one-hot DNA, as sequence-analysis tools expect it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lingo_ds.data.task import Task
from lingo_ds.data.tokenization import NUCLEOTIDES, PromptTokens
from lingo_ds.evaluation.answers import mean_of_two
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.planning.memory import ForwardPlan
from lingo_ds.utils.errors import Mistake, UserError

LETTERS = np.array(list(NUCLEOTIDES))
"""Letters of the rows of a one-hot array, A C G T, and N for a column that is all zero."""


class OneHotModel(nn.Module):
    """A frozen model from one-hot DNA to logits, or to values in the data's units.

    Attributes:
        task: the task that the adapter was trained for.
        differentiable: whether gradients go to the input.
    """

    differentiable = False

    def __init__(self, task: Task, device: torch.device):
        """Takes the task, and the device of the results."""
        super().__init__()
        self.task = task
        # Tools ask a model's parameters for its device; this one is not computed with.
        self._place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._place.device

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, outputs) fp32: logits of classes or labels; a regression's values.

        Args:
            x: (batch, 4, length), rows in the order A C G T; a column of zeros is N.

        Raises:
            UserError: where `x` has another shape, or is longer than the adapter reads.
        """
        logits = self.logits(x)
        if self.task.kind != "regression":
            return logits
        assert self.task.scale is not None and self.task.mean is not None  # every regression has them
        return logits * logits.new_tensor(self.task.scale) + logits.new_tensor(self.task.mean)

    def logits(self, x: Tensor) -> Tensor:
        """The head's outputs (batch, outputs), which `forward` gives or scales to values."""
        if x.dim() != 3 or x.shape[1] != 4 or 0 in x.shape:
            rule, fix = "is not (batch, 4, length), none of them 0", "give rows A C G T for every position"
            raise UserError(Mistake("x", tuple(x.shape), rule, fix))
        return self._logits(x.to(self.device))

    def _logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class NucleotideModel(OneHotModel):
    """An adapter on nucleotide tokens: one-hot columns weigh the learned embeddings, and are differentiable.

    What a column lacks to a sum of 1 is N's: the model of an all-zero input reads N at every position.
    """

    differentiable = True

    def __init__(
        self,
        model: AdaptedModel,
        *,
        frame: PromptTokens,
        task: Task,
        plan: ForwardPlan,
        average_strands: bool,
    ):
        """Takes a loaded model.

        Args:
            model: backbone and adapter.
            frame: token ids of the prompt before and after the DNA.
            task: the task that the adapter was trained for.
            plan: the size of a forward.
            average_strands: whether answers are the means over both strands.
        """
        super().__init__(task, model.bank.device)
        self._model: Any = model
        self._frame, self._plan, self._average_strands = frame, plan, average_strands

    def _logits(self, x: Tensor) -> Tensor:
        tokens = len(self._frame.before) + x.shape[2] + len(self._frame.after)
        if tokens > self.task.max_length:
            room = x.shape[2] - (tokens - self.task.max_length)
            rule = f"is longer than the {room} bases that the adapter reads"
            raise UserError(Mistake("x", f"{x.shape[2]} bases", rule, "cut it to shorter windows"))
        self._model.backbone.train(False)
        parts = [self._of_part(part) for part in x.split(max(1, self._plan.tokens // tokens))]
        if not torch.is_grad_enabled():
            self._model.backbone.release()
        return torch.cat(parts)

    def _of_part(self, x: Tensor) -> Tensor:
        one = self._of_strand(x)
        if not self._average_strands:
            return one
        return mean_of_two(one.double(), self._of_strand(x.flip(1, 2)).double(), self.task).float()

    def _of_strand(self, x: Tensor) -> Tensor:
        """Logits of one strand; the complement of A C G T is the same rows the other way round."""
        (before, after), first = self._frame, self._model.carrier.first_learned
        prompt = [torch.tensor(ids, dtype=torch.long, device=x.device) for ids in (before, after)]
        ids = torch.cat([prompt[0], prompt[1].new_full((x.shape[2],), first), prompt[1]])
        shares = torch.cat([x, 1 - x.sum(1, keepdim=True)], 1).transpose(1, 2)
        shares = nn.functional.pad(shares, (0, 0, len(before), len(after)))
        logits: Tensor = self._model.mixed_logits(ids.repeat(len(x), 1), shares, packed=self._plan.packed)
        return logits


class TextModel(OneHotModel):
    """An adapter on the tokens of text: the likeliest base of each column is read, which has no gradient."""

    def __init__(self, logits: Callable[[Sequence[str]], np.ndarray], *, task: Task, device: torch.device):
        """Takes what computes the logits (n, outputs) of sequences."""
        super().__init__(task, device)
        self._of_sequences = logits

    def _logits(self, x: Tensor) -> Tensor:
        letters = torch.where(x.sum(1) == 0, 4, x.argmax(1)).cpu().numpy()
        found = torch.from_numpy(self._of_sequences(["".join(row) for row in LETTERS[letters]]))
        return _without_gradient(x, found.to(self.device))


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, found: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise no_gradient()


def _without_gradient(x: Tensor, found: Tensor) -> Tensor:
    result: Tensor = _NoGradient.apply(x, found)
    return result


def no_gradient() -> UserError:
    """The mistake of asking an adapter on text for gradients."""
    rule = "reads text, whose tokens span several bases: there is no gradient of a base"
    fix = "use saturation mutagenesis (--method ism), or train with data.tokens=nucleotides"
    return UserError(Mistake("data.tokens", "text", rule, fix))
