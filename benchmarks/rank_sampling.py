"""What rank sampling costs beyond forward and backward, and what compaction gives back.

1. A step's all-reduce, finite check, importance, clip, AdamW, masks and audit, against stock PEFT (clip,
   foreach AdamW, `AdaLoraModel.update_and_allocate`) on the same adapters: rank 8, d = 256. Timed are a
   hundred steps with ten changes of the masks and one audit.
2. The same on a Llama shape of 50M parameters beside its forward and backward pass over 2,048 tokens, before
   and after the final mask; and the adapters' own forward and backward there.

One process: `python -m benchmarks.rank_sampling`; two: `deepspeed --num_accelerators 2 --module
benchmarks.rank_sampling` (the rival's gradients are then all-reduced as one bucket, as DDP would).
"""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel

from benchmarks._common import alternate, parser, show
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.packing import Pack
from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.adapters.layout import Site, uniform_layout
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.ops.frozen_map import FrozenMap
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.training.audit import Audit
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.training.optimizer_step import OptimizerStep

RANK, WIDTH, INTERVAL, TOTAL = 8, 256, 10, 1_000_000
STEPS = 100
"""Steps of one timing; as many lie between audits."""

LEARNING_RATE = 1e-9
"""The gradients are made up: a rate that leaves the weights where they are keeps activations ordinary."""

LLAMA_50M = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
}
EXAMPLES, LENGTH = 8, 256


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

    def __init__(self, sites: Sequence[Site], env: DistEnv):
        layout = uniform_layout(sites, rank=RANK, head_shape=(2, sites[0].d_in))
        self.bank = AdapterBank(
            layout, scale=2.0, dtype=torch.float32, device=env.device, scalars=len(Scalar), importance=True
        )
        self.bank.initialize(0)
        config = RunConfig(
            name="benchmark", backbone={"path": "x"}, data={"path": "x"}, rank_sampling={"interval": INTERVAL}
        )
        self._schedule = BudgetSchedule(layout.triplets, layout.triplets // 2, 1, TOTAL // 2, TOTAL, INTERVAL)
        self._update = OptimizerStep(self.bank, config)
        self._sampler = RankSampler(
            self.bank, self._schedule, config.rank_sampling, seed=0, env=env, on_compact=self._update.rebuild
        )
        self._audit = Audit(self.bank, env, "raise")
        self._step = 0
        self._new_gradient()

    def _new_gradient(self) -> None:
        self._gradient = torch.randn_like(self.bank.grad) * 1e-3

    def __call__(self) -> None:
        """A hundred steps with ten changes of the masks and an audit."""
        for _ in range(STEPS):
            self._step += 1
            self.bank.grad.copy_(self._gradient)
            self._update.step(learning_rate=LEARNING_RATE)
            self._sampler.after_step(self._step)
        self._audit(self._step)

    def quieten(self, sites: Iterable[int]) -> None:
        """Takes the gradient from some sites, and lets the scores see it."""
        for k in sites:
            for view in self.bank.layout.site(self._gradient, k):
                view.zero_()
        self()

    def compact(self) -> None:
        """Goes to the final mask."""
        self._step = self._schedule.final_step
        self._sampler.after_step(self._step)
        self._new_gradient()


class Peft:
    """The same adapters in stock PEFT."""

    def __init__(self, sites: int, env: DistEnv):
        model = nn.Module()
        model.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(sites))
        model.forward = lambda x: x
        model.config = {"model_type": "custom"}
        config = AdaLoraConfig(
            init_r=RANK,
            target_r=RANK // 2,
            tinit=1,
            tfinal=TOTAL // 2,
            deltaT=INTERVAL,
            total_step=TOTAL,
            target_modules=[f"layers.{k}" for k in range(sites)],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = get_peft_model(model, config).to(env.device)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, foreach=True)
        self._gradients = [torch.randn_like(p) * 1e-3 for p in self._parameters]
        self._env, self._step = env, 0

    def __call__(self) -> None:
        """A hundred steps with ten allocations."""
        for _ in range(STEPS):
            self._one_step()

    def _one_step(self) -> None:
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


class Llama:
    """Forward and backward of an adapted Llama of 50M random parameters over 2,048 tokens."""

    def __init__(self, env: DistEnv):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            LlamaModel(LlamaConfig(**LLAMA_50M)).save_pretrained(folder)
            spec = read_spec(Path(folder))
            backbone = load_backbone(spec, BackboneOptions(packed=True), dtype=torch.float32, env=env)
        self.parameters = spec.parameters
        self.sites = [Site(name, *shape) for name, shape in spec.linear_maps.items()]
        self.ours = Ours(self.sites, env)
        self._model = AdaptedModel(
            backbone, self.ours.bank, pooling="last", dropout=0.0, shared_inputs=spec.shared_inputs
        )
        tokens, every = EXAMPLES * LENGTH, torch.arange(EXAMPLES)
        ids = torch.randint(LLAMA_50M["vocab_size"], (tokens,))
        self._batch = Pack(ids, 0, (LENGTH,) * EXAMPLES, every % 2, every, torch.ones(EXAMPLES))
        widths = {d for site in self.sites for d in (site.d_out, site.d_in)}
        self._inputs = {d: torch.ones(tokens, d, device=env.device, requires_grad=True) for d in widths}
        self._outputs = {d: torch.ones(tokens, d, device=env.device) for d in widths}

    def __call__(self) -> None:
        """One micro-batch."""
        logits = self._batch.logits(self._model)
        device = logits.device
        cross_entropy_sum(logits, self._batch.labels.to(device), self._batch.weights.to(device)).backward()

    def maps(self) -> None:
        """Only the maps that are adapted now, forward and backward."""
        self._pass_through(lambda module: module)

    def frozen_maps(self) -> None:
        """The same maps without their adapters."""
        self._pass_through(FrozenMap)

    def _pass_through(self, form: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
        adapted = [site for site, rank in zip(self.sites, self.ours.bank.layout.ranks, strict=True) if rank]
        modules = [self._model.backbone.module.get_submodule(site.name) for site in adapted]
        outputs = [
            form(module)(self._inputs[site.d_in]) for module, site in zip(modules, adapted, strict=True)
        ]
        torch.autograd.backward(outputs, [self._outputs[site.d_out] for site in adapted])

    def compact(self) -> None:
        """Goes to the final mask."""
        self.ours.compact()
        self._model.follow_bank()


def against_peft(env: DistEnv, *, quick: bool) -> list[dict]:
    """One row per number of sites."""
    rows = []
    for sites in (42, 224) if quick else (42, 224, 448):
        ours = Ours([Site(f"layers.{k}", WIDTH, WIDTH) for k in range(sites)], env)
        peft = Peft(sites, env)
        seconds = alternate({"ours": ours, "rival": peft}, repeats=1 if quick else 3, warmup=1)
        calls = {}
        for name, steps in (("ours", ours), ("rival", peft)):
            with CountOps() as count:
                steps()
            calls[name] = count.calls / STEPS
        rows.append(
            {
                "processes": env.world_size,
                "sites": sites,
                "entries": ours.bank.layout.adapter_size,
                "unit": "ms a step",
                "ours": seconds["ours"] / STEPS * 1e3,
                "rival": seconds["rival"] / STEPS * 1e3,
                "ratio": seconds["rival"] / seconds["ours"],
                "operator calls, ours": calls["ours"],
                "operator calls, rival": calls["rival"],
            }
        )
    return rows


def beside_a_llama(env: DistEnv, *, quick: bool) -> list[dict]:
    """One row before the final mask, one after, and one after a final mask that leaves half of the sites."""
    llama, rows = Llama(env), []
    for masks in ("sampled", "final", "final, half of the sites"):
        if masks == "final, half of the sites":
            llama = Llama(env)
            llama.ours.quieten(range(len(llama.sites) // 2))
        if masks != "sampled":
            llama.compact()
        runs = {"pass": llama, "beyond": llama.ours, "maps": llama.maps, "frozen": llama.frozen_maps}
        seconds = alternate(runs, repeats=2 if quick else 5, warmup=1)
        beyond = seconds["beyond"] / STEPS
        layout = llama.ours.bank.layout
        rows.append(
            {
                "processes": env.world_size,
                "masks": masks,
                "triplets stored": layout.triplets,
                "adapted sites": sum(rank > 0 for rank in layout.ranks),
                "forward and backward, ms": seconds["pass"] * 1e3,
                "of it adapters, ms": (seconds["maps"] - seconds["frozen"]) * 1e3,
                "beyond, ms": beyond * 1e3,
                "beyond, share of the step": beyond / (seconds["pass"] + beyond),
            }
        )
    return rows


def main() -> None:
    args, env = parser(__doc__).parse_args(), process_group.detect()
    torch.set_num_threads(1)
    if env.world_size > 1:
        process_group.start(env)
    tables = {
        "a step beyond forward and backward, against PEFT's AdaLoRA": against_peft(env, quick=args.quick),
        "beside a Llama of 50M parameters, 2,048 tokens a process": beside_a_llama(env, quick=args.quick),
    }
    if env.is_main:
        show(tables, json_path=args.json)
    process_group.stop()


if __name__ == "__main__":
    main()
