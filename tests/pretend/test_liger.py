"""liger-kernel's gates and positions on the pretend card, interpreted by Triton: the CPU's losses."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.pretend.runs import some_data, train

pytestmark = pytest.mark.slow  # the interpreter takes each block of each kernel in turn
SHORT = ["backbone.dtype=fp32", "train.max_steps=2", "train.eval_steps=2", "rank_sampling.mode=off"]


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Gives the interpreter (triton 3.9) what it lacks: tensors of plain floats, and libdevice's rsqrt."""
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import rms_norm
    from triton.runtime import interpreter

    of_others = interpreter._implicit_cvt

    def converted(arg: Any) -> Any:
        if not isinstance(arg, float):
            return of_others(arg)
        return tl.tensor(interpreter.TensorHandle(np.array([arg], np.float32), tl.float32), tl.float32)

    patch.setattr(interpreter, "_implicit_cvt", converted)
    patch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))  # looked up where the interpreter has put its own


def train_with_liger(folder: Path) -> dict[str, Any]:
    from liger_kernel.ops import swiglu

    launches, real = [], swiglu.swiglu_forward
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        patch.setattr(swiglu, "swiglu_forward", lambda *args: launches.append(1) or real(*args))
        seen = train(folder / "data", folder / "liger", *SHORT, "backbone.fused_kernels=liger")
    return {**seen, "gates": len(launches)}


def test_losses_are_the_cpus(cards, tmp_path):
    for package in ("liger_kernel", "triton"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    some_data(tmp_path)
    env = {"TRITON_INTERPRET": "1"}
    (seen,) = cards.call(train_with_liger, tmp_path, env=lambda rank: env, timeout=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
        theirs = train(tmp_path / "data", tmp_path / "cpu", *SHORT)["losses"]
    assert seen["gates"] > 2 and len(seen["losses"]) == 2
    assert seen["losses"] == pytest.approx(theirs, rel=1e-3)
