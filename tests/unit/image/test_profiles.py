"""Profiles of gamma and of code points; the levels were measured in Chromium 156."""

import numpy as np
import pytest

from worker.image.icc import parse
from worker.image.profiles import (
    CURVES_OF_TRANSFER,
    PRIMARIES,
    columns_of,
    is_known_nclx,
    profile_of_cicp,
    profile_of_gamma,
    profile_of_nclx,
)

P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
GREYS = np.repeat(np.arange(0, 256, 32)[:, None] / 255, 3, axis=1)


def shown(icc: bytes, levels: np.ndarray = GREYS) -> np.ndarray:
    return 255 * parse(icc).srgb(levels)


@pytest.mark.parametrize(
    ("gamma", "chromaticities"),
    [
        (0.45455, None),
        (0.44, None),
        (0.475, None),
        (0.0, P3),
        (0.45455, (0.3127, 0.329, 0.3, 0.6, 0.3, 0.6, 0.3, 0.6)),  # no colours
        (1.0, (0.3127, 0.329, 5.0, 0.33, 0.3, 0.6, 0.15, 0.06)),
        (1.0, (0.0,) * 8),
    ],
)
def test_gamma_that_changes_nothing(gamma, chromaticities) -> None:
    assert profile_of_gamma(gamma, chromaticities) == b""


@pytest.mark.parametrize(
    ("gamma", "levels"),
    [
        (1.0, [0, 99, 137, 165, 188, 208, 225, 241]),
        (5.0, [0, 212, 226, 234, 240, 245, 249, 252]),
        (0.00001, [0] * 8),
        (40_000.0, [0] + [255] * 7),
    ],
)
def test_gamma(gamma: float, levels: list[int]) -> None:
    assert np.abs(shown(profile_of_gamma(gamma, None))[:, 0] - levels).max() < 1


def test_chromaticities_count() -> None:
    icc = profile_of_gamma(0.45455, P3)
    assert np.abs(shown(icc)[:, 0] - [0, 26, 62, 96, 129, 161, 193, 225]).max() < 1
    red = shown(icc, np.array([[0.8, 0.2, 0.2]]))[0]
    assert red[0] > 215
    assert red[1] < 30
    white_d50 = (0.3457, 0.3585, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    pure = shown(profile_of_gamma(0.45455, white_d50), np.eye(3))
    assert np.abs(pure - [[255, 16, 25], [0, 255, 47], [0, 0, 251]]).max() < 1.5


def test_a_white_without_light_is_black() -> None:
    icc = profile_of_gamma(0.45455, (0.3127, 0.0, 0.3, 0.6, 0.15, 0.06, 0.64, 0.33))
    assert not shown(icc).any()


@pytest.mark.parametrize(
    ("transfer", "levels"),
    [
        *((one, [0, 20, 54, 87, 121, 155, 189, 222]) for one in (1, 6, 11, 14, 15)),
        (4, [0, 26, 62, 96, 129, 161, 193, 225]),
        (5, [0, 10, 40, 72, 106, 142, 179, 217]),
        (7, [0, 50, 81, 112, 141, 170, 199, 228]),
        (8, [0, 99, 137, 165, 188, 208, 225, 241]),
        (16, [0, 5, 30, 70, 132, 213, 255, 255]),
        (17, [0, 15, 48, 83, 118, 154, 191, 228]),
        (18, [0, 14, 43, 71, 99, 135, 189, 228]),
    ],
)
def test_transfers(transfer: int, levels: list[int]) -> None:
    most = 7 if transfer in (16, 18) else 1  # a table's steps
    for primaries in (1, 9):
        found = shown(profile_of_cicp(primaries, transfer))
        assert np.abs(found[:, 1] - levels).max() < most


@pytest.mark.parametrize(
    ("primaries", "pure"),
    [
        (4, [[255, 0, 0], [0, 250, 0], [0, 75, 255]]),
        (5, [[255, 0, 0], [0, 255, 28], [0, 0, 254]]),
        (6, [[248, 36, 0], [63, 251, 0], [26, 35, 255]]),
        (10, [[255, 0, 71], [0, 255, 0], [0, 56, 255]]),
        (22, [[255, 38, 0], [0, 249, 0], [4, 51, 255]]),
    ],
)
def test_primaries(primaries: int, pure: list[list[int]]) -> None:
    assert np.abs(shown(profile_of_cicp(primaries, 13), np.eye(3)) - pure).max() < 1.5


@pytest.mark.parametrize(
    "points", [(1, 13), (1, 2), (9, 2), (9, 12), (9, 0), (3, 8), (2, 8), (0, 8), (23, 8), (1, 19)]
)
def test_code_points_that_change_nothing(points: tuple[int, int]) -> None:
    assert profile_of_cicp(*points) == b""


def test_a_narrow_range_is_ignored() -> None:
    assert profile_of_cicp(9, 16)
    assert profile_of_cicp(9, 16, full_range=False) == b""


def test_an_avif_is_not_shown_as_a_television() -> None:
    for transfer in (1, 2, 6, 13, 14, 15):
        assert profile_of_nclx(1, transfer) == b""
        assert profile_of_nclx(9, transfer) == profile_of_cicp(9, 13)
    assert profile_of_nclx(9, 16) == profile_of_cicp(9, 16)
    assert not is_known_nclx(9, 11)
    assert not is_known_nclx(2, 13)


def test_every_code_point_makes_a_profile() -> None:
    for primaries in PRIMARIES:
        assert columns_of(PRIMARIES[primaries]) is not None
        for transfer in CURVES_OF_TRANSFER:
            icc = profile_of_cicp(primaries, transfer)
            assert (icc == b"") == ((primaries, transfer) == (1, 13))
