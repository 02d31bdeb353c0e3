"""The resize is torchvision's."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Resize

from worker.image.preprocess import resize
from worker.records import Preprocessing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(480, 640), (1200, 90), (37, 53), (320, 320)])
def test_equals_torchvision_on_pil_images(shape: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    preprocessing = Preprocessing("test", 320, interpolation)  # type: ignore[arg-type]
    ours = resize(pixels, preprocessing)
    theirs = Resize((320, 320), InterpolationMode(interpolation))(Image.fromarray(pixels))
    assert np.array_equal(ours, np.asarray(theirs))
    assert ours.dtype == np.uint8
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


def test_is_antialiased() -> None:
    """Every 8th column is white: without antialiasing, 1/8 would hit it or miss it altogether."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 255
    small = resize(stripes, Preprocessing("test", 32, "bilinear"))
    assert 20 < small.mean() < 45
    assert small.max() < 80
