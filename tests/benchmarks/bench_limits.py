"""How often the limits of false-match rates hold, where the true rates are known.

Each run draws the best scores of benign images from a scenario's distribution, which has a closed
form, and resolves targets from 3/m up; then the table says in how many runs

- `upper`: the true rate at the threshold is within the target (nominal: 95%),
- `lower`: the true rate at the threshold's lower limit is not (nominal: 95%),
- `rate`: the rate stamped on a match at the score of the target has the truth between its limits
  (nominal: 90%, for each limit holds with 95%),
- `unused`: of as many other groups a share reaches the score of the target that is within the
  prediction (nominal: 95%);

and on average over runs the true rate against the target, in multiples of it: at the threshold
(`kept`), and at the estimate, which no threshold is (`estimate`).

python -m tests.benchmarks.bench_limits [--runs 1000] [--distinct 1000 10000] [--only NAME]
"""

import argparse
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import special

from worker.scoring.null import Null, Threshold

type Reals = npt.NDArray[np.float64]
type Numbers = npt.NDArray[np.int64]

TARGETS = (3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 100.0)
"""In exceedances expected among m independent images: rates of so much / m."""
TAILS = {"bounded": -0.3, "exponential": 0.0, "heavy": 0.3}
"""Shapes of the generalised Pareto distribution that scores follow."""
LARGEST = 50
FREEDOM = 4.0
"""Degrees of freedom of the t copula, with which extremes of a group coincide."""
HUB_SHARE = 0.02
"""Groups of the kind that a hub attracts."""
HIGHEST_LIFT = 3.0


def alone(random: np.random.Generator, m: int) -> Numbers:
    del random
    return np.ones(m, np.int64)


def series(random: np.random.Generator, m: int) -> Numbers:
    """A third of the groups have one image; three on average."""
    return random.geometric(1 / 3, m)


def albums(random: np.random.Generator, m: int) -> Numbers:
    """Most have one or two, and a few up to `LARGEST`: half of all images are in groups of 9 up."""
    return np.minimum(random.random(m) ** (-1 / 1.5), LARGEST).astype(np.int64)


@dataclass(frozen=True)
class Scenario:
    """How groups are drawn: their sizes, how their images go together, and what lifts them.

    `alike` is the correlation of a Gaussian copula within groups, of a t copula if `extreme`. Hubs
    lift scores by so many scales of the tail: by 1.5 they lie among the others, by 3 and with a
    bounded tail above them, with a gap.
    """

    name: str
    sizes: Callable[[np.random.Generator, int], Numbers]
    alike: float = 0.0
    extreme: bool = False
    hubs: float = 0.0
    lifted_by_size: float = 0.0

    def draw(self, random: np.random.Generator, m: int, shape: float) -> tuple[Reals, Numbers]:
        sizes = self.sizes(random, m)
        groups = np.repeat(np.arange(m), sizes)
        own = np.sqrt(1 - self.alike) * random.standard_normal(len(groups))
        deviates = own + (np.sqrt(self.alike) * random.standard_normal(m))[groups]
        if self.extreme:
            deviates /= np.sqrt(random.chisquare(FREEDOM, m) / FREEDOM)[groups]
            shares = special.stdtr(FREEDOM, -deviates)
        else:
            shares = special.ndtr(-deviates)
        scores = quantile(shares, shape)
        if self.hubs:
            scores += np.where(random.random(m) < HUB_SHARE, self.hubs, 0.0)[groups]
        return scores + self.lifted_by_size * np.log(sizes)[groups], groups

    def rate(self, scores: Reals, shape: float) -> Reals:
        """The true share of images at or above scores."""
        if self.hubs:
            hit = survival(scores - self.hubs, shape)
            return HUB_SHARE * hit + (1 - HUB_SHARE) * survival(scores, shape)
        if not self.lifted_by_size:
            return survival(scores, shape)
        sizes = np.arange(1, 400)  # of `series`: the rest has a share below 1e-60
        weights = sizes * (2 / 3) ** (sizes - 1)
        lifted = survival(scores[:, None] - self.lifted_by_size * np.log(sizes), shape)
        return np.asarray(lifted @ weights / weights.sum())


SCENARIOS = (
    Scenario("single images", alone),
    Scenario("single images, hubs", alone, hubs=1.5),
    Scenario("series, loose", series, alike=0.5),
    Scenario("series, hubs", series, alike=0.5, hubs=1.5),
    Scenario("series, hubs far above", series, alike=0.5, hubs=HIGHEST_LIFT),
    Scenario("series, larger ones higher", series, alike=0.5, lifted_by_size=0.5),
    Scenario("series, extremes together", series, alike=0.7, extreme=True),
    Scenario("series, all the same", series, alike=1.0),
    Scenario("albums, loose", albums, alike=0.5),
    Scenario("albums, extremes together", albums, alike=0.7, extreme=True),
    Scenario("albums, all the same", albums, alike=1.0, hubs=1.5),
)


def quantile(shares: Reals, shape: float) -> Reals:
    """Scores that these shares reach."""
    return -np.log(shares) if shape == 0 else (shares**-shape - 1) / shape


def survival(scores: Reals, shape: float) -> Reals:
    """Shares that reach these scores."""
    far = np.maximum(scores, 0)
    if shape == 0:
        return np.exp(-far)
    return np.maximum(1 + shape * far, 0) ** (-1 / shape)


class Held(NamedTuple):
    """For each of `TARGETS`, a share of runs or a mean over them."""

    upper: Reals
    lower: Reals
    rate: Reals
    unused: Reals
    kept: Reals
    estimate: Reals


def simulate(scenario: Scenario, shape: float, m: int, runs: int) -> Held:
    """The same for the same arguments, in whatever company."""
    random = np.random.default_rng([zlib.crc32(scenario.name.encode()), m, int(shape * 10) + 10])
    targets = np.array(TARGETS) / m
    # The score of each target, on a fine grid.
    grid = quantile(np.geomspace(1e-9, 1, 20_000)[::-1], shape) * (1 + HIGHEST_LIFT)
    rates = scenario.rate(grid, shape)
    places = np.interp(-np.log(targets), -np.log(np.maximum(rates, 1e-300)), grid)
    truths = scenario.rate(places, shape)
    sums = np.zeros((len(Held._fields), len(targets)))
    for _ in range(runs):
        scores, groups = scenario.draw(random, m, shape)
        null = Null(scores.astype(np.float32), groups)
        found = [_supported(null, target) for target in targets]
        at, low, estimate = (
            scenario.rate(np.array(values), shape)
            for values in zip(*[(one.score, one.low, one.estimate) for one in found], strict=True)
        )
        curve = null.curve(places)
        others, _ = scenario.draw(random, m, shape)
        sums += np.array(
            [
                at <= targets,
                low >= targets,
                (curve.low <= truths) & (truths <= curve.high),
                [_predicted(null, place, others) for place in places],
                at / targets,
                estimate / targets,
            ]
        )
    return Held(*(sums / runs))


def _predicted(null: Null, score: float, others: Reals) -> bool:
    """Also where there is no prediction, as beyond the best score: none is broken then."""
    predicted = null.prediction(score, len(others))
    return predicted is None or bool(predicted[0] <= (others >= score).mean() <= predicted[1])


def _supported(null: Null, rate: float) -> Threshold:
    found = null.threshold(rate)
    assert isinstance(found, Threshold), f"{rate} is not supported by {null.distinct} groups"
    return found


def simulate_all(
    scenarios: Sequence[Scenario], distinct: Sequence[int], runs: int, processes: int
) -> Iterator[tuple[Scenario, str, int, Held]]:
    cases = [(one, tail, m) for m in distinct for one in scenarios for tail in TAILS]
    with ProcessPoolExecutor(processes) as pool:
        held = pool.map(partial(_simulate, runs=runs), cases)
        for (scenario, tail, m), found in zip(cases, held, strict=True):
            yield scenario, tail, m, found


def _simulate(case: tuple[Scenario, str, int], runs: int) -> Held:
    scenario, tail, m = case
    return simulate(scenario, TAILS[tail], m, runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--distinct", type=int, nargs="+", default=[1000, 10_000], help="m")
    parser.add_argument("--only", default="", help="scenarios whose names begin so")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("scenario", "tail", "m", ""):
        table.add_column(name)
    for target in TARGETS:
        table.add_column(f"{target:g}/m", justify="right")
    uppers = []
    scenarios = [one for one in SCENARIOS if one.name.startswith(options.only)]
    if not scenarios:
        parser.error(f"no scenario begins with {options.only!r}")
    for scenario, tail, m, held in simulate_all(
        scenarios, options.distinct, options.runs, options.processes
    ):
        uppers.append(held.upper)
        what = scenario.name, tail, f"{m:,}"
        for name, values in zip(Held._fields, held, strict=True):
            percent = name in {"upper", "lower", "rate", "unused"}
            cells = [f"{100 * one:.1f}%" if percent else f"{one:.2f}" for one in values]
            table.add_row(*(what if name == "upper" else ("", "", "")), name, *cells)
        table.add_section()
    Console(width=140).print(table)
    held_by = np.array(uppers)
    within = np.mean((held_by >= 0.92) & (held_by <= 0.98))
    print(
        f"upper limits of {held_by.size} thresholds held in {100 * held_by.min():.1f} to "
        f"{100 * held_by.max():.1f}% of {options.runs:,} runs; "
        f"{100 * within:.1f}% of them within 92 to 98%"
    )


if __name__ == "__main__":
    main()
