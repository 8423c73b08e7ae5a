"""What becomes of files by accident, or is made of them on purpose."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fault_checks import tensors

WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    1e308,
    10**400,
    2**63,
    float("nan"),
    float("inf"),
    "x",
    "\x1b[2J\n",
    "\ud800",
]
WRONG += [
    [],
    {},
    [None],
    [[[]]],
    ["x", 1],
    {"x": {"y": [1]}},
    "../../outside/victim",
    "jax:os:abort",
    "__gone__",
    "__twice__",
]
TEXTS = [
    "[]",
    "",
    "null",
    "{",
    "7",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"format": 2, "format": 2}',
    "\xff\xfe",
]
TEXTS += ["\0" * 100, '{"format": 1e999}', '{"format": true}', '{"format": 3}', "NaN", '"' + "x" * 10_000 + '"']
FILES = ("state.safetensors", "state.json", "SHA256SUMS")


def ways(data: Any, path: tuple = ()) -> Iterator[tuple]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from ways(value, (*path, key))


def altered(text: str, chance: random.Random) -> tuple[str, str]:
    """Return JSON with one thing of another kind, gone or twice; and what was done."""
    other = place = copy.deepcopy(json.loads(text))
    way = chance.choice(list(ways(other)))
    wrong = chance.choice(WRONG)
    for key in way[:-1]:
        place = place[key]
    if wrong == "__gone__":
        del place[way[-1]]
    elif wrong == "__twice__":
        key = json.dumps(str(way[-1]))
        return json.dumps(other).replace(f"{key}:", f"{key}: 1, {key}:", 1), "an entry twice"
    else:
        place[way[-1]] = wrong
    return json.dumps(other), "an entry gone" if wrong == "__gone__" else "an entry of another kind"


def flipped(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return bytes with some accident of a disk, and what it was."""
    what = chance.choice(("a bit", "bytes", "cut", "longer", "zeros", "empty", "moved"))
    at = chance.randrange(len(content))
    if what == "a bit":
        changed = bytearray(content)
        changed[at] ^= 1 << chance.randrange(8)
        return bytes(changed), what
    rubbish = chance.randbytes(chance.randint(1, 40))
    rest = content[at + 1 :]
    found = {"bytes": content[:at] + rubbish + rest, "cut": content[:at], "longer": content + rubbish, "empty": b""}
    found |= {"zeros": content[:at] + bytes(len(rest) + 1), "moved": rest + content[: at + 1]}
    return found[what], what


def seal(checkpoint: Path) -> None:
    """Mend the checksums, as somebody would who damages on purpose."""
    names = [name for name in FILES[:2] if (checkpoint / name).exists()]
    lines = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


def retold(checkpoint: Path, chance: random.Random) -> str:
    """Change one array of a checkpoint, in type, shape, name or numbers; return what was done."""
    found = tensors(checkpoint)
    name = chance.choice(sorted(found))
    kind, shape, data = found[name]
    what = chance.choice(("type", "shape", "name", "gone", "more", "not finite", "numbers", "offsets", "header"))
    if what == "type":
        kind = chance.choice(
            [k for k in ("F64", "F32", "BF16", "F16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X9") if k != kind]
        )
        size = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}.get(kind, 1)
        data = bytes(size * max(1, _product(shape)) if _product(shape) else 0)
    elif what == "shape":
        shape = chance.choice([[*shape, 1], [_product(shape)], [*shape[::-1], 0], [2**40], [-1], shape[1:]])
        data = bytes(4 * _product(shape)) if 0 <= _product(shape) < 2**20 else data
    elif what == "not finite":
        words = {"F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff"], "F64": [struct.pack("<d", float("nan"))]}
        word = chance.choice(words.get(kind, [b""]))
        data = word + data[len(word) :]
    elif what == "numbers":
        data = chance.randbytes(len(data))
    found[name] = (kind, shape, data)
    if what in ("name", "gone"):
        moved = found.pop(name)
        found |= (
            {chance.choice(("x", "../../x", name.upper() + "\n", "device.x", "rollout.x")): moved}
            if what == "name"
            else {}
        )
    elif what == "more":
        found[chance.choice(("x", "device.x", "rollout.x", "policy", ""))] = (kind, shape, data)
    header, end = {}, 0
    for key, (its_kind, its_shape, its_data) in found.items():
        header[key] = {"dtype": its_kind, "shape": its_shape, "data_offsets": [end, end + len(its_data)]}
        end += len(its_data)
    if what == "offsets":
        header[name]["data_offsets"] = chance.choice(([0, 2**40], [8, 4], [-1, 3], [0], None, [0, end], ["0", "4"]))
    text = json.dumps(header).encode()
    size = len(text)
    if what == "header":
        text = chance.choice((b"[]", b"{", b"[" * 9999, b"\xff", b'{"a": 1}', text[:-1]))
        size = chance.choice((len(text), 2**62, 0, len(text) + 10**6))
    (checkpoint / FILES[0]).write_bytes(struct.pack("<Q", size) + text + b"".join(d for _, _, d in found.values()))
    return f"array: {what}"


def _product(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
