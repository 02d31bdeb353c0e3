"""Small pictures that are nothing like one another."""

import numpy as np
import pytest
from PIL import Image

from worker.demo import uploads
from worker.demo.pictures import Picture


def made(name: str, seed: int) -> Picture:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Picture(name, Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC))


@pytest.fixture
def references():
    return [made(f"reference-{n}", n) for n in range(3)]


@pytest.fixture
def benign():
    return [made(f"benign-{n}", 100 + n) for n in range(3)]


@pytest.fixture
def planned(references, benign):
    return uploads.plan(references, benign, 60, "http://127.0.0.1:1")
