"""Parity with the library that publishes the models, and what real weights do."""

import builtins
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.nn import functional

from worker.descriptor import checkpoints, embedders, precision
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import TorchEmbedder
from worker.descriptor.network import Architecture, Network
from worker.errors import ModelError, Unscreenable, UnscreenedReason
from worker.settings import ModelSettings


def picture(name: str, size: int = 320) -> np.ndarray:
    """One of scikit-image's photos at the model's size."""
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def load_file(published: Any, **settings: Any) -> TorchEmbedder:
    loaded = ModelSettings(name="mine", path=published.path, device="cpu", **settings)
    embedder = embedders.load(loaded)
    assert isinstance(embedder, TorchEmbedder)
    return embedder


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def normalised(pixels: np.ndarray, *stats: tuple[float, ...]) -> torch.Tensor:
    """[n, 3, height, width], by mean and std of values in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in stats)
    return (torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize("which", ["resnext_101", "resnet_50"])
def test_parity_with_birder(which, request, tell_parity):
    published = request.getfixturevalue(which)
    embedder = load_file(published, precision="fp32")
    pixels = picture("astronaut")[None]
    stats = {
        "resnext_101": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "resnet_50": ((0.5191, 0.5306, 0.4877), (0.2316, 0.2304, 0.2588)),
    }
    x = normalised(pixels, *stats[which])
    with torch.inference_mode():
        descriptor = functional.normalize(published.backbone(x))
        embedding = published.backbone.embedding(x)
        maps = published.backbone.detection_features(x)

    ours = embedder.feature_maps(pixels)
    assert list(ours) == ["stage1", "stage2", "stage3", "stage4"]
    assert [tuple(stage.shape[1:]) for stage in ours.values()] == [
        (256, 80, 80),
        (512, 40, 40),
        (1024, 20, 20),
        (2048, 10, 10),
    ]
    differences = {
        "descriptor": largest_difference(embedder.describe(pixels), descriptor),
        "embedding": largest_difference(embedder.embedding(pixels), embedding),
    } | {name: largest_difference(stage, maps[name]) for name, stage in ours.items()}
    tell_parity(f"birder {version('birder')}, {published.path.name}", differences)
    assert differences.pop("descriptor") < 1e-5
    assert differences.pop("embedding") < 1e-5
    assert max(differences.values()) < 1e-4


@pytest.mark.parametrize(
    "which", ["meta_classy", "meta_torchscript", "meta_torchvision", "meta_large"]
)
def test_parity_with_the_networks_of_metas_files(which, request, tell_parity):
    published = request.getfixturevalue(which)
    checkpoint = checkpoints.read(published.path)
    x = normalised(picture("astronaut", 128)[None], checkpoint.mean, checkpoint.std)
    with torch.inference_mode():
        ours = checkpoint.network().descriptor(x)
        difference = largest_difference(ours, published.backbone(x))
    tell_parity(f"torch {torch.__version__}, {published.path.name}", {"descriptor": difference})
    assert difference < 1e-5
    assert (checkpoint.size, checkpoint.interpolation) == (320, "bilinear")


def test_a_torch_model_says_what_it_is(resnext_101):
    embedder = load_file(resnext_101)
    assert embedder.model.name == "mine"
    assert embedder.model.sha256 == hashlib.sha256(resnext_101.path.read_bytes()).hexdigest()
    assert (embedder.model.dims, embedder.model.preprocessing) == (1024, "bicubic-320")
    assert embedder.preprocessing.interpolation == "bicubic"
    assert embedder.device == torch.device("cpu")


@pytest.mark.parametrize("which", ["bf16", "auto"])
def test_precision_moves_descriptors_less_than_the_bound(resnet_50, which):
    pixels = np.stack([picture("coffee"), picture("astronaut")])
    exact = load_file(resnet_50, precision="fp32").describe(pixels)
    embedder = load_file(resnet_50, precision=which)
    embedder.warm(1)
    descriptors = embedder.describe(pixels)
    assert descriptors.dtype == torch.float32
    assert functional.cosine_similarity(exact, descriptors).min() > precision.LOWEST_COSINE


def test_exact_makes_auto_fp32_and_nothing_else(resnet_50):
    auto = ModelSettings(name="mine", path=resnet_50.path, device="cpu")
    told = auto.model_copy(update={"precision": "bf16"})
    assert embedders.load(auto, exact=True).precision == "fp32"
    assert embedders.load(told, exact=True).precision == "bf16"


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512_bf16": True, "avx512_fp16": False}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"bf16": True, "neon": True}, "fp32"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_computes_in_it(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert precision.automatic(torch.device("cpu")) == expected


def test_auto_is_by_the_gpu_that_is_told_not_the_current_one(monkeypatch):
    capabilities = {"cuda:0": (7, 5), "cuda:1": (8, 0), "cuda:2": (12, 0)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capabilities[str(device)]
    )
    found = [precision.automatic(torch.device(name)) for name in capabilities]
    assert found == ["fp32", "bf16", "bf16"]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert precision.automatic(torch.device("cuda:0")) == "bf16"


# -- compiled -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """A network of four blocks for pictures of 64 pixels: compiled in seconds."""
    architecture = Architecture("small", (1, 1, 1, 1), groups=1, width_per_group=64)
    weights = Network.random(architecture, 16).trunk.state_dict()
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Checkpoint(architecture, 16, 64, mean, std, "bicubic", weights)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_describes_the_same(small):
    pixels = np.stack([picture("coffee", 64), picture("astronaut", 64), picture("rocket", 64)])
    settings = ModelSettings(name="small", device="cpu", precision="fp32")
    plain = TorchEmbedder(small, "0" * 64, settings)
    compiled = TorchEmbedder(small, "0" * 64, settings.model_copy(update={"compile": True}))
    compiled.warm(3)
    with torch.compiler.set_stance("fail_on_recompile"):  # warm has seen every shape
        for count in (1, 2, 3):
            found = compiled.describe(pixels[:count])
            assert found.shape == (count, 16)
            assert torch.allclose(found, plain.describe(pixels[:count]), atol=1e-5)


WITHOUT_A_COMPILER = """
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import TorchEmbedder
from worker.descriptor.network import Architecture, Network
from worker.settings import ModelSettings

architecture = Architecture("small", (1, 1, 1, 1), groups=1, width_per_group=64)
weights = Network.random(architecture, 16).trunk.state_dict()
half = (0.5, 0.5, 0.5)
checkpoint = Checkpoint(architecture, 16, 64, half, half, "bicubic", weights)
TorchEmbedder(checkpoint, "0" * 64, ModelSettings(name="small", device="cpu", compile=True))
"""


def test_without_a_compiler():
    """In a process of its own: torch remembers in many places which compiler there is."""
    nowhere = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("worker.errors.ModelError: model.compile: torch.compile does not work")
    assert last.endswith("set it to false")


def test_a_poisoned_network_is_noticed(resnet_50):
    embedder = load_file(resnet_50)
    embedder._network.trunk.fc.bias[7] = torch.nan
    with pytest.raises(Unscreenable, match="1 of 1 descriptors are not of norm 1") as error:
        embedder.describe(picture("coffee")[None])
    assert error.value.reason is UnscreenedReason.DESCRIBE_FAILED


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([[1.0, 0.0], [torch.nan, 1.0], [0.0, 1.0]], "1 of 3"),
        ([[1.0, 0.0], [torch.inf, 0.0], [0.0, 0.0]], "2 of 3"),
        ([[1.0, 0.0], [0.0, 1.0]], r"\[2, 2\] descriptors of 3 pictures"),
    ],
)
def test_descriptors_are_checked(rows, line):
    with pytest.raises(Unscreenable, match=line):
        embedders._checked(torch.tensor(rows), count=3, dims=2)


def test_batches_of_another_shape_are_refused(int8):
    for wrong in (
        np.zeros((1, 288, 288, 3), np.uint8),
        np.zeros((1, 320, 320, 3), np.float32),
        np.zeros((0, 320, 320, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"expected uint8 \[n, 320, 320, 3\]"):
            int8.describe(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(resnet_50):
    with pytest.raises(ModelError, match=r"model\.device cuda: torch sees 0 CUDA devices"):
        embedders.load(ModelSettings(name="mine", path=resnet_50.path, device="cuda"))


def test_another_network_under_a_name_of_the_catalogue(resnet_50):
    digest = hashlib.sha256(resnet_50.path.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=r"expected sscd_resnext_101_c1, .*found \('resnet50', 5"):
        embedders.load(ModelSettings(path=resnet_50.path, sha256=digest))


def test_a_known_name_has_the_catalogues_preprocessing(meta_torchvision, resnet_50):
    for published, name, expected in (
        (meta_torchvision, "sscd_disc_mixup_torchvision", "bilinear-320"),
        (meta_torchvision, "resnet_v1_50_c1_sscd", "bicubic-320"),
        (resnet_50, "sscd_disc_mixup", "bilinear-320"),
        (resnet_50, "mine", "bicubic-320"),
    ):
        digest = hashlib.sha256(published.path.read_bytes()).hexdigest()
        settings = ModelSettings(name=name, path=published.path, sha256=digest, device="cpu")
        embedder = embedders.load(settings)
        assert (embedder.model.name, embedder.model.preprocessing) == (name, expected)
        assert embedder.preprocessing.name == expected


# -- ONNX, real weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8():
    return embedders.load(ModelSettings(name="sscd_disc_mixup_int8", device="cpu", threads=2))


@pytest.fixture(scope="module", params=["sscd_disc_mixup_int8", "sscd_distilled"])
def real(request):
    return embedders.load(ModelSettings(name=request.param, device="auto"))


def test_real_weights_know_a_copy(real):
    astronaut = picture("astronaut")
    copy = Image.fromarray(astronaut[20:-20, 20:-20]).resize((320, 320))
    batch = np.stack([astronaut, np.asarray(copy), picture("coffee"), picture("camera")])
    real.warm(4)
    descriptors = real.describe(batch)
    assert (descriptors.dtype, tuple(descriptors.shape)) == (torch.float32, (4, real.model.dims))
    cosine = descriptors @ descriptors.T
    assert torch.allclose(cosine.diagonal(), torch.ones(4), atol=1e-5)
    assert cosine[0, 1] > 0.75
    assert cosine[0, 2:].max() < 0.25
    assert real.model.preprocessing == "bilinear-320"


def test_pictures_of_a_batch_do_not_mix(real):
    batch = np.stack([picture(name) for name in ("astronaut", "coffee", "chelsea", "rocket")])
    together = real.describe(batch)
    alone = torch.cat([real.describe(one[None]) for one in batch])
    assert float((together - alone).abs().max()) < 1e-5


def test_an_inverted_copy_needs_the_inverted_view(int8):
    astronaut = picture("astronaut")
    plain, copy, view = int8.describe(
        np.stack([astronaut, 255 - astronaut, np.bitwise_not(astronaut)])
    )
    assert float(view @ copy) > 0.9999
    assert float(plain @ copy) < float(view @ copy) - 0.1


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"device": "cuda"}, "model.device cuda: sscd.onnx"),
        ({"precision": "bf16"}, "precision"),
        ({"compile": True}, "compile"),
    ],
)
def test_onnx_has_no_device_and_no_precision_to_choose(setting, line):
    with pytest.raises(ModelError, match=line):
        embedders.load(ModelSettings(name="sscd_disc_mixup_int8", **setting))


def test_a_foreign_onnx_file(tmp_path):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(b"no graph")
    digest = hashlib.sha256(b"no graph").hexdigest()
    with pytest.raises(ModelError, match="ONNX Runtime cannot load it") as error:
        embedders.load(ModelSettings(name="mine", path=path, sha256=digest))
    assert "\n" not in str(error.value)


def test_without_onnxruntime(monkeypatch):
    real_import = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModelError, match=r"install the extra copysieve\[onnx\]"):
        embedders.load(ModelSettings(name="sscd_disc_mixup_int8"))
