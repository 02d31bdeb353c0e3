import numpy as np
import pytest

from tests.fixtures.galleries import gallery
from worker.evaluation import splits
from worker.evaluation.choices import Choice, Normalisation
from worker.evaluation.gallery import Comparing, System, banks, trial
from worker.evaluation.metrics import average_precision, recall_at_precision, recall_at_rate
from worker.evaluation.splits import Split
from worker.evaluation.trials import RATES

KNOWN = gallery(1)
SPLIT = splits.make(KNOWN.groups, splits.hosts(KNOWN.groups, 1), 1, 1)[0]
ALL = Comparing(Normalisation(), nearest=100)


def made(choice="cosine", split=SPLIT, comparing=ALL, model="model"):
    system = System(Choice.parse(choice), model)
    return trial(KNOWN, system, split, banks(KNOWN, split), comparing)


def counted(split, benign=slice(None)):
    """The figures of the plain cosine, straight from their definitions."""
    rows = KNOWN.models["model"].descriptors.astype(np.float32)
    known = rows[split.references, 0]
    copies = rows[split.references, 1:] @ known.T
    negatives = (rows[split.negatives][:, benign] @ known.T).reshape(-1, len(known))
    own = np.stack([copies[n, :, n] for n in range(len(known))])
    right = np.zeros(copies.shape, bool)
    for n in range(len(known)):
        right[n, :, n] = True
    everything = np.concatenate([copies.ravel(), negatives.ravel()])
    flags = np.concatenate([right.ravel(), np.zeros(negatives.size, bool)])
    recalls = [recall_at_rate(own.ravel(), negatives.max(axis=1), rate) for rate in RATES]
    return [
        *recalls,
        recall_at_precision(everything, flags, own.size),
        average_precision(everything, flags, own.size),
    ]


def test_figures_are_what_they_are_defined_to_be():
    found = made().measure(np.ones(len(KNOWN.names)))
    assert found["overall"] == pytest.approx(counted(SPLIT), abs=1e-6)
    assert found["edits"].mean(axis=0) == pytest.approx(found["overall"][:3])
    assert found["edits"][:-1].mean(axis=0) == pytest.approx(found["upright"][:3])
    plain = Comparing(Normalisation(), nearest=100, benign="unedited")
    found = made(comparing=plain).measure(np.ones(len(KNOWN.names)))
    assert found["overall"] == pytest.approx(counted(SPLIT, slice(1)), abs=1e-6)


def test_a_picture_without_weight_is_not_there():
    gone = {int(SPLIT.references[2]), int(SPLIT.negatives[1]), int(SPLIT.negatives[5])}
    rest = Split(
        *(np.array([n for n in role if n not in gone]) for role in (
            SPLIT.references, SPLIT.negatives, SPLIT.background, SPLIT.null))
    )  # fmt: skip
    weights = np.ones(len(KNOWN.names))
    weights[list(gone)] = 0
    everyone = np.ones(len(KNOWN.names))
    for choice in ("cosine", "views", "normalised"):
        one, other = made(choice).measure(weights), made(choice, rest).measure(everyone)
        for name in ("overall", "upright", "edits", "forms", "carried"):
            assert one[name] == pytest.approx(other[name], nan_ok=True), name


def test_more_weight_is_more_pictures():
    weights = np.ones(len(KNOWN.names))
    weights[SPLIT.references[:3]] = 1000
    found = made().measure(weights)["overall"][1]
    best = made().negatives.best(np.ones(len(weights)))
    own = made().own.reshape(len(SPLIT.references), -1)
    assert found == pytest.approx(recall_at_rate(own[:3].ravel(), best, 1e-3), abs=0.02)


def test_what_sets_an_operating_point():
    one = made()
    negative, form, reference = one.point_setter(0)
    rows = KNOWN.models["model"].descriptors.astype(np.float32)
    assert rows[negative, form] @ rows[reference, 0] == pytest.approx(one.negatives.scores.max())
    assert negative in SPLIT.negatives
    assert reference in SPLIT.references
    assert one.recall_against_rate([1.0]) == 1
    assert one.recall_against_rate([0.0]) == one.measure(np.ones(60))["overall"][2]


def test_nothing_to_measure():
    assert np.isnan(made().measure(np.zeros(60))["overall"]).all()


def test_hashes():
    found = made("pdq_dihedral", model=None)
    assert found.own.max() <= 0
    assert found.own == pytest.approx(made("pdq", model=None).own)
