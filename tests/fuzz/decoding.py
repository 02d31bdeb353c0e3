"""Mutated pictures through the sandboxed decoders alone; each ends in a picture or a reason.

What is left of a picture may still be one. What may not be: a hang, a death, a reason that is none,
memory that grows, a decoder that stays.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field

import psutil

from tests.fuzz.mutate import pictures
from worker.errors import DecodeError, UnscreenedReason
from worker.image.decoder import Decoder
from worker.records import Preprocessing
from worker.settings import Decode, Limits
from worker.telemetry import metrics

PREPROCESSING = Preprocessing("fuzz", 96, "bilinear")
LIMITS = Limits(image_pixels=20_000_000, image_frames=100, animation_pixels=40_000_000)
WORKERS = 2
DEADLINE_SECONDS = 20.0
OWN_BYTES = 256 * 1024 * 1024
"""Resident, of a decoder without a picture, with what its allocators keep."""
MOST_BYTES = LIMITS.in_flight_decoded_bytes // 2 + OWN_BYTES
"""Resident, of a decoder: what the largest picture may take, and itself."""
_REASONS = {
    UnscreenedReason.UNSUPPORTED_FORMAT,
    UnscreenedReason.UNDECODABLE,
    UnscreenedReason.TOO_MANY_PIXELS,
    UnscreenedReason.BAD_ASPECT_RATIO,
    UnscreenedReason.DECODER_CRASHED,
}


@dataclass
class DecodingReport:
    """Counts by format and outcome; memory in bytes, of the largest decoder."""

    images: int
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    rss_peak: int = 0
    failures: list[str] = field(default_factory=list)

    def told(self) -> dict[str, object]:
        return asdict(self)


def decode_all(seed: int, count: int) -> DecodingReport:
    """All formats in the children, whatever the settings' default."""
    report = DecodingReport(count)
    settings = Decode(workers=WORKERS, isolation="processes", deadline_seconds=DEADLINE_SECONDS)
    before = {child.pid for child in psutil.Process().children()}
    lies = _lies()
    with closing(Decoder(settings, LIMITS, PREPROCESSING)) as decoder:

        def one(mutated: tuple[str, bytes]) -> tuple[str, str, str]:
            kind, data = mutated
            try:
                prepared = decoder.prepare(data, nullcontext)
            except DecodeError as error:
                return kind, error.reason, str(error)
            return kind, "truncated" if prepared.info.truncated else "picture", ""

        counts, deaths = Counter[tuple[str, str]](), Counter[str]()
        with ThreadPoolExecutor(WORKERS) as pool:
            for number, (kind, outcome, detail) in enumerate(pool.map(one, pictures(seed, count))):
                counts[kind, outcome] += 1
                if outcome == UnscreenedReason.DECODER_CRASHED:
                    deaths[f"{kind}: {detail}"] += 1
                if number % 50 == 0:
                    report.rss_peak = max(report.rss_peak, _largest_child(before))
    for (kind, outcome), number in sorted(counts.items()):
        report.outcomes.setdefault(kind, {})[outcome] = number
    report.deaths = dict(deaths)
    _judge(report, counts, before)
    report.failures += [f"{number} deaths: {death}" for death, number in deaths.items()]
    if _lies() > lies:
        report.failures.append(f"{_lies() - lies:.0f} decoders gave a false answer")
    return report


def _lies() -> float:
    return float(metrics.DECODERS_REPLACED.labels("lied")._value.get())


def _judge(report: DecodingReport, counts: Counter[tuple[str, str]], before: set[int]) -> None:
    known = {*_REASONS, "picture", "truncated"}
    strange = {outcome for _, outcome in counts} - known
    if strange:
        report.failures.append(f"ended in {sorted(strange)}")
    if counts.total() != report.images:
        report.failures.append(f"{report.images - counts.total()} without an outcome")
    if report.rss_peak > MOST_BYTES:
        report.failures.append(f"a decoder held {report.rss_peak} bytes")
    left = {child.pid for child in psutil.Process(os.getpid()).children()} - before
    if left:
        report.failures.append(f"{len(left)} decoders are left")


def _largest_child(before: set[int]) -> int:
    sizes = [0]
    for child in psutil.Process().children():
        if child.pid not in before:
            try:
                sizes.append(child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
    return max(sizes)
