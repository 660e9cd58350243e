"""Make damaged bundles from a seed; each case names the file and the damage.

Some leave the hashes in the manifest as they were; others fix them up, as an attacker would.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.bundle.index_file import HEADER
from retrieval.bundle.manifest import INDEX, LABEL_ENCODER, MANIFEST, MEMORY, NODES, PROJECTION, REQUIRED
from retrieval.bundle.verified_files import describe_file

Draw = np.random.Generator
FILES = (*REQUIRED, PROJECTION, NODES, *MEMORY)


@dataclass(frozen=True)
class Case:
    """A damaged bundle: its kind, the files of which an error must name one, and the function that damages it."""

    kind: str
    files: tuple[str, ...]
    damage: Callable[[Path], object]


def rehash(folder: Path, *names: str) -> None:
    """Update the hashes of changed files in the manifest."""
    content = json.loads((folder / MANIFEST).read_text())
    for name in names:
        content["files"][name] = describe_file(folder / name).model_dump()
    (folder / MANIFEST).write_text(json.dumps(content))


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(draw: Draw, most: int = 3) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for place in draw.choice(len(content), draw.integers(1, most + 1), replace=False):
            changed[place] ^= 1 << int(draw.integers(8))
        return bytes(changed)

    return change


def cut_or_longer(draw: Draw) -> Callable[[bytes], bytes]:
    kind = draw.integers(4)
    if kind == 0:
        return lambda content: b""
    if kind == 1:
        return lambda content: content + draw.bytes(int(draw.integers(1, 100)))
    return lambda content: content[: int(draw.integers(len(content)))]


def overwritten(draw: Draw) -> Callable[[bytes], bytes]:
    """Return a change that sets four or eight bytes to a number that may break a reader."""
    layout, numbers = (("<I", (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)), ("<Q", (0, 1, 1 << 31, 1 << 40, (1 << 64) - 1)))[
        draw.integers(2)
    ]

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        place = int(draw.integers(max(len(content) - 8, 1))) // 4 * 4
        struct.pack_into(layout, changed, place, int(numbers[draw.integers(len(numbers))]))
        return bytes(changed)

    return change


def swapped(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)


def file_case(draw: Draw) -> Case:
    """Return a case that damages a file without updating its hash."""
    name = str(draw.choice(FILES))
    other = str(draw.choice([one for one in FILES if one != name]))
    extra = str(draw.choice(["query_encoder.onnx.data", ".hidden", "manifest.json.bak", "CURRENT", "a b"]))
    cases = [
        Case("flipped", (name,), lambda folder: rewrite(folder / name, flipped(draw))),
        Case("cut or longer", (name,), lambda folder: rewrite(folder / name, cut_or_longer(draw))),
        Case("swapped", (name, other), lambda folder: swapped(folder, name, other)),
        Case("missing", (name,), lambda folder: (folder / name).unlink()),
        Case("extra", (extra,), lambda folder: (folder / extra).write_bytes(draw.bytes(10))),
        Case("symlinked", (name,), lambda folder: _link(folder / name)),
        Case("a folder", (name,), lambda folder: _folder(folder / name)),
    ]
    return cases[draw.integers(len(cases))]


def _link(path: Path) -> None:
    """Replace a file by a link to the same bytes outside the bundle."""
    outside = path.parent.with_name(f"{path.parent.name}-outside")
    path.rename(outside)
    path.symlink_to(outside)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def manifest_case(draw: Draw) -> Case:
    """Return a case that changes one field of the manifest to an invalid value, or damages the file."""
    if draw.random() < 0.1:
        wholes = [b"", b"{}", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"format_version": 1}', b" " * (1 << 21)]
        return Case("manifest", (MANIFEST,), lambda folder: (folder / MANIFEST).write_bytes(wholes[draw.integers(8)]))
    return Case("manifest field", (MANIFEST, *FILES, "absent"), lambda folder: _spoil_a_field(folder, draw))


def _spoil_a_field(folder: Path, draw: Draw) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    parent, key = (places := list(_leaves(content)))[draw.integers(len(places))]
    value = parent[key]
    if parent is content["files"]:
        _spoil_a_name(parent, key, draw)
    elif isinstance(value, str):
        parent[key] = [1, None, [], {}, True][draw.integers(5)]
    elif isinstance(value, bool) or value is None:
        parent[key] = ["text", 3, [], [None]][draw.integers(4)]
    else:
        wrong: list[Any] = [
            "text",
            "null" if key == "ef" else None,
            [],
            {},
            True,
            -2,
            -(10**40),
            10**40,
            float("nan"),
            float("inf"),
            str(value),
        ]
        parent[key] = wrong[draw.integers(len(wrong))]
    (folder / MANIFEST).write_text(json.dumps(content))


def _spoil_a_name(files: dict[str, Any], name: str, draw: Draw) -> None:
    names = [
        "../vectors.npy",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        ".hidden",
        "manifest.json",
        "manifest.sig",
        "a\n",
        "absent",
    ]
    other = names[draw.integers(len(names))]
    entry = files[name] if draw.random() < 0.5 else files.pop(name)
    files[other] = entry


def _leaves(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of every single value in the manifest, and of every file name."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list):
            yield from _leaves(value)
            if isinstance(value, dict) and "sha256" in value:
                yield content, key
        else:
            yield content, key


def rehashed_case(draw: Draw) -> Case:
    """Return a case that damages a file and updates its hash."""
    name = str(draw.choice(FILES))
    if name == LABEL_ENCODER or draw.random() < 0.3:
        name = INDEX
    change = (flipped, flipped, overwritten, cut_or_longer)[draw.integers(4)](draw)
    if name == INDEX and draw.random() < 0.7:
        change = (header_changed, link_changed)[draw.integers(2)](draw)

    def damage(folder: Path) -> None:
        rewrite(folder / name, change)
        rehash(folder, name)

    return Case(f"rehashed {name}", (name,), damage)


def header_changed(draw: Draw) -> Callable[[bytes], bytes]:
    """Return a change of one field of the index header, such as a count, an offset or the entry point."""

    def change(content: bytes) -> bytes:
        fields = list(HEADER.unpack_from(content))
        place = int(draw.integers(len(fields)))
        if isinstance(fields[place], float):
            fields[place] = [0.0, -1.0, float("nan"), float("inf"), 1e300, fields[place] * 1.01][draw.integers(6)]
        elif place == 6:  # the top level, the one that has a sign
            fields[place] = int(draw.choice([-1, -(1 << 31), (1 << 31) - 1, fields[place] + 1, 64, 65]))
        else:
            bits = 32 if place == 7 else 64
            near = [fields[place] + 1, max(fields[place] - 1, 0), 2 * fields[place], 0, 1, 1 << 20, (1 << 31) + 7]
            fields[place] = [*near, (1 << bits) - 1][draw.integers(8)] % (1 << bits)
        return HEADER.pack(*fields) + content[HEADER.size :]

    return change


def link_changed(draw: Draw) -> Callable[[bytes], bytes]:
    """Return a change of a link, the length of a list of links, a label, or a word of the higher levels."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        _, _, count, element_bytes, label_offset, data_offset, *_ = HEADER.unpack_from(content)
        element = HEADER.size + int(draw.integers(count)) * element_bytes
        above = HEADER.size + count * element_bytes
        place = [
            element,
            element + 4 * int(draw.integers(1, data_offset // 4)),
            element + label_offset,
            above + 4 * int(draw.integers((len(content) - above) // 4)),
        ][draw.integers(4)]
        value = [count, count + 1, 1 << 31, (1 << 32) - 1, int(draw.integers(count)), 1 << 16][draw.integers(6)]
        struct.pack_into("<I", changed, place, value)
        return bytes(changed)

    return change


GROUPS = {"hashes left alone": file_case, "manifest changed": manifest_case, "hashes fixed up": rehashed_case}


def cases(group: str, count: int, seed: int) -> Iterator[Case]:
    """Return `count` cases of a group, which depend only on the seed."""
    for number in range(count):
        yield GROUPS[group](np.random.default_rng([seed, list(GROUPS).index(group), number]))


def damaged(whole: Path, folder: Path, case: Case) -> Path:
    """Copy a bundle and damage the copy."""
    shutil.copytree(whole, folder)
    case.damage(folder)
    return folder
