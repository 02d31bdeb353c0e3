"""Files as Birder and Meta write them, with random weights and lived-in batch statistics."""
# ruff: noqa: PLC0415 - Birder is imported where its warnings are caught

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.meta import (
    Torchvision,
    classy_resnet_50,
    classy_resnext_101,
    live_in,
)


@dataclass(frozen=True)
class Published:
    """A network and the file that its publisher would make of it."""

    backbone: Any
    path: Path


@pytest.fixture(scope="session")
def resnext_101(tmp_path_factory) -> Published:
    """`sscd_resnext_101_c1` but for its weights: SSCD around a ResNeXt, as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are not gone
        from birder.common.fs_ops import save_pts
        from birder.data.transforms.classification import get_rgb_stats
        from birder.model_registry import registry
        from birder.net.base import get_signature
        from birder.net.ssl.sscd import SSCD

        torch.manual_seed(1)
        backbone = registry.net_factory("resnext_101", 1024, 3, size=(320, 320))
        sscd = live_in(SSCD(backbone, config={"replace_pooling": True}))
        path = tmp_path_factory.mktemp("birder") / "resnext.pts"
        signature = get_signature((1, 3, 320, 320), 1024)
        stats = get_rgb_stats("imagenet")
        scripted: Any = torch.jit.script(sscd)
        save_pts(scripted, path, sscd.task, {}, signature, stats)
    return Published(sscd.backbone, path)


@pytest.fixture(scope="session")
def resnet_50(tmp_path_factory) -> Published:
    """`resnet_v1_50_c1_sscd` but for its weights: the network alone, as a dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from birder.data.transforms.classification import get_rgb_stats
        from birder.model_registry import registry
        from birder.net.base import get_signature

        torch.manual_seed(2)
        backbone = live_in(registry.net_factory("resnet_v1_50_c1", 512, 3, size=(320, 320)))
        path = tmp_path_factory.mktemp("birder") / "resnet.pt"
        content = {
            "state": backbone.state_dict(),
            "birder_version": "0.8.4",
            "task": backbone.task,
            "signature": get_signature((1, 3, 320, 320), 512),
            "class_to_idx": {},
            "rgb_stats": get_rgb_stats("birder"),
        }
        torch.save(content, path)
    return Published(backbone, path)


def trace(network: torch.nn.Module, path: Path) -> None:
    """Save the network as `.torchscript.pt` are saved: traced on noise of another size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(network, torch.randn(1, 3, 64, 64))
        torch.jit.save(traced, path)


@pytest.fixture(scope="session")
def meta_classy(tmp_path_factory) -> Published:
    """`sscd_disc_mixup.classy.pt` but for its weights."""
    torch.manual_seed(3)
    network = live_in(classy_resnet_50())
    path = tmp_path_factory.mktemp("meta") / "mixup.classy.pt"
    torch.save(network.state_dict(), path)
    return Published(network, path)


@pytest.fixture(scope="session")
def meta_torchscript(tmp_path_factory, meta_classy) -> Published:
    """`sscd_disc_mixup.torchscript.pt` but for its weights."""
    path = tmp_path_factory.mktemp("meta") / "mixup.torchscript.pt"
    trace(meta_classy.backbone, path)
    return Published(meta_classy.backbone, path)


@pytest.fixture(scope="session")
def meta_large(tmp_path_factory) -> Published:
    """`sscd_disc_large.torchscript.pt` but for its weights."""
    torch.manual_seed(4)
    network = live_in(classy_resnext_101())
    path = tmp_path_factory.mktemp("meta") / "large.torchscript.pt"
    trace(network, path)
    return Published(network, path)


@pytest.fixture(scope="session")
def meta_torchvision(tmp_path_factory) -> Published:
    """`sscd_disc_mixup.torchvision.pt` but for its weights."""
    torch.manual_seed(5)
    network = live_in(Torchvision(512))
    path = tmp_path_factory.mktemp("meta") / "mixup.torchvision.pt"
    torch.save(network.state_dict(), path)
    return Published(network, path)


@pytest.fixture(scope="session")
def skeleton() -> dict[str, torch.Tensor]:
    """`sscd_disc_mixup` in full shape, but with one number for each tensor: a file of 50 KB."""
    with torch.device("meta"):
        shapes = classy_resnet_50().state_dict()
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in shapes.items()
    }
