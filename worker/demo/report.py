"""The report: one page that stands alone, and the same figures for machines."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from worker.demo import plots
from worker.demo.findings import Findings, Outcome
from worker.demo.pictures import Picture
from worker.demo.uploads import thumbnail
from worker.events import Match

SHOWN_PER_REFERENCE = 16
SHOWN_BENIGN = 16


@dataclass(frozen=True, slots=True)
class Recognised:
    """One reference with the copies of it, found ones first by score: repeats collapsed."""

    name: str
    picture: bytes
    found: Sequence[Outcome]
    missed: Sequence[Outcome]

    @property
    def match(self) -> Match | None:
        """A match in its bank, which tells the bank's policy."""
        return next((one.match for one in self.found if one.match), None)


def write(found: Findings, references: Sequence[Picture], out: Path) -> Path:
    """Write `report.json` and `report.html` into `out`; returns the page."""
    document = found.document()
    (out / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        found=found,
        figures=document,
        made_at=datetime.now(UTC),
        recognised=[_recognised(picture, found.outcomes) for picture in references],
        benign=_hardest(found.outcomes),
        broken=[one for one in found.outcomes if one.upload.kind == "broken"],
        shown=SHOWN_PER_REFERENCE,
        plots=_plots(found),
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _recognised(picture: Picture, outcomes: Sequence[Outcome]) -> Recognised:
    copies = sorted(
        (one for one in outcomes if one.upload.expected == picture.name),
        key=lambda one: -(one.score or 0.0),
    )
    return Recognised(
        name=picture.name,
        picture=thumbnail(picture.image),
        found=[one for one in copies if one.as_expected],
        missed=[one for one in copies if not one.as_expected],
    )


def _hardest(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Of each benign picture the upload that came closest to a reference; the closest first."""
    benign = [one for one in outcomes if one.upload.kind == "benign"]
    ascending = sorted(benign, key=lambda one: one.score or 0.0)
    hardest = {one.upload.picture: one for one in ascending}
    return sorted(hardest.values(), key=lambda one: -(one.score or 0.0))[:SHOWN_BENIGN]


def _plots(found: Findings) -> Mapping[str, Markup]:
    """Drawn by matplotlib from numbers and our own words: safe to stand in the page as they are."""
    return {
        "scores": Markup(plots.scores(found)),  # noqa: S704
        "recall": Markup(plots.recall(found.recall)),  # noqa: S704
        "latency": Markup(plots.latency(found.latencies)),  # noqa: S704
    }


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
