"""One random change of a file's parts: added, doubled, moved, cut, or wrong in a field."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.viewers.containers import (
    Heif,
)
from tests.viewers.mutated_parts import ADDED, NUMBERS, heif_property
from tests.viewers.parts import Parts, split

type Change = Callable[[random.Random, Parts], Parts]

_FIELD_BYTES = 40
"""At the beginning of a part: what a format keeps its fields in."""
_SMALL_BYTES = 4096
"""A part of at most so many may be changed anywhere: profiles, tables, boxes of boxes."""
_FIRST_PARTS = {"JPEG": 0, "GIF": 0, "BMP": 2, "ICO": 2, "JPEG XL": 2}
"""Parts that a file cannot do without at its beginning; 1 in formats not named here."""
_TRANSFORMS = (b"clap", b"irot", b"imir")
"""Properties that have to be essential."""


def _pick(chance: random.Random, parts: Sequence[bytes]) -> int:
    """A part; seldom the first or the largest one, without which nothing is left to see."""
    most = max(range(len(parts)), key=lambda at: len(parts[at]))
    minor = [at for at in range(1, len(parts)) if at != most]
    if minor and chance.random() < 0.8:
        return chance.choice(minor)
    return chance.randrange(len(parts))


# -- changes -----------------------------------------------------------------------------------


def add(chance: random.Random, file: Parts) -> Parts:
    """A part more; seldom before those that a format has to begin with."""
    parts = list(file.parts)
    first = min(_FIRST_PARTS.get(file.format, 1), len(parts))
    if chance.random() < 0.1:
        first = 0
    parts.insert(chance.randint(first, len(parts)), ADDED[file.format](chance))
    return replace(file, parts=tuple(parts))


def double(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    at = _pick(chance, parts)
    parts.insert(chance.choice((at + 1, chance.randint(0, len(parts)))), parts[at])
    return replace(file, parts=tuple(parts))


def move(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    moved = parts.pop(_pick(chance, parts))
    parts.insert(chance.randint(0, len(parts)), moved)
    return replace(file, parts=tuple(parts))


def drop(chance: random.Random, file: Parts) -> Parts:
    parts = list(file.parts)
    del parts[_pick(chance, parts)]
    return replace(file, parts=tuple(parts))


def cut(chance: random.Random, file: Parts) -> Parts:
    """A part loses its end; its length says so or not."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    keep = chance.choice((chance.randint(0, len(parts[at])), max(0, len(parts[at]) - 4)))
    parts[at] = parts[at][:keep]
    return replace(file, parts=tuple(parts))


def field(chance: random.Random, file: Parts) -> Parts:
    """A byte near the beginning of a part; the checksum is put right most of the time."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    changed = bytearray(parts[at])
    if not changed:
        return file
    start = 8 if file.format in ("PNG", "APNG") and len(changed) > 12 else 0
    anywhere = len(changed) <= _SMALL_BYTES and chance.random() < 0.5
    reach = len(changed) if anywhere else _FIELD_BYTES
    place = min(len(changed) - 1, start + chance.randrange(reach))
    changed[place] = chance.choice((*NUMBERS, changed[place] ^ 1 << chance.randrange(8)))
    parts[at] = bytes(changed)
    if start and chance.random() < 0.9:
        parts[at] = parts[at][:-4] + struct.pack(">I", zlib.crc32(parts[at][4:-4]))
    return replace(file, parts=tuple(parts))


def head(chance: random.Random, file: Parts) -> Parts:
    """A byte of a GIF's head; elsewhere the head is a signature, so a byte of a part."""
    if file.format != "GIF":
        return field(chance, file)
    changed = bytearray(file.head)
    changed[chance.randrange(min(len(changed), _FIELD_BYTES))] = chance.choice(NUMBERS)
    return replace(file, head=bytes(changed))


def checksum(chance: random.Random, file: Parts) -> Parts:
    """Wrong last bytes of a part: a PNG's checksum, or the end of what is coded."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    parts[at] = parts[at][:-4] + chance.randbytes(min(4, len(parts[at])))
    return replace(file, parts=tuple(parts))


def length(chance: random.Random, file: Parts) -> Parts:
    """A part that gives another length of itself."""
    parts = list(file.parts)
    at = _pick(chance, parts)
    changed = bytearray(parts[at])
    by = chance.choice((-4, -1, 1, 4, 1000, 1 << 20))
    place, order = {"WebP": (4, "<I"), "JPEG": (2, ">H"), "BMP": (2, "<I"), "ICO": (8, "<I")}.get(
        file.format, (0, ">I")
    )
    size = struct.calcsize(order)
    if len(changed) >= place + size:
        (value,) = struct.unpack_from(order, changed, place)
        struct.pack_into(order, changed, place, (value + by) % (1 << 8 * size))
    parts[at] = bytes(changed)
    return replace(file, parts=tuple(parts))


def end(chance: random.Random, file: Parts) -> Parts:
    """The file is cut, or goes on behind its end."""
    data = bytes(file)
    if chance.random() < 0.5:
        return Parts(file.format, data[: int(len(data) * chance.uniform(0.5, 1))], ())
    more = chance.choice((bytes(100), chance.randbytes(100), ADDED[file.format](chance)))
    return replace(file, parts=(*file.parts, more))


def properties(chance: random.Random, file: Parts) -> Parts:
    """Properties of an AVIF's picture: added, taken away, in another order, of other brands."""
    if file.format != "AVIF":
        return add(chance, file)
    heif = Heif.read(bytes(file))
    entries = heif.associations[1]
    match chance.randrange(6):
        case 0 | 1 | 2:
            added = heif_property(chance)
            is_essential = added[4:8] in _TRANSFORMS
            if chance.random() < 0.1:
                is_essential = not is_essential
            heif.add(added, essential=is_essential, first=chance.random() < 0.5)
        case 3:
            chance.shuffle(entries)
        case 4:
            entries.pop(chance.randrange(len(entries)))
        case _:
            brands = [b"avif", b"isom", b"mif1", b"heic", b"avis", b"junk"]
            heif.brand(chance.choice(brands), *chance.sample(brands, chance.randint(0, 5)))
    return split(file.format, bytes(heif))


_OTHERS: tuple[Change, ...] = (
    double,
    move,
    drop,
    cut,
    field,
    field,
    head,
    checksum,
    length,
    end,
    properties,
)


def mutate(chance: random.Random, file: Parts) -> tuple[bytes, tuple[str, ...]]:
    """Add a few parts, change a few, and return the file with the names of the changes."""
    adding: Change = properties if file.format == "AVIF" else add
    changes = [adding] * chance.choice((0, 1, 1, 2, 3))
    changes += [chance.choice(_OTHERS) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
    names = []
    for change in changes or [chance.choice(_OTHERS)]:
        if not file.parts:
            break
        try:
            file = change(chance, file)
        except (struct.error, IndexError, KeyError, StopIteration, ValueError):
            continue  # an earlier change left nothing that this one understands
        names.append(change.__name__)
    data = bytes(file)
    if file.format == "WebP" and chance.random() < 0.85:
        data = data[:4] + struct.pack("<I", max(0, len(data) - 8)) + data[8:]
    return data, tuple(names)
