"""Time of everything in a step beyond forward and backward, against PEFT's AdaLoRA on the same adapters.

Ours: all-reduce, finite check, importance, clip, AdamW, masks, audit. Rival: clip, foreach AdamW,
`AdaLoraModel.update_and_allocate`. Both have rank 8 at every site, d = 256, masks every 10 steps.
One process:
`python benchmarks/rank_sampling.py`; two: `deepspeed --num_accelerators 2 benchmarks/rank_sampling.py`
(the rival's gradients are then all-reduced as one coalesced bucket, as DDP would).
"""

import warnings

import torch
import torch.distributed as dist
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._common import alternate, arguments, show
from lingo_ds import distributed
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import Site, uniform_layout
from lingo_ds.config import RunConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.training.audit import Audit
from lingo_ds.training.update import BankUpdate, Scalar

RANK, WIDTH, INTERVAL, TOTAL = 8, 256, 10, 100_000


class CountOps(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Ours:
    """A bank with its update, sampler and audit."""

    def __init__(self, sites: int, env: DistEnv):
        layout = uniform_layout(
            [Site(f"layers.{k}", WIDTH, WIDTH) for k in range(sites)], rank=RANK, head_shape=(2, WIDTH)
        )
        self.bank = AdapterBank(
            layout, scale=2.0, dtype=torch.float32, device=env.device, scalars=len(Scalar), importance=True
        )
        self.bank.initialize(0)
        settings = {"interval": INTERVAL, "audit_interval": 100}
        config = RunConfig(
            name="benchmark", backbone={"path": "x"}, data={"path": "x"}, rank_sampling=settings
        )
        schedule = BudgetSchedule(sites * RANK, sites * RANK // 2, 1, TOTAL // 2, TOTAL, INTERVAL)
        self._update = BankUpdate(self.bank, config)
        self._sampler = RankSampler(
            self.bank, schedule, config.rank_sampling, seed=0, env=env, on_compact=lambda: None
        )
        self._audit = Audit(self.bank, env, "raise")
        self._gradient = torch.randn_like(self.bank.grad) * 1e-3
        self._step = 0

    def __call__(self) -> None:
        """One step."""
        self._step += 1
        self.bank.grad.copy_(self._gradient)
        self._update.step(learning_rate=1e-3)
        self._sampler.after_step(self._step)
        if self._step % 100 == 0:
            self._audit(self._step)


class Peft:
    """The same adapters in stock PEFT."""

    def __init__(self, sites: int, env: DistEnv):
        model = nn.Module()
        model.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(sites))
        model.forward = lambda x: x
        model.config = {"model_type": "custom"}
        config = AdaLoraConfig(
            init_r=RANK, target_r=RANK // 2, tinit=1, tfinal=TOTAL // 2, deltaT=INTERVAL, total_step=TOTAL,
            target_modules=[f"layers.{k}" for k in range(sites)],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = get_peft_model(model, config).to(env.device)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-3, foreach=True)
        self._gradients = [torch.randn_like(p) * 1e-3 for p in self._parameters]
        self._env, self._step = env, 0

    def __call__(self) -> None:
        """One step."""
        self._step += 1
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient.clone()
        if self._env.world_size > 1:
            flat = torch.cat([p.grad.flatten() for p in self._parameters])
            dist.all_reduce(flat)
            for parameter, part in zip(
                self._parameters, flat.split([p.numel() for p in self._parameters]), strict=True
            ):
                parameter.grad = part.view_as(parameter)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._model.base_model.update_and_allocate(self._step)
        self._optimizer.zero_grad()


def main() -> None:
    args, env = arguments(__doc__), distributed.detect()
    torch.set_num_threads(1)
    if env.world_size > 1:
        distributed.start(env)
    rows = []
    for sites in (42, 224) if args.quick else (42, 224, 448):
        ours, peft = Ours(sites, env), Peft(sites, env)
        seconds = alternate({"ours": ours, "rival": peft}, repeats=20 if args.quick else 50)
        calls = {}
        for name, step in (("ours", ours), ("rival", peft)):
            with CountOps() as count:
                for _ in range(INTERVAL):
                    step()
            calls[name] = count.calls / INTERVAL
        rows.append(
            {
                "measured": "seconds per step beyond forward and backward (median)",
                "processes": env.world_size,
                "sites": sites,
                "parameters": ours.bank.layout.adapter_size,
                "ours": seconds["ours"],
                "rival": seconds["rival"],
                "ratio": seconds["rival"] / seconds["ours"],
                "operator calls, ours": calls["ours"],
                "operator calls, rival": calls["rival"],
            }
        )
    if env.is_main:
        show("rank sampling step: lingo_ds against PEFT AdaLoRA", rows, json_path=args.json)
    distributed.stop()


if __name__ == "__main__":
    main()
