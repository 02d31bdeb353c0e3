"""From a collection of benign images to a calibration."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.errors import SettingsError, StartupError
from worker.evaluation.collection import Collection
from worker.evaluation.files import private
from worker.evaluation.words import counted
from worker.image import pdq
from worker.scoring.calibration import Benign, Calibration
from worker.scoring.learning import FEWEST_TO_WHITEN, K, Way, learn
from worker.scoring.projection import SHRINKAGE

BACKGROUND_SHARE = 0.25
MOST_BACKGROUND = 20_000
"""Of the background; more cost time with every upload, and bring next to nothing."""
FEWEST = 40
"""Images, below which there is nothing to calibrate with."""

type Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """How a calibration is to be made. None: as its size suggests."""

    background: int | None = None
    way: Way = "none"
    shrinkage: float = SHRINKAGE
    k: int = K
    beta: float | None = None
    seed: int = 1


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibration, and which images of the collection are its background and its null."""

    calibration: Calibration
    collection: Collection
    background: Numbers
    null: Numbers


def check(images: int, options: Options) -> None:
    """See whether so many images can do, before they are described: some may yet be left out.

    Raises StartupError for too few of them, SettingsError for an option that asks for more.
    """
    if images < FEWEST:
        raise StartupError(
            f"{counted(images, 'image')}: it takes {FEWEST} at least, and to keep a budget"
            " 3,000,000 divided by it in groups of the null, which is three quarters of the images"
        )
    wanted = _wanted(images, options)
    if wanted >= images:
        raise SettingsError(f"--background {wanted}: there are {counted(images, 'image')} in all")
    _check_background(wanted, options)


def _check_background(images: int, options: Options) -> None:
    there = f"{counted(images, 'image')} in the background"
    if options.k > images:
        raise SettingsError(f"--k {options.k}: there are {there}")
    if options.way == "whiten" and images < FEWEST_TO_WHITEN:
        raise StartupError(f"{there}: whitening takes {FEWEST_TO_WHITEN}")


def _wanted(images: int, options: Options) -> int:
    """How many go to the background at most."""
    return options.background or min(MOST_BACKGROUND, int(BACKGROUND_SHARE * images))


def calibrate(collection: Collection, options: Options) -> Calibrated:
    """Deal the groups of a collection into background and null, and learn.

    Raises as `check` does.
    """
    check(len(collection), options)
    background, null = deal(collection.grouping.groups, options)
    _check_background(len(background), options)
    _, groups = np.unique(collection.grouping.groups[null], return_inverse=True)
    calibration = learn(
        collection.model.sha256,
        collection.plain[background],
        collection.descriptors[null],
        groups.astype(np.int64),
        looks=collection.looks,
        way=options.way,
        shrinkage=options.shrinkage,
        k=options.k,
        beta=options.beta,
        benign=_benign(collection, np.concatenate([background, null])),
        checked=tuple(collection.grouping.pairs),
    )
    return Calibrated(calibration, collection, background, null)


def deal(groups: Numbers, options: Options) -> tuple[Numbers, Numbers]:
    """Numbers of the images of the background, and of the null: no group is in both.

    The background has about as many as asked for, and the null what is left.
    """
    wanted = _wanted(len(groups), options)
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(options.seed).permutation(len(sizes))
    # A group goes to the background if it fits: a large one must not take the null's place.
    chosen, room = np.zeros(len(sizes), dtype=bool), wanted
    for one in order:
        if sizes[one] <= room:
            chosen[one] = True
            room -= sizes[one]
    in_background = chosen[numbers]
    if not in_background.any():
        raise StartupError("the images are all of one group: there is none for the background")
    return np.flatnonzero(in_background), np.flatnonzero(~in_background)


def _benign(collection: Collection, chosen: Numbers) -> Benign | None:
    known = collection.fingerprints
    if not any(known.sha256):
        return None
    digests = [known.sha256[number] or "00" * 32 for number in chosen.tolist()]
    return Benign(
        np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32),
        np.ascontiguousarray(known.pdq[chosen]),
        known.quality[chosen] >= pdq.LEAST_QUALITY,
    )


def write(calibrated: Calibrated, path: Path) -> None:
    """Write the artefact, readable by its owner alone: descriptors are sensitive.

    Raises StartupError.
    """
    with private(path) as file:
        file.write_bytes(calibrated.calibration.artefact)
