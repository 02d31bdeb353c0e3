import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from worker.evaluation.choices import ALL, Bank, Choice, Comparison, Normalisation, hash_scores
from worker.scoring.projection import whitening


def test_names():
    for name in ALL:
        assert Choice.parse(name).name == name
    assert Choice.parse("views + whitened").name == "whitened+views"
    assert Choice.parse("cosine+views") == Choice.parse("views")
    assert [one.name for one in Choice.parse("normalised+views").without()] == [
        "views",
        "normalised",
    ]
    assert Choice.parse("pdq").is_hash
    assert not Choice.parse("cosine").is_hash
    assert Choice.parse("centered+views").needs_background
    assert not Choice.parse("views").needs_background


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "'' is none of cosine, centered"),
        ("euclidean", "'euclidean' is none of"),
        ("pdq+views", "goes with nothing else"),
        ("centered+whitened", "centres already"),
    ],
)
def test_what_is_no_choice(name, why):
    with pytest.raises(ValueError, match=why):
        Choice.parse(name)


def unit(seed, n, d=8):
    return normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float())


BANK = Bank(references=unit(1, 5), inverted=unit(2, 5), background=unit(3, 40))
QUERIES = unit(4, 7)


def scores(name, normalisation=Normalisation()):  # noqa: B008 - frozen
    return Comparison(Choice.parse(name), BANK, normalisation).scores(QUERIES)


def test_scores_of_descriptors():
    cosines = QUERIES @ BANK.references.T
    both = torch.maximum(cosines, QUERIES @ BANK.inverted.T)
    offset = (QUERIES @ BANK.background.T).topk(3).values.mean(dim=1, keepdim=True)
    assert torch.equal(scores("cosine"), cosines)
    assert torch.equal(scores("views"), both)
    assert torch.allclose(scores("normalised"), cosines - 0.5 * offset)
    assert torch.allclose(scores("normalised+views"), both - 0.5 * offset)
    strong = Normalisation(k=1, beta=1.0)
    nearest = (QUERIES @ BANK.background.T).amax(dim=1, keepdim=True)
    assert torch.allclose(scores("normalised", strong), cosines - nearest)
    project = whitening(BANK.background)
    white = project(QUERIES) @ project(BANK.references).T
    assert torch.allclose(scores("whitened"), white, atol=1e-6)


def test_a_large_background_is_trusted_with_more():
    assert [Normalisation().beta_for(n) for n in (999, 1000)] == [0.5, 1.0]
    assert Normalisation(beta=0.7).beta_for(1000) == 0.7


def test_scores_of_hashes():
    queries = np.array([[0b1111], [0]], np.uint8).repeat(32, axis=1)
    versions = np.zeros((3, 2, 32), np.uint8)
    versions[1, 0] = 0b1011
    versions[1, 1] = 255
    versions[2] = 0b0001
    found = hash_scores(queries, versions)
    assert found.tolist() == [[-128, -32, -96], [0, -96, -32]]
