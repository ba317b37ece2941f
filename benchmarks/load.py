"""Loading a backbone at full size onto two CPU processes: time against a plain read, and memory.

Both sides start with nothing of the files in the page cache (they are evicted), or with `--warm` with as much
of them as fits. The plain read takes the files one after another, in pieces of 16 MiB, into one buffer. Peak
memory is resident anonymous memory, read every few milliseconds from outside; pages of the files that a
process maps belong to the page cache and are not counted. `--parts step` is the real thing: one step of a
run through the launcher.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from benchmarks import _common
from benchmarks.make_backbone import SHAPES, config_of, make
from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.distributed import process_group
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.backbone.backbone import DTYPES, BackboneOptions, load_backbone
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.models.backbone.eight_bit import packed_bytes
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.planning.plan_inputs import gather_processes, model_facts
from lingo_ds.utils.units import GIB

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
PIECE = 1 << 24
"""Bytes of the plain read's buffer."""

TRAINING = {
    "data": {"prefix": "Sequence: {sequence}\nAnnotation:"},
    "adapter": {"rank": 4},
    "rank_sampling": {"mode": "off"},
    "train": {"global_batch_size": 4, "max_steps": 1, "warmup": 0},
}


def read_plainly(files: Sequence[Path]) -> float:
    """Seconds to read the files from beginning to end."""
    buffer = memoryview(bytearray(PIECE))
    start = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def evict(files: Sequence[Path]) -> None:
    """Takes the files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watch(job: subprocess.Popen) -> dict[int, int]:
    """Most resident anonymous bytes of each process of a job until it ends, by process id."""
    peaks: dict[int, int] = {}
    while job.poll() is None:
        for process in _processes(job.pid):
            peaks[process] = max(peaks.get(process, 0), anonymous_bytes(process))
        time.sleep(0.005)
    return peaks


def _processes(parent: int) -> Iterator[int]:
    try:
        yield from (one.pid for one in psutil.Process(parent).children(recursive=True))
    except psutil.NoSuchProcess:
        return


def anonymous_bytes(process: int) -> int:
    """Resident memory of a process that no file is behind (RssAnon); 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def load_here(args: argparse.Namespace) -> None:
    """What each process does: loads its shards and leaves what it saw."""
    broadcasts, broadcast = [], dist.broadcast

    def counted(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
        broadcasts.append(tensor.numel() * tensor.element_size())
        return broadcast(tensor, *given, **named)

    env = process_group.detect()
    process_group.start(env)
    spec = read_spec(args.backbone)
    dtype = DTYPES[args.dtype]
    layout = uniform_layout([], rank=1, head_shape=(2, spec.output_size))
    processes = gather_processes(env)
    facts = model_facts(spec, layout, dtype, processes, quantization="none", eight_bit=args.eight_bit)
    profile = read_profile(ZeroConfig(stage=3, profile=args.profile), env)
    ds_config = facts.deepspeed_config(profile, micro_batch_size=1, dtype=args.dtype, secondary_group=1)
    options = BackboneOptions(packed=facts.packable, ds_config=ds_config, eight_bit=args.eight_bit)
    dist.barrier()
    before = anonymous_bytes(os.getpid())
    dist.broadcast = counted
    start = time.perf_counter()
    backbone = load_backbone(spec, options, dtype=dtype, env=env)
    dist.barrier()
    seconds = time.perf_counter() - start
    dist.broadcast = broadcast
    seen = {
        "process": os.getpid(),
        "seconds": seconds,
        "broadcasts": len(broadcasts),
        "before": before,
        "after": anonymous_bytes(os.getpid()),
        "read": backbone.held_entries() * dtype.itemsize,
        "held": backbone.held_bytes(),
    }
    (args.here / f"process-{env.global_rank}.json").write_text(json.dumps(seen))
    process_group.stop()


def measure_load(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row per process."""
    files = sorted(args.backbone.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    for _ in range(args.repeats):
        prepare_cache(files, warm=args.warm)
        plain = read_plainly(files)
        prepare_cache(files, warm=args.warm)
        script = [str(Path(__file__).with_suffix("").relative_to(ROOT)).replace("/", ".")]
        worker = ["-m", *script, "--here", str(folder), "--backbone", str(args.backbone)]
        how = ["--dtype", args.dtype, "--profile", args.profile, *(["--eight-bit"] if args.eight_bit else [])]
        peaks = launch([*worker, *how], folder)
        seen = [json.loads((folder / f"process-{k}.json").read_text()) for k in range(PROCESSES)]
        read = PROCESSES * seen[0]["read"]  # less than the files where they hold a head, too
        plain *= min(1, read / size)
        for place, one in enumerate(seen):
            yield {
                "backbone": args.backbone.name,
                "GB read": read / 1e9,
                "cache": "warm" if args.warm else "cold",
                "process": place,
                "ours": one["seconds"],
                "rival": plain,
                "ratio": plain / one["seconds"],
                "what": "s to load, s to read as much",
                "half GiB": one["held"] / GIB,
                "peak GiB": peaks[one["process"]] / GIB,
                "beyond its half": (peaks[one["process"]] - one["held"]) / GIB,
                "before loading": one["before"] / GIB,
                "broadcasts": one["broadcasts"],
            }


def prepare_cache(files: Sequence[Path], *, warm: bool) -> None:
    if warm:
        read_plainly(files)
    else:
        evict(files)


def launch(arguments: Sequence[str], folder: Path) -> dict[int, int]:
    """Runs python with these arguments on two CPU processes of DeepSpeed's launcher; see `watch`.

    Raises:
        RuntimeError: with the end of what it said, where it fails.
    """
    launcher = Path(sys.executable).with_name("deepspeed")
    kind = ["--module"] if arguments[0] == "-m" else []
    command = [
        str(launcher),
        "--num_accelerators",
        str(PROCESSES),
        "--master_port",
        str(process_group.free_port()),
        *kind,
        *arguments[len(kind) :],
    ]
    env = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "LINGO_DS_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = folder / "log"
    with log.open("w") as said:
        job = subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT)
        try:
            peaks = watch(job)
        finally:
            job.terminate()
            job.wait()
    if job.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(arguments)} ended with status {job.returncode}:\n{tail}")
    return peaks


def measure_step(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One step of training through launcher and recipe, with evaluation and everything a run writes."""
    write_promoters(folder / "data", seed=0, train=4, dev=2, test=2, length=70)
    recipe = TRAINING | {
        "name": "step",
        "output_dir": str(folder / "runs"),
        "backbone": {
            "path": str(args.backbone),
            "dtype": args.dtype,
            "activation_checkpointing": args.checkpointing,
        },
        "data": TRAINING["data"] | {"path": str(folder / "data")},
        "zero": {"stage": 3, "profile": args.profile, "quantized_weights": args.eight_bit},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))  # YAML, too
    (folder / "recipe.json").rename(folder / "recipe.yaml")
    start = time.perf_counter()
    peaks = launch(["launchers/train.py", "--config", str(folder / "recipe.yaml")], folder)
    seconds = time.perf_counter() - start
    report = json.loads(next((folder / "runs").rglob("report.json")).read_text())
    maps = sum(map(math.prod, read_spec(args.backbone).linear_maps.values())) if args.eight_bit else 0
    rest = report["parameters"]["backbone"] - maps
    half = (rest * DTYPES[args.dtype].itemsize + packed_bytes(maps)) / PROCESSES
    heaviest = sorted(peaks.values())[-PROCESSES:]
    return {
        "backbone": args.backbone.name,
        "profile": args.profile,
        "checkpointing": args.checkpointing,
        "8 bits": args.eight_bit,
        "steps": report["steps"],
        "s of the step": report["throughput"]["seconds"],
        "s from start to end": seconds,
        "trained entries": report["parameters"]["trainable"],
        "half GiB": half / GIB,
        "peak GiB, the two": ", ".join(f"{peak / GIB:.2f}" for peak in heaviest),
        "beyond its half": (heaviest[-1] - half) / GIB,
    }


def _arguments() -> argparse.Namespace:
    parser = _common.parser(__doc__)
    parser.add_argument("--backbone", type=Path, help="folder of `benchmarks.make_backbone` (default: made)")
    parser.add_argument("--shape", choices=[*SHAPES], help="to be made (llama-2-7b; with --quick: tiny)")
    parser.add_argument("--dtype", choices=[*DTYPES], default="bf16")
    parser.add_argument("--profile", default="zero3_cpu", help="of ds_configs")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="with the files in the page cache")
    parser.add_argument("--parts", nargs="+", choices=["load", "step"], default=["load", "step"])
    parser.add_argument("--checkpointing", action="store_true", help="the step computes activations again")
    parser.add_argument("--eight-bit", action="store_true", help="maps are held and gathered in 8 bits")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # a process of a measure
    args = parser.parse_args()
    args.shape = args.shape or ("tiny" if args.quick else "llama-2-7b")
    return args


def main() -> int:
    args = _arguments()
    if args.here:
        load_here(args)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.backbone is None:
            args.backbone = folder / args.shape
            dtype = DTYPES[args.dtype]
            make(args.backbone, config_of(args.shape), dtype=dtype, shard_bytes=5 * 10**9, seed=0)
        tables = {}
        if "load" in args.parts:
            tables["loading"] = list(measure_load(args, folder))
        if "step" in args.parts:
            tables["one step of training"] = [measure_step(args, folder)]
        _common.show(tables, json_path=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
