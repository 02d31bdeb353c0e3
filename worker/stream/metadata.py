"""The metadata of a commit: what is finished above the watermark, and which log that is true of.

Kafka keeps the text and does not look at it. It can come to stand beside another offset:
MirrorMaker translates offsets and copies metadata; a topic that is deleted and made anew under its
name begins again at 0; after an unclean election, offsets are given to other records. So the text
names the watermark, the cluster, the topic's id and the leader epoch, and counts for nothing else.
"""

import base64
import re
from collections.abc import Sequence
from typing import NamedTuple

RUNS_BYTES = 3 * 1024
_NAME_BYTES = 48
METADATA_BYTES = RUNS_BYTES + 192
"""Kafka keeps 4,096 bytes of metadata with a commit; the rest is room for other people's tools."""
NO_LEADER_EPOCH = -1

_RUNS, _BITS = "r1:", "b1:"
BITMAP_OFFSETS = (RUNS_BYTES - len(_BITS)) // 4 * 3 * 8
_UNWRITABLE = re.compile(r"[^!-~]|[,;]")
_BOUND = re.compile(r"o1:(\d{1,19}),(-1|\d{1,10}),([^,;]*),([^,;]*);(.*)", re.ASCII)

type Run = tuple[int, int]
"""Finished offsets `start <= offset < stop`."""


class Log(NamedTuple):
    """What offsets belong to. Empty where a broker does not tell (before Kafka 2.8, topic ids)."""

    cluster: str = ""
    topic_id: str = ""

    @classmethod
    def of(cls, cluster: str, topic_id: str) -> "Log":
        """Make it of names as brokers tell them: what could not be read back is left out."""
        return cls(*(_UNWRITABLE.sub("", name)[:_NAME_BYTES] for name in (cluster, topic_id)))

    def differs(self, other: "Log") -> bool:
        """Whether it is another log, as far as both are known."""
        return any(mine and its and mine != its for mine, its in zip(self, other, strict=True))

    def replaces(self, other: "Log") -> bool:
        """Whether this is the other's topic, deleted and made anew in the same cluster."""
        known = bool(self.topic_id and other.topic_id)
        return known and self.cluster == other.cluster and self.topic_id != other.topic_id


class Metadata(NamedTuple):
    """The metadata of one commit; `leader_epoch` is the highest of all that is finished."""

    log: Log
    watermark: int
    leader_epoch: int
    runs: list[Run]


def encode(metadata: Metadata) -> str:
    """The text, of `METADATA_BYTES` at most: `o1:WATERMARK,EPOCH,CLUSTER,TOPIC;` and the runs."""
    bound = f"o1:{metadata.watermark},{metadata.leader_epoch},{','.join(metadata.log)};"
    return bound + encode_runs(metadata.watermark, metadata.runs)


def decode(text: str) -> Metadata | None:
    """The inverse of `encode`; None for anything else, of another tool's, say."""
    if (found := _BOUND.fullmatch(text)) is None:
        return None
    watermark, epoch, cluster, topic, runs = found.groups()
    offset = int(watermark)
    return Metadata(Log(cluster, topic), offset, int(epoch), decode_runs(offset, runs))


def encode_runs(watermark: int, runs: Sequence[Run]) -> str:
    """Runs of finished offsets as text of `RUNS_BYTES` at most.

    `r1:3,5,1,2`: from the watermark 3 offsets not finished, 5 finished, 1 not, 2 finished. Where
    that is too long, `b1:` and a bit for each offset from the watermark, base64. What fits in
    neither is left out and counts as not finished: a partition that is `full` takes no more, so
    only a gap of thousands of offsets that Kafka never delivers leads there.
    """
    text, cursor = _RUNS, watermark
    for start, stop in runs:
        text += f"{start - cursor},{stop - start},"
        cursor = stop
    if text == _RUNS:
        return ""
    if len(text) > RUNS_BYTES:
        text = _BITS + _bitmap(watermark, runs)
    return text.rstrip(",")


def decode_runs(watermark: int, text: str) -> list[Run]:
    """The inverse of `encode_runs`; an empty list for anything else, of another tool's, say."""
    if text.startswith(_BITS):
        return _runs(watermark, text.removeprefix(_BITS))
    lengths = text.removeprefix(_RUNS).split(",")
    numbers = all(n.isascii() and n.isdecimal() for n in lengths)
    if not text.startswith(_RUNS) or len(lengths) % 2 or not numbers:
        return []
    runs, cursor = [], watermark
    for gap, length in zip(lengths[::2], lengths[1::2], strict=True):
        start = cursor + int(gap)
        cursor = start + int(length)
        runs.append((start, cursor))
    return runs


def _bitmap(watermark: int, runs: Sequence[Run]) -> str:
    bits = 0
    for start, stop in runs:
        first, last = start - watermark, min(stop - watermark, BITMAP_OFFSETS)
        if first < last:
            bits |= ((1 << (last - first)) - 1) << first
    return base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def _runs(watermark: int, bitmap: str) -> list[Run]:
    try:
        bits = int.from_bytes(base64.b64decode(bitmap, validate=True), "little")
    except ValueError:
        return []
    ones = re.finditer("1+", f"{bits:b}"[::-1])
    return [(watermark + run.start(), watermark + run.end()) for run in ones]
