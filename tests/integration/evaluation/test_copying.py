"""Copies of benign images, with the real model."""

from dataclasses import dataclass

import numpy as np
import pytest
import skimage.data
from PIL import Image

from worker.descriptor import embedders
from worker.errors import Unscreenable, UnscreenedReason
from worker.evaluation import collecting, copying
from worker.evaluation.calibrating import Calibrated
from worker.evaluation.edits import EDITS
from worker.scoring.learning import learn
from worker.settings import Limits, ModelSettings, Settings

MODEL = ModelSettings(name="sscd_distilled")
NAMES = ("cat", "coffee", "rocket", "astronaut", "camera", "moon")
PIXELS = 400 * 400
SINGLE = sum("+" not in name for name in EDITS)


@pytest.fixture(scope="module")
def embedder():
    return embedders.load(MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.resize((400, 400)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def made(folder, embedder):
    collection = collecting.read(folder, Settings(model=MODEL), embedder)
    calibration = learn(
        collection.model.sha256, collection.plain[:1], collection.descriptors[1:], np.arange(5)
    )
    return Calibrated(calibration, collection, np.arange(1), np.arange(1, 6))


def test_copies_that_would_not_be_screened_are_left_out(made, folder, embedder):
    """Those that are larger than their picture, which is just within the limit."""
    settings = Settings(model=MODEL, limits=Limits(image_pixels=PIXELS))
    scores, images = copying.copy_scores(made, folder, settings, embedder)
    assert images == 5
    assert 5 * SINGLE / 2 < len(scores) < 5 * SINGLE
    assert np.median(scores) > 0.4


@dataclass
class Failing:
    """The real model, which cannot describe anything any more."""

    embedder: embedders.Embedder

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def describe(self, _pixels):
        raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, "not of norm 1")


def test_nothing_that_can_be_described_is_no_failure(made, folder, embedder):
    scores, images = copying.copy_scores(made, folder, Settings(model=MODEL), Failing(embedder))
    assert (len(scores), images) == (0, 5)


def test_too_few_pictures_have_no_copies(made, folder, embedder):
    few = Calibrated(made.calibration, made.collection, made.background, made.null[:3])
    scores, images = copying.copy_scores(few, folder, Settings(model=MODEL), embedder)
    assert (len(scores), images) == (0, 0)
