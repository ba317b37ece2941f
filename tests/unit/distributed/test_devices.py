"""Which devices work together, from what their processes tell."""

from lingo_ds.distributed.devices import DeviceFacts, find_mistakes, other_models

LIBRARIES = {"CUDA": "12.8", "nccl": "2.27.3"}


def gpu(rank: int, host: str, *, model: str = "NVIDIA H200", uuid: str = "", **libraries: str) -> DeviceFacts:
    return DeviceFacts(rank, host, "cuda", model, uuid or f"GPU-{rank}", LIBRARIES | libraries)


def cpu(rank: int, host: str) -> DeviceFacts:
    return DeviceFacts(rank, host, "cpu", "", "", {})


def told(*facts: DeviceFacts) -> list[str]:
    return [str(mistake) for mistake in find_mistakes(facts)]


def test_devices_that_are_alike_work_together():
    for facts in ([gpu(rank, f"node{rank // 2}") for rank in range(4)], [cpu(0, "a"), cpu(1, "b")]):
        assert not find_mistakes(facts) and not other_models(facts)


def test_other_libraries_are_named_once_per_host():
    facts = [gpu(0, "a"), gpu(1, "a"), *(gpu(rank, "b", nccl="2.21.5", CUDA="12.4") for rank in (2, 3))]
    assert told(*facts) == [
        f"host b: '{library} {version}': is {LIBRARIES[library]} on a: install the same versions on all hosts"
        for library, version in (("CUDA", "12.4"), ("nccl", "2.21.5"))
    ]


def test_processes_on_one_gpu_are_named():
    assert told(gpu(0, "a"), gpu(1, "b", uuid="GPU-x"), gpu(2, "b", uuid="GPU-x")) == [
        "host b: 'process 1': runs 2 processes and has 1 GPUs: give it as many slots as it has GPUs"
    ]


def test_a_host_without_gpus_is_named():
    assert told(gpu(0, "a"), cpu(1, "b"), cpu(2, "b")) == [
        "host b: 'process 1': computes on cpu, and process 0 (a) on cuda: "
        "give every process a GPU, or set DS_ACCELERATOR=cpu on all hosts"
    ]


def test_other_models_are_one_line_for_each_host():
    old = [gpu(rank, "b", model="NVIDIA A100") for rank in (1, 2)]
    facts = [gpu(0, "a"), *old, gpu(3, "c"), gpu(4, "d", model="Tesla T4")]
    first, second = other_models(facts)
    assert first.startswith("process 1 (b) has a GPU NVIDIA A100, process 0 (a) NVIDIA H200: ")
    assert second.startswith("process 4 (d) has a GPU Tesla T4")
    assert not find_mistakes(facts)
