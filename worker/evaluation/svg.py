"""Plots as inline SVG, which take the page's colours and fonts, light or dark."""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

# Colours that stand for the page's own: each is replaced by a variable of its style sheet.
INK, QUIET, COPY, BENIGN, LIMIT = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = [f"#0a00{number:02x}" for number in range(10)]
VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--line)",
    COPY: "var(--copy)",
    BENIGN: "var(--benign)",
    LIMIT: "var(--limit)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 9,
    "grid.color": QUIET,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # names of banks may have a dollar
}

_ROUND, _NARROW = (1.0, 2.0, 5.0), 300
"""Tick at 1, 2, 5, 10 where an axis spans less than that factor, else at powers of ten."""


class Plot:
    """One plot while it is drawn on its `axes`, or `cells`; afterwards its `svg` is there."""

    def __init__(
        self, title: str, width: float, height: float, rows: int, columns: int, *, sharey: bool
    ) -> None:
        self.title = title
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self.figure.patch.set_alpha(0)
        cells = self.figure.subplots(rows, columns, squeeze=False, sharey=sharey)
        self.cells: list[Axes] = cells.ravel().tolist()
        for axes in self.cells:
            axes.patch.set_alpha(0)
        self.axes = self.cells[0]
        self.svg = ""


@contextmanager
def plot(
    title: str,
    width: float = 6.4,
    height: float = 3.0,
    rows: int = 1,
    columns: int = 1,
    *,
    sharey: bool = False,
) -> Iterator[Plot]:
    """Draw within; `svg` of what is yielded is then an `<svg>` element without a size of its own.

    Two plots of a page must not share a title, which readers of screens are told. Inches.
    """
    # What is referred to has an id made from what is drawn and this salt: unique in the page.
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        drawn = Plot(title, width, height, rows, columns, sharey=sharey)
        yield drawn
        drawn.svg = _svg(drawn)


def logarithmic(axes: Axes, name: Literal["x", "y"], places: Sequence[float] = ()) -> None:
    """Make an axis logarithmic, with plain numbers at these places, or at round ones.

    To be called when all is drawn: the round ones are within what is shown.
    """
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    if places:
        axis.set_major_locator(FixedLocator([float(place) for place in places]))
    else:
        low, high = sorted(axis.get_view_interval())
        axis.set_major_locator(LogLocator(subs=_ROUND if high < _NARROW * low else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _svg(drawn: Plot) -> str:
    file = io.StringIO()
    drawn.figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = f'role="img" aria-label="{html.escape(drawn.title)}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', lambda found: f"{found[1]} {label}", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups, the same in every plot
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
