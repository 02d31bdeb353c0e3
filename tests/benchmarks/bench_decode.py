"""Decoding in threads and in processes, images a second, in turns within one run.

python -m tests.benchmarks.bench_decode [--images 200] [--workers 2] [--pairs 3]
"""

import argparse
import io
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
from PIL import Image

from worker.image.decoder import Decoder
from worker.records import Preprocessing
from worker.settings import Decode, Limits

PREPROCESSING = Preprocessing("bench", 288, "bilinear")
SIZES = ((640, 480), (1280, 960), (1600, 1200), (3000, 2000))


def pictures() -> list[bytes]:
    """Photo-like pictures: smooth, with some noise; mostly JPEG, as uploads are."""
    random = np.random.default_rng(3)
    encoded = []
    for number, (width, height) in enumerate(SIZES * 3):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        kind = "JPEG" if number % 4 else ("PNG", "WEBP", "GIF")[number // 4]
        stream = io.BytesIO()
        small.resize((width, height), Image.Resampling.BICUBIC).save(stream, kind)
        encoded.append(stream.getvalue())
    return encoded


def images_per_second(decoder: Decoder, workers: int, encoded: Sequence[bytes]) -> float:
    with ThreadPoolExecutor(workers) as pool:
        began = time.monotonic()
        for _ in pool.map(lambda data: decoder.prepare(data, nullcontext), encoded):
            pass
        return len(encoded) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    some = pictures()
    encoded = [some[number % len(some)] for number in range(options.images)]
    decoders = {
        isolation: Decoder(
            Decode.model_validate({"workers": options.workers, "isolation": isolation}),
            Limits(),
            PREPROCESSING,
        )
        for isolation in ("threads", "processes")
    }
    for decoder in decoders.values():
        images_per_second(decoder, options.workers, some)  # warm
    ratios = []
    for _ in range(options.pairs):
        found = {
            isolation: images_per_second(decoder, options.workers, encoded)
            for isolation, decoder in decoders.items()
        }
        ratios.append(found["processes"] / found["threads"])
        told = ", ".join(f"{isolation} {speed:.1f}/s" for isolation, speed in found.items())
        print(f"{told}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio of processes to threads: {statistics.median(ratios):.2f}")
    for decoder in decoders.values():
        decoder.close()


if __name__ == "__main__":
    main()
