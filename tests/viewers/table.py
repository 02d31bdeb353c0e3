"""The table in docs/viewers.md: each file of the corpus beside what Chromium shows of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.viewers.browser import Browser
from tests.viewers.corpus.all import ALL
from tests.viewers.corpus.case import Case
from tests.viewers.measuring import Outcome, measure
from tests.viewers.screening import Screener

DOCUMENT = Path(__file__).parents[2] / "docs" / "viewers.md"
TOLERANCE = 0.01
"""Of a cosine, between this machine and the one that wrote the table."""
_BEGIN, _END = "<!-- viewers: make viewers -->\n", "<!-- end of viewers -->\n"
_HEAD = (
    "| Kind | Format | Quirk | Worker | On white | On black | Known picture | Control |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


@dataclass(frozen=True)
class Row:
    """A line of the table, and what does not hold of its case."""

    outcome: Outcome

    @property
    def line(self) -> str:
        outcome, case = self.outcome, self.outcome.case
        result = "screened" if outcome.reason is None else f"`{outcome.reason}`"
        if outcome.problem:
            result += " (**fails**)"
        white, black = ([*map(_number, outcome.cosines[:2]), "", ""])[:2]
        known = _number(max(outcome.known)) if outcome.known else ""
        control = (
            "Chromium" if outcome.shown else ("the picture" if outcome.known else "nothing shown")
        )
        cells = (case.kind, case.format, case.quirk, result, white, black, known, control)
        return "| " + " | ".join(cells) + " |\n"


def _number(value: float) -> str:
    return f"{value + 0.0:.3f}".replace("-0.000", "0.000")


def outcomes(
    progress: Callable[[], object] = lambda: None, cases: Sequence[Case] = ALL
) -> list[Outcome]:
    """Measure the cases whose tools are installed."""
    chosen = [case for case in cases if case.is_makeable]
    with Browser() as browser, Screener() as screener:
        return list(measure(chosen, browser, screener, progress))


def write(measured: Sequence[Outcome]) -> None:
    """Put the table between the document's markers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text[: text.index(_BEGIN)], text[text.index(_END) :]
    lines = "".join(Row(outcome).line for outcome in measured)
    DOCUMENT.write_text(before + _BEGIN + _HEAD + lines + after, encoding="utf-8")


def documented() -> list[str]:
    """The table's lines as the document has them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index(_BEGIN) + len(_BEGIN) : text.index(_END)]
    return table.removeprefix(_HEAD).splitlines(keepends=True)


def differences(measured: Sequence[Outcome]) -> Iterator[str]:
    """Between these outcomes and the document's lines; cosines may differ by `TOLERANCE`."""
    stored = {_key(line): line for line in documented()}
    for outcome in measured:
        line = Row(outcome).line
        known = stored.get(_key(line))
        if known is None:
            yield f"the document lacks {line.strip()}"
        elif not _alike(known, line):
            yield f"{known.strip()} is now {line.strip()}"


def _key(line: str) -> str:
    return "|".join(line.split("|")[1:4])


_COSINE = re.compile(r"(?<=\| )-?[01]\.\d{3}(?= \|)")


def _alike(one: str, other: str) -> bool:
    if _COSINE.sub("", one) != _COSINE.sub("", other):
        return False
    pairs = zip(_COSINE.findall(one), _COSINE.findall(other), strict=True)
    return all(abs(float(left) - float(right)) <= TOLERANCE for left, right in pairs)


def as_json(outcome: Outcome) -> dict[str, object]:
    case = outcome.case
    values = {key: value for key, value in asdict(outcome).items() if key != "case"}
    head = {"kind": case.kind, "format": case.format, "quirk": case.quirk}
    return head | {"expected": case.expected} | values | {"problem": outcome.problem}
