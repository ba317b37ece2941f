"""What evaluation refuses; its numbers are tested by whole runs, against stock PEFT and scikit-learn."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import make_task
from lingo_ds.data.token_cache import tokenized_split
from lingo_ds.data.tokenization import make_tokenize
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.evaluate import Evaluation, evaluate_split, remark_on_answers
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.utils.errors import UserError


class Diverged:
    """A model whose weights have overflowed."""

    backbone = SimpleNamespace(train=lambda training: None, release=lambda: None)

    def padded_logits(self, input_ids: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full((len(input_ids), 2), torch.nan)


def test_a_run_that_diverged_is_told_its_learning_rate():
    tokenizer = character_tokenizer()
    split = tokenized_split(
        ["ACGT", "TTGACA"],
        [0, 1],
        tokenize=make_tokenize("text", tokenizer, vocabulary=len(tokenizer)),
        prompt=make_prompt(None, domain=None),
        max_length=16,
    ).widest
    recipe = {"name": "r", "backbone": {"path": "b"}, "data": {"path": "d"}, "train": {"learning_rate": 0.5}}
    with pytest.raises(
        UserError, match=r"train\.learning_rate: '0\.5': logits are not finite, training diverged"
    ):
        evaluate_split(
            Diverged(),
            split,
            name="dev",
            task=make_task("r", classes=2, template=None, domain=None, max_length=16),
            config=RunConfig.model_validate(recipe),
            plan=SimpleNamespace(packed=False, eval_batch_size=2),
            env=DistEnv(0, 0, 1, 1, torch.device("cpu")),
        )


TASK = make_task("r", classes=2, template=None, domain=None, max_length=16)


@pytest.mark.parametrize(
    "task, logits, labels, says",
    [
        (TASK, [[2, 1], [3, 1]], [0, 1], "every prediction is class 0"),
        (TASK, [[1, 2], [3, 1]], [0, 1], ""),
        (TASK, [[2, 1], [3, 1]], [0, 0], ""),
        (TASK.with_thresholds((0.1,)), [[2, 1], [3, 2]], [0, 1], "every prediction is class 1"),
        (
            replace(TASK, kind="multilabel"),
            [[-1, -2], [-3, -1]],
            [[0, 1], [np.nan, 1]],
            "that no label is true",
        ),
        (replace(TASK, kind="multilabel"), [[-1, 2], [-3, -1]], [[0, 1], [np.nan, 1]], ""),
    ],
)
def test_answers_that_are_all_the_same_are_said(task, logits, labels, says):
    evaluation = Evaluation({}, np.array(logits, np.float32), {}, task)
    remark = remark_on_answers(evaluation, np.array(labels))
    assert says in remark and bool(remark) == bool(says)
