"""A model file of one's own."""

import pytest
from safetensors.torch import save_file

from worker.descriptor.dialects import birder
from worker.descriptor.network import ARCHITECTURES, Network


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """A ResNet-50 of random weights, as a file of one's own."""
    weights = Network.random(ARCHITECTURES[0], 512).trunk.state_dict()
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    kept = (name for name in weights if not name.endswith("num_batches_tracked"))
    save_file({birder(name): weights[name] for name in kept}, path)
    return path
