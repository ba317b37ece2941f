"""Strategies that all kinds share: odd values, damaged bytes, edited JSON and safetensors."""

import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.harness import SPECIAL, json_bytes

PATHS = (
    "",
    ".",
    "..",
    "../../x",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/null",
    "/dev/null/x",
    "~",
    "/proc/self/mem",
    "~root/x",
    "a\0b",
    "a\nb",
    "x" * 300,
    "x/" * 2000,
    "builtin:tiny",
    "builtin:../x",
    "builtin:",
    "some-owner/some-model",
    "no_such",
    "http://127.0.0.1/x",
    "file:///etc/passwd",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egpj",
    "\ud800",
    "\uff46\uff55\uff4c",
    "C:\\x",
    "-rf",
    "$HOME",
    "{sequence}",
    "%s%n",
    "a.json",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**60,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    -(2**63),
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e9,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
PATTERNS = ("(", "[", "(?P<", ".*", "a{9999999999}", "\\", "(?i)Q", "*", "x" * 10_000, "layers.0", "(?>a)")


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


odd_text = (
    st.sampled_from(PATHS + PATTERNS)
    | st.text(max_size=20)
    | st.builds(lambda piece, times: piece * times, st.text(max_size=3), st.integers(0, 30_000))
)
odd_scalar = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | odd_text
)
odd_value = st.recursive(
    odd_scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
) | st.builds(deep, st.sampled_from((3, 50, 500)))
special = st.sampled_from(SPECIAL)


_BYTES = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\x1b[2J", b"\x85", b"'", b'"')


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes of a good file with a few places cut, doubled or overwritten."""
    data = good
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12) | st.just(len(data)))
        put = draw(
            st.binary(max_size=8) | st.sampled_from(_BYTES) | st.just(data[start : start + length] * 2)
        )
        data = data[:start] + put + data[start + length :]
    return data


garbage = (
    st.binary(max_size=60)
    | st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=4), st.integers(0, 50_000))
    | st.sampled_from((b"", b"\x80\x04\x95", b"\x1f\x8b\x08\0", b"\xff\xfe", b"PK\x03\x04", b"null", b"{}"))
    | st.sampled_from((b"[", b'{"a":', b'{"a":1')).map(lambda piece: piece * 20_000)
    | st.just(5000).map(lambda digits: b'{"a":' + b"1" * digits + b"}")
)


def edit(document: Any, steps: list[int], change: Callable[[dict | list, Any], None]) -> None:
    """Walks into a JSON document by numbers, each modulo what is there, and changes one entry in place."""
    here = document
    for k, step in enumerate(steps):
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        if not keys:
            return
        key = keys[step % len(keys)]
        if k == len(steps) - 1 or not isinstance(here[key], dict | list):
            change(here, key)
            return
        here = here[key]


@st.composite
def edited_document(draw: st.DrawFn, good: bytes, *, values: st.SearchStrategy = odd_value) -> Any:
    """A good JSON document with one to three entries replaced, removed, renamed or added."""
    document = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
        what = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add")))
        value = draw(values) if what != "remove" else None
        name = draw(st.text(max_size=5)) if what == "add" else ""

        def change(here, key, what=what, value=value, name=name) -> None:
            if what == "remove":
                del here[key]
            elif what == "add" and isinstance(here, dict):
                here[name] = value
            else:
                here[key] = value

        edit(document, steps, change)
    return document


def edited_json(good: bytes, *, values: st.SearchStrategy = odd_value) -> st.SearchStrategy[bytes]:
    """A good JSON file, edited."""
    return edited_document(good, values=values).map(json_bytes)


def any_file(good: bytes, *more: st.SearchStrategy) -> st.SearchStrategy[bytes | str]:
    """What may stand in place of a good file."""
    return st.one_of(*more, damaged(good), garbage, special)


# -- safetensors


def split_safetensors(good: bytes) -> tuple[bytes, bytes]:
    """Header (JSON) and data of a file."""
    (length,) = struct.unpack("<Q", good[:8])
    return good[8 : 8 + length], good[8 + length :]


@st.composite
def edited_safetensors(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file whose header claims something else: names, shapes, types, places, its own length."""
    header, data = split_safetensors(good)
    values = odd_value | st.sampled_from(
        ("F16", "BF16", "F64", "I64", "I8", "BOOL", "F8_E4M3", "X", [1], [0])
    )
    if draw(st.booleans()):
        header = draw(edited_json(header, values=values))
    elif draw(st.booleans()):
        names = [name for name in json.loads(header) if name != "__metadata__"]
        old, new = draw(st.sampled_from(names)), draw(st.sampled_from(names) | odd_text)
        header = header.replace(json.dumps(old).encode(), json_bytes(new))
    claim = draw(st.just(len(header)) | st.sampled_from((0, 1, 2**31, 2**60, 2**63, 2**64 - 1)))
    cut = draw(st.just(len(data)) | st.integers(0, len(data)))
    return struct.pack("<Q", claim) + header + data[:cut]


@st.composite
def other_tensors(draw: st.DrawFn, good: bytes) -> bytes:
    """A sound file whose tensors have other shapes, types, values or names."""
    import torch
    from safetensors.torch import load, save

    tensors = load(good)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[name]
        match draw(st.sampled_from(("type", "shape", "rename", "remove", "add", "fill", "scalar"))):
            case "type":
                kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool)
                tensors[name] = tensor.to(draw(st.sampled_from(kinds)))
            case "shape":
                shape = draw(st.lists(st.integers(0, 9), max_size=4))
                tensors[name] = torch.zeros(shape)
            case "rename":
                tensors[draw(odd_text).encode(errors="replace").decode()] = tensors.pop(name)
            case "remove" if len(tensors) > 1:
                del tensors[name]
            case "add":
                tensors[name + draw(st.sampled_from((".x", ".weight", "0", ".\x1b[2J")))] = torch.zeros(2)
            case "fill":
                value = draw(st.sampled_from((float("nan"), float("inf"), 1e38)))
                tensors[name] = torch.full(tensor.shape, value)
            case _:
                tensors[name] = torch.tensor(1.0)
    return save(tensors)
