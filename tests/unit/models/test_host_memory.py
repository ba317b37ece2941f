"""Memory of tensors on the CPU: no holes between blocks of varying size; and without a compiler."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lingo_ds.models.ops import host_memory
from lingo_ds.models.ops.host_memory import block_pool

MIB = 1 << 20

LIKE_TRAINING = """
import collections, random, re, torch
from lingo_ds.models.ops import host_memory

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

PREPARE
before, most, chance = anonymous(), 0, random.Random(0)
longer = collections.deque(maxlen=100)  # small, and held beyond a step
for step in range(40):
    tokens, kept = chance.randint(600, 1300), []
    for width in (256, 704, 704, 256) * 12:
        for _ in range(2):  # freed before the next block is kept
            torch.ones(tokens, chance.choice((256, 512, 704)))
        kept.append(torch.ones(tokens, width))
        if chance.random() < 0.2:
            longer.append(torch.ones(20_000))
    most = max(most, anonymous() - before)
print(most)
"""
"""Prints the MiB by which a process grows whose steps keep at most 114 (1300 tokens), and 8 beyond a step."""


VARYING = """
import numpy as np, torch
from lingo_ds.models.ops.host_memory import block_pool

pool, chance, most = block_pool(), np.random.default_rng(0), 0
for _ in range(50):
    rows, kept = int(chance.integers(200, 1300)), []
    for width in chance.integers(200, 5000, size=30):
        kept.append(torch.empty(rows, int(width)))
        passing = torch.empty(rows, int(chance.integers(200, 5000)))
        most = max(most, passing.nbytes + sum(one.nbytes for one in kept))
        del passing
print(pool.mapped_bytes(), most)
"""
"""Prints the bytes that are mapped after steps of varying size, and the most that were in use at one time."""


def printed_by(script: str, **environment: str) -> list[int]:
    """The numbers that a process of its own prints: what a pool has mapped follows from all it has served."""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in ran.stdout.split()]


def grown(prepare: str, **environment: str) -> int:
    (mib,) = printed_by(LIKE_TRAINING.replace("PREPARE", prepare), **environment)
    return mib


@pytest.fixture
def pool():
    found = block_pool()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.mark.usefixtures("pool")
def test_no_more_is_mapped_than_was_in_use():
    """In steps of varying size, whose kept blocks lie between freed ones."""
    mapped, most = printed_by(VARYING)
    assert 0 < mapped <= most * 17 / 16  # a block may be a sixteenth larger than it need be


def test_blocks_that_are_moved_and_resized_keep_apart(pool):
    chance, held = np.random.default_rng(1), {}
    for number in range(600):
        held[number] = torch.full((int(chance.integers(1, 400_000)),), float(number))
        if len(held) > 20:
            held.pop(int(chance.choice(list(held))))
    assert all(bool((tensor == number).all()) for number, tensor in held.items())
    grown = torch.arange(3 * MIB).clone().resize_(5 * MIB)
    assert torch.equal(grown[: 3 * MIB], torch.arange(3 * MIB))


def test_threads_share_it(pool):
    def work(number: int) -> bool:
        chance, right = np.random.default_rng(number), True
        for _ in range(200):
            one = torch.full((int(chance.integers(1, 300_000)),), number)
            right &= bool((one == number).all())
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


def test_a_request_that_no_memory_holds_is_an_error_and_the_next_one_is_served(pool):
    kept = torch.ones(MIB)
    del kept
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate"):
        torch.empty(1 << 50, dtype=torch.uint8)
    assert torch.ones(MIB).sum() == MIB


def test_a_process_grows_by_what_it_keeps(pool):
    assert grown("host_memory.keep_no_holes(0)") < 140


@pytest.mark.parametrize(("layer_mib", "mapped"), [(64, True), (1, False)])
def test_without_a_compiler_blocks_of_large_models_are_mapped(layer_mib, mapped, tmp_path):
    """The mark: a freed block below the last one kept goes back to the system where it was mapped."""
    script = f"host_memory.keep_no_holes({layer_mib} * 2**20)"
    script += (
        "; del host_memory; torch.ones(6 * 2**20).sum(); held = [torch.ones(2**19) for _ in range(100)]; "
        "full = anonymous(); held = held[-1:]; print(full - anonymous()); raise SystemExit"
    )
    freed = grown(script, CXX="false", LINGO_DS_CACHE=str(tmp_path))
    assert (freed > 150) is mapped


def test_that_it_could_not_be_compiled_is_logged(tmp_path, monkeypatch, warnings):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path))
    assert host_memory.block_pool.__wrapped__() is None
    (warning,) = warnings
    assert "glibc's heap" in warning and "could not be compiled" in warning
