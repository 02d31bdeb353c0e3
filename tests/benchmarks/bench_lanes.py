"""How long small pictures wait beside a stream of 100-megapixel files: in one lane, and in two.

python -m tests.benchmarks.bench_lanes [--seconds 20] [--workers 2] [--rate 10]

Small JPEGs come at a steady rate; as soon as one large file is decoded the next two are there. One
lane is what the worker had before: as many threads as `decode.workers`, one memory budget, first
come, first served. Both sides decode in processes, in turns within one run.
"""

import argparse
import io
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from PIL import Image

from worker.errors import DecodeError
from worker.image.budget import ByteBudget
from worker.image.decode import Reserve
from worker.image.decoder import Decoder
from worker.image.lanes import DecodeLanes
from worker.records import Preprocessing
from worker.settings import Decode, Limits
from worker.telemetry import metrics

PREPROCESSING = Preprocessing("bench", 288, "bilinear")
LARGE_WAITING = 4

type Submit = Callable[[Callable[[Reserve], None], Callable[[], None]], None]


def encode(width: int, height: int, kind: str, **options: object) -> bytes:
    random = np.random.default_rng(3)
    small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


class OneLane:
    """First come, first served."""

    def __init__(self, decode: Decode, limits: Limits) -> None:
        self._memory = ByteBudget(limits.in_flight_decoded_bytes, metrics.DECODED_BYTES)
        self._pool = ThreadPoolExecutor(decode.workers)

    def submit(self, work: Callable[[Reserve], None], done: Callable[[], None]) -> None:
        def run() -> None:
            work(lambda cost: self._memory.reserve(cost.nbytes))
            done()

        self._pool.submit(run)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Stream:
    """Feeds one side, and takes the times of the small pictures."""

    def __init__(self, submit: Submit, decoder: Decoder, large: bytes, small: bytes) -> None:
        self._submit, self._decoder = submit, decoder
        self._large, self._small = large, small
        self._going = True
        self.latencies: list[float] = []
        self.large_done = 0

    def run(self, seconds: float, rate: float) -> None:
        for _ in range(LARGE_WAITING):
            self._send_large()
        pending = []
        for number in range(round(seconds * rate)):
            time.sleep(max(0, self._began(number, rate) - time.monotonic()))
            pending.append(self._send_small())
        self._going = False
        for one in pending:
            one.wait(600)

    def _began(self, number: int, rate: float) -> float:
        if not number:
            self._start = time.monotonic()
        return self._start + number / rate

    def _send_large(self) -> None:
        def done() -> None:
            self.large_done += 1
            if self._going:
                self._send_large()

        self._submit(lambda reserve: self._decode(self._large, reserve), done)

    def _send_small(self) -> threading.Event:
        sent, event = time.monotonic(), threading.Event()

        def done() -> None:
            self.latencies.append(time.monotonic() - sent)
            event.set()

        self._submit(lambda reserve: self._decode(self._small, reserve), done)
        return event

    def _decode(self, data: bytes, reserve: Reserve) -> None:
        with suppress(DecodeError):
            self._decoder.prepare(data, reserve)


def measure(side: str, large: bytes, options: argparse.Namespace) -> float:
    """Print one row; returns the 99th percentile in seconds."""
    decode, limits = Decode(workers=options.workers, deadline_seconds=60), Limits()
    threads = decode.workers if side == "one lane" else decode.threads
    decoder = Decoder(decode, limits, PREPROCESSING, threads=threads)
    lanes = (
        OneLane(decode, limits)
        if side == "one lane"
        else DecodeLanes(decode, limits, lambda error: print("failed:", error))
    )
    stream = Stream(lanes.submit, decoder, large, encode(1280, 960, "JPEG"))
    stream.run(options.seconds, options.rate)
    lanes.close()
    found = sorted(stream.latencies)
    decoder.close()
    p50, p99 = statistics.median(found), found[int(0.99 * (len(found) - 1))]
    print(
        f"{side:10} small JPEGs: p50 {1000 * p50:7.0f} ms, p99 {1000 * p99:7.0f} ms, "
        f"max {1000 * found[-1]:7.0f} ms; {stream.large_done} large files done",
        flush=True,
    )
    return p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=10, help="small pictures a second")
    options = parser.parse_args()
    files = {
        "JPEG of 100 megapixels": encode(10_000, 10_000, "JPEG", quality=70),
        "progressive JPEG of 100 megapixels": encode(10_000, 10_000, "JPEG", progressive=True),
        "WebP of 45 megapixels": encode(9_000, 5_000, "WEBP", quality=20),
    }
    for name, large in files.items():
        print(f"{name}, {len(large) / 1024:.0f} KiB")
        one, two = (measure(side, large, options) for side in ("one lane", "two lanes"))
        print(f"p99 in two lanes over one: {two / one:.3f}\n")


if __name__ == "__main__":
    main()
