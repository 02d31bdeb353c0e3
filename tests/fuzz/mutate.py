"""Mutated events and pictures, drawn from a seed: the same numbers give the same bytes."""

import base64
import functools
import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence

from tests.fixtures.processes import picture
from tests.fixtures.samples import samples
from worker.image.decode import kind_of

type Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
"""Key, value and headers."""

SECRET = "c0ffee5ec4e7" * 4
"""In the query of every link: what a signed URL would give away."""
PICTURES = 24
SPLICED_SHARE = 0.15
KEPT_SHARE = 0.1
"""Of the events, left as they are: the good ones between the bad ones."""
HUGE = 17 * 1024 * 1024
HUGE_SHARE = 1e-4
DEEP = 100_000

TOKENS = (
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"Infinity", b'"', b"{", b"[", b"}", b"]", b","),
    *(b"\\u0000", b"\\ud800", b"\\udfff", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"\xe2\x80\xae", b"\r\n", b'"upload_id"', b"canary:", b"file:///etc/passwd", b"=", b"%00"),
    *(b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"IDAT", b"IHDR", b"IEND", b"acTL", b"VP8X", b"ANMF"),
    *(b"fcTL", b"fdAT", b"iCCP", b"ICCP", b"ftyp", b"meta", b"ispe", b"ipma", b"moov", b"irot"),
    *(struct.pack(order, n) for order in ("<I", ">I") for n in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)),
    *(struct.pack(order, n) for order in ("<H", ">H") for n in (0, 1, 2**15, 2**16 - 1)),
)
VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 2**64, 1e308, "", " ", [], {}, [[]], {"a": {}}, "\0", "\u202e", "é" * 600),
    *("canary:x", "x" * 512, "x" * 513, "1970-01-01", "2026-11-24T00:00:00Z", "9" * 400, "\n"),
)
LINKS = (
    *("file:///etc/passwd", "gopher://127.0.0.1/", "http://", "http://[::1", "http://127.0.0.1:0/"),
    *("http://169.254.169.254/latest/", "http://user:word@127.0.0.1/", "http://2130706433/"),
    *("https://127.0.0.1:70000/", "http://127.0.0.1\\@example.org/", "s3://b", "http://\ud7ff/"),
)
TYPES = (
    *(b"image/jpeg", b"image/", b"IMAGE/PNG; q=1", b"application/json", b"text/plain", b"\xff"),
    *(b"application/cloudevents+json", b"", b"image/jpeg" * 1000),
)


def events(seed: int, count: int, host: str) -> Iterator[Record]:
    """Events of every form, links to `host` among them, most of them mutated."""
    chance = random.Random(f"events {seed}")
    for number in range(count):
        record = _event(chance, number, host)
        if chance.random() > KEPT_SHARE:
            record = chance.choice(_MUTATIONS)(chance, record)
        yield record


def images(seed: int, count: int) -> Iterator[Record]:
    """Pictures of every format as raw records, mutated."""
    for number, (_, data) in enumerate(pictures(seed, count)):
        yield b"image-%d" % number, data or b"\0", [("content-type", b"image/jpeg")]


def pictures(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """What was mutated, by its format, and what became of it."""
    chance = random.Random(f"images {seed}")
    encoded = samples()
    for _ in range(count):
        data = original = chance.choice(encoded)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data = _damage(chance, data, encoded)
        if chance.random() < SPLICED_SHARE:
            data = _splice(chance, data, chance.choice(encoded))
        yield kind_of(original), data


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """The head of one format on the body of another, or two parts that changed places."""
    if chance.random() < 0.5:
        head = chance.choice((4, 12, 16, 32, 64, 200))
        return other[:head] + data[head:]
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
    first, second, third = cuts
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def _event(chance: random.Random, number: int, host: str) -> Record:
    image = _picture(chance.randrange(PICTURES))
    key = b"event-%d" % number
    if chance.random() < 0.2:
        return key, image, [("content-type", b"image/jpeg"), ("tenant", b"t")]
    event: dict[str, object] = {"upload_id": key.decode(), "attributes": {"user": "42"}}
    if chance.random() < 0.3:
        event["image_url"] = f"{host}/{chance.randrange(2 * PICTURES)}?signature={SECRET}"
    else:
        event["image_base64"] = base64.b64encode(image).decode()
    if chance.random() < 0.3:
        event |= {"tenant": "t", "uploaded_at": "2026-11-24T00:00:00Z"}
        event["sha256"] = hashlib.sha256(image).hexdigest()
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"1")] if chance.random() < 0.2 else []
    return key, json.dumps(event).encode(), headers


@functools.cache
def _picture(number: int) -> bytes:
    return picture(number, size=64)


# -- how records are mutated -------------------------------------------------------------------


def _bytes(chance: random.Random, record: Record) -> Record:
    key, value, headers = record
    for _ in range(chance.choice((1, 1, 3, 20))):
        value = _damage(chance, value or b"", (b"[" * DEEP, b'{"a":' * DEEP))
    return key, value, headers


def _fields(chance: random.Random, record: Record) -> Record:
    """Another type, value or name of a field; a field more, less, or twice."""
    key, value, headers = record
    try:
        event = json.loads(value or b"")
    except ValueError:
        return _bytes(chance, record)
    name = chance.choice([*event, "image_url", "image_base64", "unknown"])
    odd = chance.choice((*VALUES, *LINKS))
    match chance.randrange(6):
        case 0:
            event.pop(name, None)
        case 1:
            event["attributes"] = {f"{n}": "x" * chance.choice((1, 500)) for n in range(20)}
        case 2:
            event["attributes"] = {"a": odd, str(odd): "b"}
        case 3:
            twice = json.dumps({name: odd}).encode()[:-1] + b"," + (value or b"{}")[1:]
            return key, twice, headers
        case _:
            event[name] = odd
    return (
        key,
        json.dumps(event, ensure_ascii=chance.random() < 0.5).encode(errors="replace"),
        headers,
    )


def _headers(chance: random.Random, record: Record) -> Record:
    key, value, headers = record
    names = ("content-type", "Content-Type", "upload-id", "tenant", "ce_time", "copysieve-canary")
    for _ in range(chance.choice((1, 2, 5))):
        odd = chance.choice((*TYPES, chance.randbytes(chance.choice((0, 8, 600)))))
        headers = [*headers, (chance.choice(names), odd)]
    chance.shuffle(headers)
    return key, value, headers


def _key(chance: random.Random, record: Record) -> Record:
    _, value, headers = record
    odd = (None, b"", b"\xff\xfe", b"k" * 600, b"canary:x", chance.randbytes(16), b"k" * 70_000)
    return chance.choice(odd), value, headers


def _no_value(chance: random.Random, record: Record) -> Record:
    key, _, headers = record
    return key, chance.choice((None, b"", b" ", chance.randbytes(40))), headers


def _huge(chance: random.Random, record: Record) -> Record:
    """Beyond every limit; rarely, or nothing else would be measured."""
    if chance.random() > len(_MUTATIONS) * HUGE_SHARE:
        return _bytes(chance, record)
    key, value, headers = record
    return key, (value or b"")[:-1] + b" " * HUGE, headers


_MUTATIONS: tuple[Callable[[random.Random, Record], Record], ...] = (
    *(_bytes, _bytes, _bytes, _fields, _fields, _fields, _headers, _key, _no_value, _huge),
)


def _damage(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One change: bytes, bits, a cut, a token, a part twice, moved, gone, or of another one."""
    changed = bytearray(data or b"\0")
    at = chance.randrange(len(changed))
    end = min(len(changed), at + chance.choice((1, 4, 64, 1024)))
    match chance.randrange(9):
        case 0:
            changed[at] ^= 1 << chance.randrange(8)
        case 1:
            changed[at:end] = chance.randbytes(end - at)
        case 2:
            del changed[at:]
        case 3:
            token = chance.choice(TOKENS)
            changed[at : at + len(token)] = token
        case 4:
            changed[at:at] = chance.choice(TOKENS)
        case 5:
            changed[at:at] = changed[at:end]
        case 6:
            del changed[at:end]
        case 7:
            part = bytes(changed[at:end])
            del changed[at:end]
            to = chance.randrange(len(changed) + 1)
            changed[to:to] = part
        case _:
            other = chance.choice(others)
            changed[at:] = other[chance.randrange(len(other)) :]
    return bytes(changed)
