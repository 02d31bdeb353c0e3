"""Whether a budget of false matches is kept on images that were not used, and as a bank grows.

The images of a collection are dealt by group, anew in every split: one image a group to a bank of
references, and the others to background, null and test. A replica's own code learns the calibration
and resolves the budgets (`learning.learn`, `rules.rule_of`); test images are only counted.
References have no views but the plain one.

1. How often test images reach the threshold, on average over splits; in how many splits that is
   above the budget, which with so few test images it is now and then at any threshold that is not
   far too high; in how many it lies within the 95% prediction (`Null.prediction`), which has the
   noise of both counts.
2. A bank grows: the rate at the threshold of the smallest bank, beside the rate where the budget is
   resolved anew; and what `Growth` forecasts, from the smallest bank, of the null's rate at its
   threshold. `held`: splits in which the null's rate then was within the forecast's limits.
3. The same for larger banks of synthetic descriptors (`themes.py`), once these are shown to be as
   alike as images of different groups are.

python -m tests.benchmarks.bench_budget --images FOLDER|FILE.npz [--splits 200]
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.themes import (
    HUBS,
    LEVELS,
    STEPS,
    Likeness,
    Themes,
    likeness,
    likeness_limits,
)
from worker.cli.common import load_settings, with_model
from worker.descriptor import embedders
from worker.evaluation import collecting
from worker.hotset.types import Bank
from worker.scoring.calibration import Masked
from worker.scoring.forecast import Growth
from worker.scoring.learning import Way, learn
from worker.scoring.rules import MILLION, Rule, rule_of

type Floats = npt.NDArray[np.float32]
type Numbers = npt.NDArray[np.int64]

BUDGETS = (10_000, 50_000)
WAYS: tuple[Way, ...] = ("none", "whiten")
BANKS = (25, 50, 100)
GROWING = (25, 50, 100, 200, 300)
GROWN = (25, 100, 300, 1000, 3000, 10_000, 30_000)
BACKGROUND, NULL_SHARE = 150, 0.6
"""Images of the background, and the share of what is left after it that is the null."""
SYNTHETIC_NULL, SYNTHETIC_TEST = 2000, 5000
HALVES = 20
CHECKED = 10
"""Fresh draws of the synthetic images that are held against the collection."""
_ROWS_AT_ONCE = 1000
_KINDS = {"none": "normalised", "whiten": "whitened, normalised", "centre": "centered, normalised"}


class Dealt(NamedTuple):
    """Descriptors by role, float32 [n, d], and the null's groups. References in a bank's order."""

    references: Floats
    background: Floats
    null: Floats
    groups: Numbers
    test: Floats


class Resolved(NamedTuple):
    """A bank of so many references: its rules by budget, and the test images' best scores."""

    size: int
    rules: dict[int, Rule]
    test: Floats


def deal(descriptors: Floats, groups: Numbers, references: int, seed: Sequence[int]) -> Dealt:
    """Deal whole groups; what is left of a reference's group has no role.

    Raises ValueError where hardly any would be left for the test.
    """
    random = np.random.default_rng(seed)
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(sizes))
    if len(groups) < 2 * (references + BACKGROUND) or references >= len(sizes):
        raise ValueError(f"{len(groups)} images are too few for a bank of {references}")
    banked, others = order[:references], order[references:]
    first = [int(random.choice(np.flatnonzero(numbers == group))) for group in banked]
    ends = np.cumsum(sizes[others])
    null_end = BACKGROUND + NULL_SHARE * (ends[-1] - BACKGROUND)
    roles = np.searchsorted([BACKGROUND, null_end], ends - 1, side="right")
    background, null, test = (
        np.flatnonzero(np.isin(numbers, others[roles == role])) for role in range(3)
    )
    return Dealt(
        references=descriptors[first],
        background=descriptors[background],
        null=descriptors[null],
        groups=np.unique(numbers[null], return_inverse=True)[1].astype(np.int64),
        test=descriptors[test],
    )


def draw(themes: Themes, references: int, seed: int) -> Dealt:
    """Synthetic images, each alone."""
    sizes = (references, BACKGROUND, SYNTHETIC_NULL, SYNTHETIC_TEST)
    parts = [themes.draw([seed, role], size) for role, size in enumerate(sizes)]
    bank, background, null, test = parts
    return Dealt(bank, background, null, np.arange(len(null)), test)


class Replica:
    """A calibration, learnt from what was dealt, and a bank that grows."""

    def __init__(self, dealt: Dealt, way: Way) -> None:
        calibration = learn(
            "bench",
            dealt.background.astype(np.float16),
            dealt.null[:, None].astype(np.float16),
            dealt.groups,
            way=way,
        )
        self.masked: Masked = calibration.without(())
        project = calibration.project
        self._references = project(torch.from_numpy(dealt.references))
        self._probes = project(calibration.probes)
        test = torch.from_numpy(dealt.test)
        self._test, self._test_offsets = project(test), self.masked.offsets(test).numpy()

    def grow(self, sizes: Sequence[int], budgets: Sequence[int]) -> Iterator[Resolved]:
        """Resolve the budgets at each of these sizes, which ascend."""
        null, test = (np.full(len(rows), -np.inf, np.float32) for rows in self._queries)
        begin = 0
        for size in sizes:
            for some in torch.split(self._references[begin:size], _ROWS_AT_ONCE):
                for best, rows in zip((null, test), self._queries, strict=True):
                    np.maximum(best, (rows @ some.T).amax(dim=1).numpy(), out=best)
            begin = size
            rules = {budget: rule_of(_bank(budget), self.masked, null.copy()) for budget in budgets}
            yield Resolved(size, rules, test - self._test_offsets)

    def growth(self, rule: Rule, size: int, seed: Sequence[int]) -> Growth:
        """How the bank of the first `size` references is expected to grow."""
        assert rule.null is not None
        random = np.random.default_rng(seed)
        similar = (self._probes @ self._references[:size].T).numpy()
        chosen = [random.permutation(size)[: size // 2] for _ in range(HALVES)]
        halves = [
            self.masked.null_scores(similar[:, one].max(axis=1), ("plain",)) for one in chosen
        ]
        return Growth.measure(rule.null, np.stack(halves))

    @property
    def _queries(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._probes, self._test


def _bank(budget: int) -> Bank:
    return Bank(name="bench", label="bench", severity="low", max_false_matches_per_million=budget)


@dataclass
class Kept:
    """How a budget was kept, one value for each split in which it is supported."""

    splits: int
    rates: list[float]
    within: list[bool]
    """Of the splits that have a prediction."""

    @property
    def unsupported(self) -> int:
        return self.splits - len(self.rates)


def kept(deals: Sequence[Dealt], way: Way, sizes: Sequence[int]) -> dict[tuple[int, int], Kept]:
    """By budget and size of the bank."""
    found = {(budget, size): Kept(0, [], []) for budget in BUDGETS for size in sizes}
    for dealt in deals:
        for size, rules, test in Replica(dealt, way).grow(sizes, BUDGETS):
            for budget, rule in rules.items():
                one = found[budget, size]
                one.splits += 1
                if rule.state != "budget" or rule.threshold is None or rule.null is None:
                    continue
                rate = float((test >= rule.threshold).mean())
                one.rates.append(rate)
                predicted = rule.null.prediction(rule.threshold, len(test))
                if predicted is not None:
                    one.within.append(predicted[0] <= rate <= predicted[1])
    return found


@dataclass
class Grown:
    """A bank of one size, one value for each split in which the smallest's budget is supported.

    `fixed` are test rates at the smallest bank's threshold, `resolved` at its own (NaN where it is
    not supported), `null_rates` the null's at the smallest's threshold, `forecasts` what was
    forecast of that: estimate, low and high.
    """

    fixed: list[float]
    resolved: list[float]
    null_rates: list[float]
    forecasts: list[tuple[float, float, float]]


def grown(deals: Sequence[Dealt], way: Way, sizes: Sequence[int]) -> dict[tuple[int, int], Grown]:
    """By budget and size of the bank."""
    found = {(budget, size): Grown([], [], [], []) for budget in BUDGETS for size in sizes}
    for number, dealt in enumerate(deals):
        replica = Replica(dealt, way)
        steps = list(replica.grow(sizes, BUDGETS))
        for budget in BUDGETS:
            first = steps[0].rules[budget]
            if first.state != "budget" or first.threshold is None or first.null is None:
                continue
            growth = replica.growth(first, sizes[0], [number, 2])
            at_first = float((first.null.scores >= first.threshold).mean())
            for size, rules, test in steps:
                one, rule = found[budget, size], rules[budget]
                assert rule.null is not None
                one.fixed.append(float((test >= first.threshold).mean()))
                bar = rule.threshold if rule.state == "budget" else None
                one.resolved.append(np.nan if bar is None else float((test >= bar).mean()))
                now = float((rule.null.scores >= first.threshold).mean())
                one.null_rates.append(now)
                said = growth.forecast(first.null, budget / MILLION, size / sizes[0])
                one.forecasts.append(said.rates(at_first))
    return found


def _table(title: str, *names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    return table


def table_of_kept(deals: Sequence[Dealt], sizes: Sequence[int]) -> Table:
    table = _table(
        "1. Budgets on test images",
        "score", "budget", "bank", "mean rate", "overrun", "within", "not_supported",
    )  # fmt: skip
    for way in WAYS:
        for (budget, size), one in kept(deals, way, sizes).items():
            rates = np.array(one.rates)
            told = ["-", "-"]
            if len(rates):
                over = (rates > budget / MILLION).mean()
                told = [f"{MILLION * rates.mean():,.0f}", f"{over:.1%}"]
            within = f"{np.mean(one.within):.1%} of {len(one.within)}" if one.within else "-"
            unsupported = f"{one.unsupported} of {one.splits}"
            table.add_row(_KINDS[way], f"{budget:,}", f"{size}", *told, within, unsupported)
        table.add_section()
    return table


def table_of_grown(title: str, deals: Sequence[Dealt], sizes: Sequence[int]) -> Table:
    table = _table(
        title,
        "score", "budget", "bank", "fixed", "resolved", "times", "forecast", "low - high", "held",
        "splits",
    )  # fmt: skip
    for way in WAYS:
        for (budget, size), one in grown(deals, way, sizes).items():
            if not one.fixed:
                table.add_row(_KINDS[way], f"{budget:,}", f"{size:,}", *"-------")
                continue
            if size == sizes[0]:
                start = float(np.mean(one.fixed))
            estimate, low, high = MILLION * np.median(one.forecasts, axis=0)
            _, lows, highs = np.array(one.forecasts).T
            rates = np.array(one.null_rates)
            held = (lows <= rates) & (rates <= highs)
            resolved = np.array(one.resolved)[np.isfinite(one.resolved)]
            table.add_row(
                _KINDS[way],
                f"{budget:,}",
                f"{size:,}",
                f"{MILLION * np.mean(one.fixed):,.0f}",
                f"{MILLION * resolved.mean():,.0f}" if len(resolved) else "-",
                f"{np.mean(one.fixed) / start:.1f}" if start else "-",
                f"{estimate:,.0f}",
                f"{low:,.0f} - {high:,.0f}",
                f"{held.mean():.0%}" if size > sizes[0] else "-",
                f"{len(one.fixed)}",
            )
        table.add_section()
    return table


def table_of_likeness(images: Floats, themes: Themes) -> Table:
    """Of images of different groups, and of as many synthetic ones that were not fitted to."""
    table = _table(
        f"3. Likeness of {len(images)} images of different groups, and of synthetic ones",
        "cosine", "pairs", "rate", "95%", "synthetic", "ratio",
        f"of the top {HUBS:.0%}", "95%", "synthetic", "ratio",
    )  # fmt: skip
    found, (low, high) = likeness(images), likeness_limits(images, seed=1)
    drawn = fresh(themes, len(images))
    for at, level in enumerate(LEVELS):
        table.add_row(
            f"{level}",
            f"{found.pairs[at]:.0f}",
            *_compared(found.rates[at], low.rates[at], high.rates[at], drawn.rates[at], ".2e"),
            *_compared(found.hubs[at], low.hubs[at], high.hubs[at], drawn.hubs[at], ".2f"),
        )
    return table


def fresh(themes: Themes, n: int) -> Likeness:
    """On average over draws that were not fitted to."""
    found = [likeness(themes.draw([CHECKED, draw], n)) for draw in range(CHECKED)]
    return Likeness(*np.nanmean(np.array(found), axis=0))


def _compared(real: float, low: float, high: float, drawn: float, form: str) -> list[str]:
    values = f"{real:{form}}", f"{low:{form}} - {high:{form}}", f"{drawn:{form}}"
    return [*values, f"{drawn / real:.2f}"]


def one_a_group(descriptors: Floats, groups: Numbers) -> Floats:
    return descriptors[np.unique(groups, return_index=True)[1]]


def report(
    descriptors: Floats,
    groups: Numbers,
    splits: int,
    draws: int,
    show: Callable[[Table], object],
    banks: Sequence[int] = BANKS,
    growing: Sequence[int] = GROWING,
    grown_to: Sequence[int] = GROWN,
    steps: int = STEPS,
) -> None:
    """Show the tables. Descriptors are float32 [n, d], L2-normalised."""

    def deals(references: int) -> list[Dealt]:
        return [deal(descriptors, groups, references, [number, 1]) for number in range(splits)]

    show(table_of_kept(deals(max(banks)), banks))
    show(table_of_grown("2. A bank that grows", deals(max(growing)), growing))
    images = one_a_group(descriptors, groups)
    themes = Themes.fit(images, seed=1, steps=steps)
    show(table_of_likeness(images, themes))
    drawn = [draw(themes, max(grown_to), number) for number in range(draws)]
    show(table_of_grown("3. A synthetic bank that grows", drawn, grown_to))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a collection: folder or .npz")
    parser.add_argument("--model", help="the settings' model unless given")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--draws", type=int, default=5, help="of the synthetic bank")
    options = parser.parse_args()
    settings = load_settings(None)
    model = with_model(settings.model, options.model)
    settings = settings.model_copy(update={"model": model})
    found = collecting.read(options.images, settings, embedders.load(model))
    descriptors = found.plain.astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    groups = found.grouping.groups
    print(f"{len(found)} images of {groups.max() + 1} groups, {options.splits} splits")
    report(descriptors, groups, options.splits, options.draws, Console(width=140).print)


if __name__ == "__main__":
    main()
