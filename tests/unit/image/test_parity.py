"""To a model's size as its publisher does it; and what decoding a JPEG scaled costs."""

import io

import numpy as np
import pytest
from birder.data.transforms.classification import get_rgb_stats, inference_preset
from PIL import Image
from torchvision import transforms

from tests.fixtures.conformance import PHOTOGRAPHS
from tests.fixtures.writers import photograph
from worker.descriptor import embedders
from worker.image.preprocess import decode, resize
from worker.records import Preprocessing
from worker.settings import Limits, ModelSettings

LEAST_COSINE = 0.99
MOST_GREY_LEVELS = 1.0


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_birders_own_transform_gives_the_same(name):
    """The largest difference is 0 before normalisation."""
    picture = photograph(name)
    stats = get_rgb_stats("imagenet")
    theirs = inference_preset((320, 320), stats, 1.0)(picture).numpy()
    ours = resize(np.asarray(picture), Preprocessing("birder", 320, "bicubic"))
    levels = (theirs.transpose(1, 2, 0) * stats["std"] + stats["mean"]) * 255
    assert np.abs(levels - ours).max() < 1e-3
    assert np.array_equal(np.round(levels), ours)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_sscds_own_transform_gives_the_same(name):
    """Its "skew" evaluation; the largest difference is 0."""
    picture = photograph(name)
    theirs = transforms.Compose([transforms.Resize((320, 320)), transforms.PILToTensor()])(picture)
    ours = resize(np.asarray(picture), Preprocessing("sscd", 320, "bilinear"))
    assert np.array_equal(theirs.numpy().transpose(1, 2, 0), ours)


@pytest.mark.parametrize("width", [2000, 4000])
def test_scaled_decoding_hardly_moves_a_descriptor(width):
    """Photographs enlarged to a camera's size, with its noise."""
    model = embedders.load(ModelSettings(name="sscd_disc_mixup_int8", device="cpu", threads=2))
    random, looks = np.random.default_rng(0), []
    for name in PHOTOGRAPHS:
        picture = photograph(name)
        size = width, width * picture.height // picture.width
        large = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
        large += 6 * random.standard_normal(large.shape, np.float32)
        stream = io.BytesIO()
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=88)
        whole = decode(stream.getvalue(), Limits()).pixels
        scaled = decode(stream.getvalue(), Limits(), target=320).pixels
        assert scaled.shape[0] < whole.shape[0]
        looks += [resize(pixels, model.preprocessing) for pixels in (whole, scaled)]
    full, part = model.describe(np.stack(looks)).reshape(len(PHOTOGRAPHS), 2, -1).unbind(1)
    assert float((full * part).sum(-1).min()) >= LEAST_COSINE
    difference = np.abs(np.stack(looks[::2]).astype(int) - np.stack(looks[1::2]))
    assert difference.mean() < MOST_GREY_LEVELS
