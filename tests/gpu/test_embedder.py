"""The network on CUDA against the same network on the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import TorchEmbedder
from worker.descriptor.network import ARCHITECTURES, Architecture, Network
from worker.descriptor.precision import LOWEST_COSINE
from worker.settings import ModelSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: a.name)
def checkpoint(request) -> Checkpoint:
    """Random weights with lived-in batch statistics."""
    architecture: Architecture = request.param
    weights = Network.random(architecture, 512).trunk.state_dict()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Checkpoint(architecture, 512, 320, mean, std, "bicubic", weights)


def embedder(checkpoint: Checkpoint, device: str, precision: str, **more: Any) -> TorchEmbedder:
    settings = ModelSettings(name="random", device=device, precision=precision, **more)
    return TorchEmbedder(checkpoint, "0" * 64, settings)


@pytest.mark.parametrize(
    ("precision", "least"),
    [("fp32", 0.9999), ("auto", LOWEST_COSINE), ("bf16", LOWEST_COSINE), ("fp16", LOWEST_COSINE)],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_precisions_agree_with_the_cpu(checkpoint, precision, least, compiled):
    pixels = np.random.default_rng(4).integers(0, 256, (3, 320, 320, 3), np.uint8)
    on_cpu = embedder(checkpoint, "cpu", "fp32").describe(pixels)
    on_cuda = embedder(checkpoint, "cuda", precision, compile=compiled)
    on_cuda.warm(3)
    descriptors = on_cuda.describe(pixels)
    assert descriptors.device.type == "cuda"
    assert functional.cosine_similarity(on_cpu, descriptors.cpu()).min() > least


def test_padding_leaves_no_trace(checkpoint):
    pixels = np.random.default_rng(5).integers(0, 256, (130, 320, 320, 3), np.uint8)
    on_cuda = embedder(checkpoint, "cuda", "auto")
    together = on_cuda.describe(pixels)  # padded to 256
    assert together.shape == (130, 512)
    for count in (1, 7, 33):
        alone = on_cuda.describe(pixels[:count])
        assert functional.cosine_similarity(alone, together[:count]).min() > 0.999
