"""The SSCD network: a ResNet or ResNeXt trunk, GeM pooling, a linear layer, L2 normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck, ResNet

GEM_POWER = 3.0
_GEM_EPSILON = 1e-6

STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What tells one trunk from another, in the words of torchvision's `ResNet`."""

    name: str
    layers: tuple[int, int, int, int]
    groups: int
    width_per_group: int


ARCHITECTURES = (
    Architecture("resnet50", (3, 4, 6, 3), groups=1, width_per_group=64),
    Architecture("resnext101_32x4d", (3, 4, 23, 3), groups=32, width_per_group=4),
)


class Network(nn.Module):
    """Normalised float pictures [n, 3, height, width] in; descriptors and what lies before out.

    The trunk may run in half precision. Pooling and the head always run in float32: a cube
    overflows float16 above 40, and bfloat16 would round the descriptor itself.
    """

    def __init__(self, architecture: Architecture, dims: int) -> None:
        super().__init__()
        self.trunk = ResNet(
            Bottleneck,
            list(architecture.layers),
            num_classes=dims,
            groups=architecture.groups,
            width_per_group=architecture.width_per_group,
        )

    @classmethod
    def with_weights(
        cls, architecture: Architecture, dims: int, weights: dict[str, Tensor]
    ) -> "Network":
        """A network for inference that owns `weights`, named as in torchvision's `ResNet`."""
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            network = cls(architecture, dims)
        network.trunk.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(requires_grad=False)

    @classmethod
    def random(cls, architecture: Architecture, dims: int) -> "Network":
        """A network for measuring alone: its weights are random, and always the same.

        Its batch norms have seen some noise, so that values stay in the range that trained ones
        have. Two pictures are nearly the same to it.
        """
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = cls(architecture, dims)
            norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = None  # the mean of what is seen
            with torch.no_grad():
                network.train().descriptor(torch.randn(4, 3, 64, 64))
        return network.eval().requires_grad_(requires_grad=False)

    def fold(self) -> None:
        """Fold every batch norm into the convolution before it: less to compute, and to round."""
        trunk = self.trunk
        trunk.conv1, trunk.bn1 = fuse_conv_bn_eval(trunk.conv1, trunk.bn1), nn.Identity()
        for stage in self._stages():
            for block in stage:
                for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
                    folded = fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm))
                    setattr(block, conv, folded)
                    setattr(block, norm, nn.Identity())
                if isinstance(block.downsample, nn.Sequential):
                    block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))

    def cast_trunk(self, dtype: torch.dtype) -> None:
        """Let all but the head compute in `dtype`."""
        self.trunk.to(dtype)
        self.trunk.fc.float()

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """stage1 [n, 256, height/4, width/4] to stage4 [n, 2048, height/32, width/32]."""
        x = self._stem(x)
        maps = {}
        for name, stage in zip(STAGES, self._stages(), strict=True):
            maps[name] = x = stage(x)
        return maps

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled features, float32 [n, 2048]."""
        x = self._stem(x)
        for stage in self._stages():
            x = stage(x)
        return gem(x.float())

    def descriptor(self, x: Tensor) -> Tensor:
        """L2-normalised float32 [n, dims]."""
        head: Tensor = self.trunk.fc(self.embedding(x))
        return functional.normalize(head)

    def _stem(self, x: Tensor) -> Tensor:
        trunk = self.trunk
        stem: Tensor = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
        return stem

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.trunk.layer1, self.trunk.layer2, self.trunk.layer3, self.trunk.layer4


def gem(x: Tensor) -> Tensor:
    """Generalised-mean pooling with p = 3 over height and width: [n, c, h, w] to [n, c]."""
    cubes = x.clamp(min=_GEM_EPSILON).pow(GEM_POWER)
    return cubes.mean(dim=(2, 3)).pow(1 / GEM_POWER)
