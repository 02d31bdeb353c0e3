"""What score normalisation adds to describing and matching a batch.

Both sides run in turns in one process: the batch is described by the network and compared with a
hot set, without a calibration and with one. The price is the median ratio of the two, less 1.

python -m tests.benchmarks.bench_normalisation [--background 20000] [--batch 32] [--rounds 7]
"""

import argparse
import statistics
import time
from datetime import UTC, datetime

import numpy as np
import torch

from worker.cli import subjects
from worker.compare import compare
from worker.descriptor.embedders import TorchEmbedder
from worker.hotset import layout
from worker.hotset.mirror import Mirror
from worker.hotset.types import Bank, BankPut, Calibration, Head, Reference, Snapshot, Stored
from worker.records import Model, Version
from worker.scoring.learning import learn
from worker.scoring.rules import Rules
from worker.settings import ModelSettings

SEED = 1
NULL = 5000


def unit_rows(random: np.random.Generator, count: int, dims: int) -> np.ndarray:
    rows = random.standard_normal((count, dims)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def mirror_of(model: Model, references: int, calibration: Calibration | None) -> Mirror:
    random = np.random.default_rng(SEED)
    bank = Bank(name="known", label="known", severity="high", threshold=0.9)
    now = datetime.now(UTC)
    listed = [
        Reference(reference_id=f"r{number}", bank="known", added_by="bench", added_at=now)
        for number in range(references)
    ]
    blobs = [b"plain\n" + row.tobytes() for row in unit_rows(random, references, model.dims)]
    stored = Stored(listed, [layout.write_reference(one) for one in listed], list(blobs))
    mirror = Mirror(model, "cpu")
    banks = [BankPut(bank, layout.write_bank(bank))]
    mirror.load(Snapshot(Head(Version(1, 1), "m", ""), banks, [stored], calibration))
    return mirror


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="resnext101_32x4d")
    parser.add_argument("--background", type=int, default=20_000)
    parser.add_argument("--references", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    settings = ModelSettings()
    subject = subjects.of_architecture(options.architecture, settings)
    embedder = TorchEmbedder(subject.checkpoint, subject.weights, subject.settings)
    model, random = embedder.model, np.random.default_rng(SEED)
    calibration = learn(
        model.sha256,
        unit_rows(random, options.background, model.dims),
        unit_rows(random, NULL, model.dims)[:, None],
        np.arange(NULL),
    )
    size = embedder.preprocessing.size
    pictures = random.integers(0, 256, (options.batch, size, size, 3), dtype=np.uint8)
    sides = {
        name: (mirror_of(model, options.references, one), Rules(["plain"]))
        for name, one in (("plain", None), ("normalised", calibration))
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    matching: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, (mirror, rules) in sides.items():
            began = time.perf_counter()
            rows = embedder.describe(pictures)
            described = time.perf_counter()
            list(compare(mirror, rules, list(rows[:, None]), [None] * len(rows)))
            if number:  # the first round warms both up
                seconds[name].append(time.perf_counter() - began)
                matching[name].append(time.perf_counter() - described)
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["normalised"], strict=True)]
    added = [b - a for a, b in zip(matching["plain"], matching["normalised"], strict=True)]
    print(f"{options.architecture}, {embedder.precision}, batch {options.batch}, cpu, "
          f"{torch.get_num_threads()} threads; {options.references} references, "
          f"{options.background} background images")  # fmt: skip
    for name in sides:
        print(
            f"{name:12} {1000 * statistics.median(seconds[name]):8.1f} ms a batch, "
            f"of that matching {1000 * statistics.median(matching[name]):6.1f} ms"
        )
    share = statistics.median(added) / statistics.median(seconds["plain"])
    print(f"added by matching: {share:.2%} of a batch (median of differences)")
    print(f"whole: {statistics.median(ratios) - 1:+.1%} ({min(ratios) - 1:+.1%} to "
          f"{max(ratios) - 1:+.1%} over {options.rounds} rounds)")  # fmt: skip


if __name__ == "__main__":
    main()
