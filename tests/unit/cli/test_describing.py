"""What `bench describe` says of precision: its drift, and whether `auto` keeps the bound."""

from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from worker.cli import describing
from worker.cli.describing import Bench, Row
from worker.cli.subjects import Subject
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import TorchEmbedder
from worker.descriptor.network import Architecture, Network
from worker.errors import ModelError, Unscreenable, UnscreenedReason
from worker.settings import Decode, ModelSettings, Settings

BFLOAT = {"avx512_bf16": True}


def subject(name="small", interpolation="bilinear"):
    """A network of four blocks for pictures of 64 pixels, and of any other size."""
    architecture = Architecture("small", (1, 1, 1, 1), groups=1, width_per_group=64)
    weights = Network.random(architecture, 16).trunk.state_dict()
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    checkpoint = Checkpoint(architecture, 16, 64, mean, std, interpolation, weights)
    return Subject(ModelSettings(name=name, device="cpu"), "random", checkpoint)


@pytest.fixture(scope="module")
def large():
    """A JPEG that the worker decodes at an eighth of its size, and sharp enough to show it."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    photo = Image.fromarray(skimage.data.astronaut()).resize((1600, 1200))
    buffer = BytesIO()
    Image.blend(photo, Image.fromarray(noise), 0.5).save(buffer, "JPEG")
    return buffer.getvalue()


def measure(one, encoded):
    settings = Settings(decode=Decode(workers=1))
    with closing(Bench([encoded], settings, seconds=0)) as bench:
        rows = bench.measure(one, [1], 1, lambda _: None)
    return {row.option: row for row in rows}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_drift_is_of_precision_alone(large, interpolation):
    rows = measure(subject(interpolation=interpolation), large)
    assert rows["fp32 NCHW"].lowest_cosine == pytest.approx(1, abs=1e-6)
    assert rows["fp32 channels_last"].lowest_cosine == pytest.approx(1, abs=1e-6)
    assert rows["bf16 channels_last"].lowest_cosine < 1 - 1e-6


def test_a_subject_is_run_under_its_own_name():
    """Which decides on the resize, and not the name that is configured."""
    for name, expected in (("sscd_disc_mixup", "bilinear-320"), ("small", "bicubic-64")):
        one = subject(name, "bicubic")
        embedder = describing.options(one, compiled=False)["fp32 NCHW"]()
        assert (embedder.model.name, embedder.preprocessing.name) == (name, expected)
        assert one.preprocessing == embedder.preprocessing


def test_a_precision_that_overflows_is_a_row_that_is_not_available(large, monkeypatch):
    real = TorchEmbedder.describe

    def describe(self, pixels):
        if self.precision == "bf16":
            raise Unscreenable(UnscreenedReason.DESCRIBE_FAILED, "1 of 1 are not of norm 1")
        return real(self, pixels)

    monkeypatch.setattr(TorchEmbedder, "describe", describe)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: BFLOAT)
    one = subject()
    rows = measure(one, large)
    assert rows["bf16 channels_last"].not_available == "1 of 1 are not of norm 1"
    auto = describing.told(one, list(rows.values()))["auto"]
    assert auto["option"] == "bf16 channels_last"
    assert (auto["lowest_cosine"], auto["within_bound"]) == (None, None)
    assert auto["fastest"].startswith("fp32")


@pytest.mark.parametrize(("lowest", "within"), [(0.9991, True), (0.9989, False)])
def test_auto_is_held_to_the_bound(monkeypatch, lowest, within):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: BFLOAT)
    speeds = {"card": [1.0], "end_to_end": [2.0], "describe_only": [3.0]}
    rows = [
        Row("fp32 channels_last", 8, None, 1.0, 1.0, **speeds),
        Row("bf16 channels_last", 8, None, lowest, lowest, [1.0], [4.0], [5.0]),
    ]
    auto = describing.told(subject(), rows)["auto"]
    assert (auto["lowest_cosine"], auto["within_bound"]) == (lowest, within)
    fastest = "bf16" if within else "fp32"
    assert auto["fastest"] == f"{fastest} channels_last, batches of 8"


def test_a_device_that_is_not_there():
    settings = ModelSettings(device=f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(ModelError, match=r"model\.device cuda:"):
        describing.machine(settings)
