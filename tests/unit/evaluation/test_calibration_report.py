"""What is told of benign images whose scores are high, with made-up descriptors."""

from datetime import UTC, datetime
from types import MappingProxyType

import numpy as np
import pytest
import torch

from worker.evaluation import calibration_report
from worker.evaluation.calibrating import Options, calibrate
from worker.evaluation.calibration_report import BankReport, CalibrationReport, near
from worker.evaluation.collection import Collection
from worker.evaluation.groups import Fingerprints, Grouping
from worker.hotset.types import Bank, Descriptors, Reference
from worker.records import Model
from worker.scoring.null import Null, Threshold
from worker.scoring.rules import Rule

IMAGES, DIMS, LOOKS = 400, 24, ("plain", "centre_crop")


def directions(random, *shape):
    rows = random.standard_normal((*shape, DIMS))
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def made():
    random = np.random.default_rng(5)
    collection = Collection(
        model=Model("model", "ab" * 32, DIMS, "square"),
        looks=LOOKS,
        names=tuple(f"{number}.jpg" for number in range(IMAGES)),
        descriptors=directions(random, IMAGES, len(LOOKS)),
        fingerprints=Fingerprints([""] * IMAGES, np.zeros((IMAGES, 32), np.uint8),
                                  np.zeros(IMAGES, np.uint8)),
        grouping=Grouping(np.arange(IMAGES) // 2, {}),
    )  # fmt: skip
    return calibrate(collection, Options(way="centre", background=100))


@pytest.fixture(scope="module")
def described():
    random = np.random.default_rng(6)
    return [
        (
            Reference(
                reference_id=f"bad-{number}",
                bank="bad",
                source=f"list {number}" if number % 2 else None,
                added_by="me",
                added_at=datetime.now(UTC),
            ),
            Descriptors(("plain", "inverted"), directions(random, 2)),
        )
        for number in range(9)
    ]


@pytest.fixture(scope="module")
def masked(made):
    return made.calibration.without(())


@pytest.fixture(scope="module")
def similar(made, described):
    """Of each look of each null image to each reference: [n, looks, references]."""
    known = made.calibration
    rows = [known.project(torch.from_numpy(one.rows.astype(np.float32))) for _, one in described]
    return np.stack([(known.projected_probes @ one.T).amax(dim=1).numpy() for one in rows], 1)


@pytest.fixture(scope="module")
def null(masked, similar):
    return Null(masked.null_scores(similar.max(axis=1), LOOKS), masked.groups)


def test_groups_are_told_on_both_sides_with_what_they_resemble(
    made, masked, null, described, similar
):
    threshold = float(np.sort(null.scores)[-12])
    found = near(made, masked, null, threshold, described)
    reaching, below = ([one for one in found if one.reaches is it] for it in (True, False))
    told = {name for one in reaching for name in one.names}
    high = made.null[null.scores >= threshold]
    assert told == {f"{number}.jpg" for number in high.tolist()}
    assert 5 < len(reaching) == len(null.groups_reaching(threshold)) <= 12
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert len(below) == 6
    assert below[0].score < threshold
    assert all(len(one.names) == 2 for one in below)  # all of the group, for none reaches it
    scored = similar.reshape(-1, 2, len(described)) - masked.null_offsets[:, :, None]
    places = {made.collection.names[number]: at for at, number in enumerate(made.null.tolist())}
    for one in found:
        of_image = scored[places[one.names[0]]].max(axis=0)
        assert one.score == pytest.approx(of_image.max(), abs=1e-5)
        assert one.reference_id == f"bad-{of_image.argmax()}"
        assert one.source == (f"list {of_image.argmax()}" if of_image.argmax() % 2 else None)


def test_without_a_threshold_the_highest_are_told(made, masked, null, described):
    found = near(made, masked, null, None, described)
    assert found[0].score == null.scores.max()
    assert not any(one.reaches for one in found)


def test_copies_that_are_set_aside_are_not_told(made, null, described, similar):
    """Numbers of the images that are left are no numbers of all."""
    kept = np.ones(len(made.null), dtype=bool)
    kept[null.scores.argmax()] = False
    known = made.calibration.without(())
    masked = type(known)(
        known.calibration, known.copies, known.background, known.null_offsets, kept
    )
    scores = masked.null_scores(similar.max(axis=1), LOOKS)
    found = near(made, masked, Null(scores, masked.groups), None, described)
    assert found[0].score == np.sort(null.scores)[-2]
    assert found[0].names[0] == made.collection.names[made.null[np.argsort(null.scores)[-2]]]


def test_a_bank_without_a_rule_has_its_null_and_a_note(made, masked, null, described, tmp_path):
    bank = Bank(name="bad", label="<bad>", severity="low", threshold=0.6)
    rule = Rule("other_calibration")
    near_it = near(made, masked, null, None, described)
    one = BankReport(bank, rule, rule, null, len(described), None, near_it)
    assert one.sentences[0].startswith(
        "Under this calibration it would match nothing: its threshold"
    )
    told = one.document()
    assert told["null_groups"] == null.distinct
    assert told["near"][0]["reference_id"] == near_it[0].reference_id
    page = tmp_path / "page.html"
    calibration_report.write(CalibrationReport(made, MappingProxyType({}), [one]), page)
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "a collection (.npz) has none" in html
    assert "&lt;bad&gt;" in html
    assert near_it[0].reference_id in html
    assert page.stat().st_mode & 0o777 == 0o600


def test_the_page_tells_who_reaches_the_threshold_and_who_is_below(
    made, masked, null, described, tmp_path
):
    budget = 30_000.0
    found = null.threshold(budget / 1e6)
    assert isinstance(found, Threshold)
    bank = Bank(name="bad", label="bad", severity="low", max_false_matches_per_million=budget)
    rule = Rule("budget", found.score, null)
    near_it = near(made, masked, null, found.score, described)
    one = BankReport(bank, rule, rule, null, len(described), None, near_it)
    page = tmp_path / "page.html"
    calibration_report.write(CalibrationReport(made, MappingProxyType({}), [one]), page)
    html = page.read_text()
    reach, below = html.index("They reach the threshold of"), html.index("Just below the threshold")
    for group in near_it:
        at = html.index(f"{group.score:.4f}</td>")
        assert (reach < at < below) if group.reaches else below < at
