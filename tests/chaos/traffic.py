"""What a platform uploads while things break: drawn once from a seed, the same for every phase."""

import base64
import functools
import io
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kafka import KafkaProducer
from PIL import Image

from tests.fixtures.processes import picture

REFERENCES = 12
COPIES, BENIGN = 48, 90
"""So few distinct pictures that most uploads are images seen lately, as on a platform."""
RAW = (("content-type", b"image/jpeg"),)
REPEATS = 5
MANY = "many"
REPEATED_SHARE = 0.25
LINKED_SHARE = 0.15
KINDS = {"copy": 45, "benign": 40, "broken": 9, "garbage": 6}
GARBAGE = (b"", b"{not json", b"[]", b'{"upload_id": 7}', b"\xff\xfe\x00", b'{"upload_id": "x"}')
WINDOW = 60
"""Uploads of one id lie within about so many others."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One planned record, and what must come of it."""

    index: int
    upload_id: str
    kind: str
    picture: int
    linked: bool
    repeated: bool

    @property
    def outcome(self) -> str:
        """What a good worker says, from how the upload was made."""
        outcomes = {"copy": "match", "benign": "no_match", "broken": "unscreened"}
        return outcomes.get(self.kind, "dead_letter")

    @property
    def reference(self) -> str | None:
        """The reference that a copy is of."""
        return f"ref-{self.picture % REFERENCES}" if self.kind == "copy" else None

    @property
    def body(self) -> bytes:
        """The bytes of the picture, or what there is in its place."""
        return body(self.kind, self.picture)

    def record(self, host: str, phase: str, padding: int = 0) -> tuple[bytes, bytes, tuple]:
        """Key, value and headers. `padding` bytes follow the picture, which a JPEG may have."""
        key = self.upload_id.encode()
        if self.kind == "garbage":
            return key, GARBAGE[self.picture % len(GARBAGE)], ()
        fields: dict[str, object] = {"upload_id": self.upload_id}
        if self.linked:
            fields["image_url"] = f"{host}/{phase}/{self.index}/{self.kind}/{self.picture}"
        elif not self.repeated and self.index % 3 == 0:
            return key, self.body + bytes(padding), RAW
        else:
            fields["image_base64"] = base64.b64encode(self.body + bytes(padding)).decode()
        fields["attributes"] = {"number": str(self.index)}
        return key, json.dumps(fields).encode(), ()


@functools.cache
def body(kind: str, number: int) -> bytes:
    """The same bytes for the same numbers, whoever asks."""
    if kind == "copy":
        original = Image.open(io.BytesIO(reference_picture(number % REFERENCES)))
        buffer = io.BytesIO()
        original.save(buffer, "JPEG", quality=90 - number // REFERENCES)
        return buffer.getvalue()
    whole = picture(1000 + number)
    if kind == "broken":
        return whole[:40] if number % 2 else b"no picture %d" % number
    return whole


def reference_picture(number: int) -> bytes:
    return picture(number)


def plan(seed: int, count: int) -> list[Upload]:
    """Draw `count` uploads; a quarter of them share their id with four others, nearby."""
    chance = random.Random(seed)
    groups = int(count * REPEATED_SHARE) // REPEATS
    alone = range(count - REPEATS * groups)
    slots = [(chance.uniform(0, count), f"one-{n}") for n in alone]
    for group in range(groups):
        begin = chance.uniform(0, count - WINDOW)
        width = chance.choice((0.1, WINDOW))  # back to back, or with others in between
        slots += [(begin + chance.uniform(0, width), f"{MANY}-{group}") for _ in range(REPEATS)]
    return [_draw(chance, index, slot[1]) for index, slot in enumerate(sorted(slots))]


def _draw(chance: random.Random, index: int, upload_id: str) -> Upload:
    repeated = upload_id.startswith(MANY)
    [kind] = chance.choices(list(KINDS), list(KINDS.values()))
    if repeated and kind == "garbage":
        kind = "benign"  # what is no event has no id
    linked = kind in {"copy", "benign"} and chance.random() < LINKED_SHARE
    number = chance.randrange(COPIES if kind == "copy" else BENIGN)
    return Upload(index, upload_id, kind, number, linked, repeated)


@dataclass(frozen=True, slots=True)
class Sent:
    """One upload that Kafka has acknowledged, `at` by the monotonic clock."""

    upload: Upload
    partition: int
    offset: int
    at: float


class Traffic(threading.Thread):
    """Publishes a plan evenly over `seconds`, whatever happens, and keeps what Kafka took."""

    def __init__(
        self,
        servers: str,
        topic: str,
        uploads: Sequence[Upload],
        seconds: float,
        host: str,
        phase: str,
        padding: int = 0,
    ) -> None:
        super().__init__(name="traffic")
        self.sent: list[Sent] = []
        self.failed: list[Exception] = []
        self.bytes = 0
        self._topic, self._uploads, self._seconds = topic, uploads, seconds
        self._host, self._phase, self._padding = host, phase, padding
        self._producer = KafkaProducer(
            bootstrap_servers=[servers],
            delivery_timeout_ms=300_000,
            reconnect_backoff_max_ms=500,
            max_block_ms=120_000,
            linger_ms=5,
        )

    def run(self) -> None:
        began = time.monotonic()
        try:
            for number, upload in enumerate(self._uploads):
                due = began + self._seconds * number / len(self._uploads)
                time.sleep(max(0.0, due - time.monotonic()))
                key, value, headers = upload.record(self._host, self._phase, self._padding)
                self.bytes += len(value)
                future = self._producer.send(self._topic, value, key, list(headers))
                future.add_callback(self._took, upload)
                future.add_errback(self.failed.append)
            self._producer.flush(120)
        except Exception as error:  # noqa: BLE001 - told by the phase
            self.failed.append(error)
        finally:
            self._producer.close(timeout=5)

    def _took(self, upload: Upload, metadata) -> None:
        self.sent.append(Sent(upload, metadata.partition, metadata.offset, time.monotonic()))
