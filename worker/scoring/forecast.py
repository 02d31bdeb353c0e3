"""What to expect of a bank that grows: a forecast, for the null of the larger bank is not measured.

It is learnt from random halves of the bank, on the same benign images. How much more often the
whole is reached than its halves says how rates grow: twofold where each reference has benign images
of its own, less where references share them. How much the halves differ says how far single
references, hubs, carry the rate. With `spread` the relative variance of a rate over halves, which
is that of a mean over the references there are, a bank `factor` times as large is off by
spread * (factor - 1) / factor: the mean of what is to come and its own draw are both uncertain, and
what is there is known.

That holds for more references of the same kind, drawn like those that are there. It does not carry
over to another kind of pictures, and forecasts were off by more than chance: that is added.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from worker.scoring.limits import DEVIATE, FAR, Floats
from worker.scoring.null import Null, Threshold, Unsupported

OFF_TENFOLD = 1.6
"""Measured: rates extrapolated from 20 to 200 references were off by this factor."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of a bank with `factor` times as many references of the same kind.

    A rate that is small is then `estimate` times the present one, from `low` to `high` times with
    95% confidence each, present uncertainty apart. `threshold` is what would keep the rate that was
    asked for, by `high`.
    """

    factor: float
    estimate: float
    low: float
    high: float
    threshold: Threshold | Unsupported

    def rates(self, rate: float) -> tuple[float, float, float]:
        """Estimate, low and high of a rate, 0 to 1, that is `rate` now.

        1 - (1 - rate) ** times: an image that several references match is one false match.
        """
        estimate, low, high = (
            1 - (1 - rate) ** times for times in (self.estimate, self.low, self.high)
        )
        return estimate, low, high


@dataclass(frozen=True, slots=True)
class Growth:
    """How a bank's rates grow with it: as references ** `exponent`, 0 to 1, with `spread`."""

    exponent: float
    spread: float

    @classmethod
    def measure(cls, null: Null, halves: Floats) -> Self:
        """From best scores against random halves of the bank's references, float32 [halves, n].

        In the null's order of images; ten halves or more, each drawn anew, are advisable. Where
        `FAR` groups reach the whole bank, or all if there are fewer. Raises ValueError for fewer
        than two halves, another number of images or none, or a half that scores above the whole.
        """
        if halves.ndim != 2 or len(halves) < 2 or halves.shape[1:] != null.scores.shape:  # noqa: PLR2004 - halves by images; two
            raise ValueError(
                f"a forecast takes two halves or more of {len(null.scores)} images, "
                f"not {halves.shape}"
            )
        if not null.distinct:
            raise ValueError("a forecast takes at least one image")
        if (halves > null.scores).any():
            raise ValueError("a half of the bank scores above the whole of it")
        score = null.score_of_groups(FAR)
        reached = (halves >= score).mean(axis=1) / (null.scores >= score).mean()
        mean = float(reached.mean())
        if mean == 0:  # one reference in no half
            return cls(1.0, 1.0)
        spread = float(reached.var(ddof=1)) / mean**2
        return cls(float(np.clip(-math.log2(mean), 0, 1)), spread)

    def forecast(self, null: Null, rate: float, factor: float) -> Forecast:
        """For a bank so many times as large that is to keep a rate, as in `Null.threshold`.

        Raises ValueError for a factor below 1.
        """
        if not 1 <= factor < math.inf:
            raise ValueError(f"a bank grows by a factor of 1 or more, not {factor}")
        estimate = factor**self.exponent
        off = math.log(OFF_TENFOLD) * math.log10(factor)
        deviation = math.sqrt(self.spread * (factor - 1) / factor + off**2)
        most = estimate * math.exp(DEVIATE * deviation)
        return Forecast(
            factor=factor,
            estimate=estimate,
            low=estimate * math.exp(-DEVIATE * deviation),
            high=most,
            threshold=null.threshold(rate / most),
        )
