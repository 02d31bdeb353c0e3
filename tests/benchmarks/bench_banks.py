"""What many banks and tenants cost a batch: 1,000 of each against one bank, in one run.

    python -m tests.benchmarks.bench_banks [--banks 1000] [--rounds 30] [--model NAME]

Both sides have the same references and uploads. They take turns, so that both meet the machine in
the same state, and the thread's CPU time of the best round counts. The ratio is what the banks add,
to what a batch takes on the device thread: describing and matching.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tests.fixtures.hot_set import bank, calibration, put_bank, reference, snapshot, unit_rows
from worker.compare import compare
from worker.descriptor import embedders
from worker.hotset.mirror import Mirror
from worker.hotset.types import Bank, Descriptors, Entry
from worker.records import Model, Version
from worker.scoring.rules import Rules
from worker.settings import ModelSettings

UPLOADS = 32
REFERENCES = 20_000


class Side:
    """A hot set with some banks, each for a tenant of its own, and a batch of their uploads."""

    def __init__(self, model: Model, banks: int) -> None:
        self.banks = [bank(f"b{n}", tenants=(f"t{n}",)) for n in range(banks)]
        rows = unit_rows(1, REFERENCES, model.dims)
        described = [
            (reference(f"r{n}", bank=f"b{n % banks}"), Descriptors(("plain",), rows[n : n + 1]))
            for n in range(REFERENCES)
        ]
        self.mirror = Mirror(model, "cpu")
        self.mirror.load(snapshot(self.banks, described))
        self.rules = Rules(["plain"])
        self.mirror.on_prepared = self.rules.prepare
        queries = unit_rows(2, UPLOADS, model.dims).astype(np.float32)
        self.uploads = [torch.from_numpy(one[None]) for one in queries]
        self.tenants = [f"t{n % banks}" for n in range(UPLOADS)]
        self._seq = 1

    def match(self) -> None:
        """Compare the batch with the hot set."""
        list(compare(self.mirror, self.rules, self.uploads, self.tenants))

    def change(self) -> None:
        """Change one bank, so that what is remembered of the hot set is made anew."""
        self._seq += 1
        new: Bank = self.banks[0].model_copy(update={"label": f"label {self._seq}"})
        entry = Entry(
            Version(5, self._seq), f"m{self._seq}", f"m{self._seq - 1}", 0.0, [put_bank(new)]
        )
        self.mirror.apply(entry)


def rules_of(model: Model, banks: int, *, prepared: bool) -> float:
    """CPU seconds until the first batch after a load has its rules, where banks have budgets."""
    known = calibration(model=model, null=1000)
    mirror, rules = Mirror(model, "cpu"), Rules(["plain"])
    if prepared:
        mirror.on_prepared = rules.prepare
    policies = [
        bank(f"b{n}", threshold=None, max_false_matches_per_million=50_000) for n in range(banks)
    ]
    rows = unit_rows(1, banks, model.dims)
    described = [
        (reference(f"r{n}", bank=f"b{n}"), Descriptors(("plain",), rows[n : n + 1]))
        for n in range(banks)
    ]
    mirror.load(snapshot(policies, described, calibration=known))
    return spent(lambda: rules.of(mirror.against()))


def spent(work: Callable[[], object]) -> float:
    """CPU seconds of all threads of the process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(sides: Sequence[Side], rounds: int, *, changed: bool) -> list[float]:
    """CPU seconds of a batch on each side, in its best round."""
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for number, side in enumerate(sides):
            if changed:
                side.change()
            best[number] = min(best[number], spent(side.match))
    return best


def main() -> None:
    """Print both sides and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--model", default="sscd_distilled")
    options = parser.parse_args()
    torch.set_num_threads(1)
    embedder = embedders.load(ModelSettings(name=options.model, device="cpu"))
    size = embedder.preprocessing.size
    pictures = np.random.default_rng(0).integers(0, 256, (UPLOADS, size, size, 3), np.uint8)
    describing = min(spent(lambda: embedder.describe(pictures)) for _ in range(3))
    one, many = Side(embedder.model, 1), Side(embedder.model, options.banks)
    print(f"describe {UPLOADS} uploads: {1000 * describing:.1f} ms")
    for changed in (False, True):
        few, more = measure([one, many], options.rounds, changed=changed)
        label = "after a change" if changed else "unchanged"
        print(
            f"{label}: match against 1 bank {1000 * few:.2f} ms, {options.banks} banks "
            f"{1000 * more:.2f} ms: {(more - few) / (describing + few):.2%} of a batch, "
            f"{(more - few) / few:.0%} of matching"
        )
    alone, prepared = (
        rules_of(embedder.model, options.banks, prepared=ahead) for ahead in (False, True)
    )
    print(
        f"first rules of {options.banks} banks with budgets on the device thread: "
        f"{1000 * alone:.0f} ms, made in advance {1000 * prepared:.1f} ms: "
        f"{prepared / (describing + few):.2%} of a batch"
    )


if __name__ == "__main__":
    main()
