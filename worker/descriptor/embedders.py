"""What runs a model: uint8 pictures of the model's size in, checked descriptors out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.descriptor import precision, zoo
from worker.errors import ModelError, Unscreenable, UnscreenedReason
from worker.records import Model, Preprocessing
from worker.settings import ModelSettings

if TYPE_CHECKING:
    from worker.descriptor.checkpoints import Checkpoint

type Batch = npt.NDArray[np.uint8]
"""Canonical RGB at the model's size, [n, size, size, 3]."""

# A batch is padded to one of these, or to a multiple of the last, where each shape costs something
# once: kernels are chosen for it on CUDA, and code is compiled with `model.compile`.
_PADDED_SIZES = (1, 8, 16, 32, 64, 128)
# Compiled code of more shapes than this would be a surprise: batches have 1024 pictures at most.
_MOST_SHAPES = 16
_NORM_TOLERANCE = 1e-3


class Embedder(Protocol):
    """A loaded model. One thread at a time."""

    model: Model
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    """fp32, bf16 or fp16; of an ONNX graph `own`."""

    def describe(self, pixels: Batch) -> Tensor:
        """L2-normalised float32 descriptors [n, dims] on `device`, one per picture, in order.

        Raises Unscreenable (`describe_failed`) if one of them is not finite or not of norm 1, so
        that a batch with a poisonous picture is noticed; ValueError for a batch of another shape.
        """
        ...

    def warm(self, batch_size: int) -> None:
        """Run once every shape that batches of up to `batch_size` pictures will have."""
        ...


def load(settings: ModelSettings, *, exact: bool = False) -> Embedder:
    """Find, verify and load the model. Raises ModelError in one line.

    `exact` makes `model.precision: auto` mean fp32.
    """
    path = zoo.locate(settings)
    sha256 = zoo.verify(path, settings)
    if path.suffix == ".onnx":
        return OnnxEmbedder(path, sha256, settings)
    # torchvision takes long to import, and an ONNX file does without.
    from worker.descriptor import checkpoints  # noqa: PLC0415

    checkpoint = checkpoints.read(path)
    check_catalogue(path, settings.name, checkpoint)
    if exact and settings.precision == "auto":
        settings = settings.model_copy(update={"precision": "fp32"})
    return TorchEmbedder(checkpoint, sha256, settings)


def describe_each(embedder: Embedder, pictures: Sequence[Batch]) -> list[Tensor | Unscreenable]:
    """Describe pictures, each in some looks, [looks, size, size, 3], all at once.

    If that fails, one by one. Returns each picture's descriptors, float32 [looks, dims] on the
    device, or why it has none.
    """
    if not pictures:
        return []
    try:
        rows = embedder.describe(np.concatenate(pictures))
    except Unscreenable as error:
        if len(pictures) == 1:
            return [error]
        return [found for one in pictures for found in describe_each(embedder, [one])]
    return list(torch.split(rows, [len(one) for one in pictures]))


def check_catalogue(path: Path, name: str, checkpoint: "Checkpoint") -> None:
    """A file under a name of the catalogue must be that model. Raises ModelError."""
    entry = zoo.CATALOGUE.get(name)
    if entry is None:
        return
    expected = (entry.architecture, entry.dims, entry.preprocessing.size)
    found = (checkpoint.architecture.name, checkpoint.dims, checkpoint.size)
    if found != expected:
        raise ModelError(
            f"{path}: expected {entry.name}, {expected}, found {found}: give it another model.name"
        )


class TorchEmbedder:
    """The SSCD network on the CPU or on one CUDA device.

    Its memory is in the `layout` channels_last, which is the faster one on both.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        sha256: str,
        settings: ModelSettings,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        """Raises ModelError; with `model.compile`, which takes a while, where that fails."""
        self.preprocessing = zoo.preprocessing_of(
            settings.name, checkpoint.interpolation, checkpoint.size
        )
        self.model = Model(settings.name, sha256, checkpoint.dims, self.preprocessing.name)
        self.device = device_of(settings)
        self._cuda = self.device.type == "cuda"
        self.precision: str = settings.precision
        if self.precision == "auto":
            self.precision = precision.automatic(self.device)
        self._dtype = precision.DTYPES[self.precision]
        self._layout = layout
        if self._cuda:
            torch.backends.cudnn.benchmark = True
        elif settings.threads is not None:
            torch.set_num_threads(settings.threads)
        network = checkpoint.network()
        if self._dtype is not torch.float32:  # in full precision the weights stay as published
            network.fold()
        network.cast_trunk(self._dtype)
        self._network = network.to(self.device).to(memory_format=layout)
        self._mean = torch.tensor(checkpoint.mean, device=self.device)
        self._std = torch.tensor(checkpoint.std, device=self.device)
        self._descriptor = self._network.descriptor
        self._pads = self._cuda or settings.compile
        if settings.compile:
            self._compile()

    @torch.inference_mode()
    def describe(self, pixels: Batch) -> Tensor:
        """See `Embedder`."""
        descriptors = self._descriptor(self._input(pixels))
        return _checked(descriptors[: len(pixels)], len(pixels), self.model.dims)

    @torch.inference_mode()
    def embedding(self, pixels: Batch) -> Tensor:
        """The pooled features before the head, float32 [n, 2048] on `device`."""
        return self._network.embedding(self._input(pixels))[: len(pixels)]

    @torch.inference_mode()
    def feature_maps(self, pixels: Batch) -> dict[str, Tensor]:
        """Float32 [n, channels, height, width] of stage1 to stage4 on `device`."""
        maps = self._network.feature_maps(self._input(pixels))
        return {name: stage[: len(pixels)].float() for name, stage in maps.items()}

    def warm(self, batch_size: int) -> None:
        """See `Embedder`."""
        side = self.preprocessing.size
        for size in sorted({self._padded(n) for n in range(1, batch_size + 1)}):
            self.describe(np.full((size, side, side, 3), 127, np.uint8))

    def _compile(self) -> None:
        """Compile what makes descriptors, and see that it works, for one picture."""
        try:
            self._descriptor = torch.compile(  # type: ignore[call-overload] # its stubs lack the limit
                self._network.descriptor, dynamic=False, recompile_limit=_MOST_SHAPES
            )
            self.warm(1)
        except Exception as error:  # noqa: BLE001 - compilers fail in every way, and at length
            kind = type(error).__name__
            raise ModelError(
                f"model.compile: torch.compile does not work here ({kind}; on the CPU it needs a"
                " C++ compiler): set it to false"
            ) from None

    def _input(self, pixels: Batch) -> Tensor:
        """The batch on the device: copied as bytes, padded, and only then made float."""
        _check_shape(pixels, self.preprocessing.size)
        shape = (self._padded(len(pixels)), *pixels.shape[1:])
        # The padding's values don't matter: pictures don't mix, and its rows are cut off.
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda)
        host.numpy()[: len(pixels)] = pixels
        batch = host.to(self.device, non_blocking=True)
        return normalise(batch, self._mean, self._std).to(self._dtype, memory_format=self._layout)

    def _padded(self, count: int) -> int:
        if not self._pads:
            return count
        largest = _PADDED_SIZES[-1]
        multiple = -(-count // largest) * largest
        return next((size for size in _PADDED_SIZES if size >= count), multiple)


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Make uint8 [n, height, width, 3] float32 [n, 3, height, width], in channels_last memory."""
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class OnnxEmbedder:
    """A graph for ONNX Runtime on the CPU: `uint8 [n, height, width, 3]` in, float `[n, dims]` out.

    It normalises inside, and its precision is its own.
    """

    def __init__(self, path: Path, sha256: str, settings: ModelSettings) -> None:
        if settings.device.startswith("cuda"):
            raise ModelError(f"model.device {settings.device}: {path.name} runs on the CPU only")
        if settings.precision != "auto":
            raise ModelError(f"model.precision: {path.name} has its own, set it to auto")
        if settings.compile:
            raise ModelError(f"model.compile: {path.name} is not compiled, set it to false")
        self._session = _session(path, settings.threads)
        self.preprocessing = zoo.preprocessing("bilinear", 320)
        self._input_name, dims = _dims(path, self._session, self.preprocessing.size)
        self.model = Model(settings.name, sha256, dims, self.preprocessing.name)
        self.device = torch.device("cpu")
        self.precision = "own"

    def describe(self, pixels: Batch) -> Tensor:
        """See `Embedder`."""
        _check_shape(pixels, self.preprocessing.size)
        (descriptors,) = self._session.run(None, {self._input_name: pixels})
        return _checked(torch.from_numpy(descriptors), len(pixels), self.model.dims)

    def warm(self, batch_size: int) -> None:
        """See `Embedder`. The CPU has no shapes to learn: one picture and one full batch."""
        side = self.preprocessing.size
        for size in {1, batch_size}:
            self.describe(np.full((size, side, side, 3), 127, np.uint8))


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra of the distribution
    except ImportError:
        raise ModelError(
            f"{path.name} needs ONNX Runtime: install the extra copysieve[onnx]"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0  # 0: one per core
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its errors have no common base
        kind = type(error).__name__
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({kind})") from None


def _dims(path: Path, session: Any, size: int) -> tuple[str, int]:
    """The input's name and the descriptor's length, of a graph with the one known interface."""
    inputs = [(node.type, node.shape) for node in session.get_inputs()]
    outputs = [(node.type, node.shape) for node in session.get_outputs()]
    match inputs, outputs:
        case [("tensor(uint8)", [_, height, width, 3])], [("tensor(float)", [_, int(dims)])]:
            if all(side == size or not isinstance(side, int) for side in (height, width)):
                return session.get_inputs()[0].name, dims
    raise ModelError(
        f"{path}: expected uint8 [n, {size}, {size}, 3] to float [n, dims], "
        f"found {inputs} to {outputs}"
    )


def device_of(settings: ModelSettings) -> torch.device:
    """What `model.device` stands for. Raises ModelError for a CUDA device that is not there."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"model.device {name}: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _check_shape(pixels: Batch, size: int) -> None:
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3) or not len(pixels):
        raise ValueError(
            f"expected uint8 [n, {size}, {size}, 3], found {pixels.dtype} {list(pixels.shape)}"
        )


def _checked(descriptors: Tensor, count: int, dims: int) -> Tensor:
    """As many rows as pictures, all finite and of norm 1."""
    if descriptors.shape != (count, dims):
        found = list(descriptors.shape)
        raise Unscreenable(
            UnscreenedReason.DESCRIBE_FAILED, f"{found} descriptors of {count} pictures"
        )
    # A NaN or an infinite value makes the norm so too, and neither compares as near.
    good = (descriptors.norm(dim=1) - 1).abs() <= _NORM_TOLERANCE
    bad = count - int(good.sum())
    if bad:
        raise Unscreenable(
            UnscreenedReason.DESCRIBE_FAILED, f"{bad} of {count} descriptors are not of norm 1"
        )
    return descriptors
