"""Files as Birder itself writes them, with random weights and lived-in batch statistics."""
# ruff: noqa: PLC0415 - Birder is imported where its warnings are caught

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


@dataclass(frozen=True)
class Published:
    """A network of Birder's and the file that Birder made of it."""

    backbone: Any
    path: Path


def _live_in(network: nn.Module) -> Any:
    """Let every batch norm see some data, so that no two of them could be mistaken."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


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
        sscd = _live_in(SSCD(backbone, config={"replace_pooling": True}))
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
        backbone = _live_in(registry.net_factory("resnet_v1_50_c1", 512, 3, size=(320, 320)))
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
