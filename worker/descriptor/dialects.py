"""The names that weights have in published files, against torchvision's, which are ours.

The networks are the same; each library that trained or published them named the layers its own
way. All of Meta's preprocess by a bilinear resize, Birder by a bicubic one.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to name weights. `theirs` gives the name of what torchvision's `ResNet` calls so.

    `interpolation` is how pictures were resized for models that are published in it.
    """

    name: str
    theirs: Callable[[str], str]
    interpolation: Literal["bilinear", "bicubic"]

    @property
    def head(self) -> str:
        """The name of the last linear layer's weight."""
        return self.theirs("fc.weight")


_BIRDER_OUTSIDE = {"conv1": "stem.0.0", "bn1": "stem.0.1", "fc": "classifier"}
_BIRDER_IN_BLOCK = {
    "conv1": "block1.0.0",
    "bn1": "block1.0.1",
    "conv2": "block1.1.0",
    "bn2": "block1.1.1",
    "conv3": "block1.2",
    "bn3": "block1.3",
    "downsample": "block2",
}
_CLASSY_OUTSIDE = {
    "conv1": "backbone.initial_block._module.0",
    "bn1": "backbone.initial_block._module.1",
    "fc": "embeddings.1",
}
_CLASSY_IN_BLOCK = {
    "conv1": "convolutional_block.0",
    "bn1": "convolutional_block.1",
    "conv2": "convolutional_block.3",
    "bn2": "convolutional_block.4",
    "conv3": "convolutional_block.6",
    "bn3": "bn",
    "downsample": "downsample",
}


def birder(name: str) -> str:
    """`layer3.5.bn3.bias` is `body.stage3.5.block1.3.bias`."""
    module, _, rest = name.partition(".")
    if not module.startswith("layer"):
        return f"{_BIRDER_OUTSIDE[module]}.{rest}"
    block, part, leaf = rest.split(".", 2)
    return f"body.{module.replace('layer', 'stage')}.{block}.{_BIRDER_IN_BLOCK[part]}.{leaf}"


def classy(name: str) -> str:
    """`layer3.5.bn3.bias` is `backbone.blocks.2.block2-5.bn.bias`."""
    module, _, rest = name.partition(".")
    if not module.startswith("layer"):
        return f"{_CLASSY_OUTSIDE[module]}.{rest}"
    block, part, leaf = rest.split(".", 2)
    stage = int(module.removeprefix("layer")) - 1
    return f"backbone.blocks.{stage}.block{stage}-{block}.{_CLASSY_IN_BLOCK[part]}.{leaf}"


def torchvision(name: str) -> str:
    """Its own names."""
    return name


def _wrapped(theirs: Callable[[str], str]) -> Callable[[str], str]:
    """The names within SSCD's model, which calls its network `backbone`."""
    return lambda name: f"backbone.{theirs(name)}"


DIALECTS = (
    Dialect("Birder's", _wrapped(birder), "bicubic"),
    Dialect("Birder's", birder, "bicubic"),
    Dialect("torchvision's", _wrapped(torchvision), "bilinear"),
    Dialect("torchvision's", torchvision, "bilinear"),
    Dialect("Classy Vision's", classy, "bilinear"),
)


def spoken(names: Collection[str]) -> Dialect | None:
    """The dialect whose last layer is among the names."""
    return next((dialect for dialect in DIALECTS if dialect.head in names), None)
