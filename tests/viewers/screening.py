"""The worker's side of a comparison with the browser: decoding, and descriptors with a cache."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tests.viewers.browser import Painted, Pixels
from worker.descriptor import embedders
from worker.errors import DecodeError
from worker.image.decoder import Decoder
from worker.image.preprocess import resize
from worker.settings import Decode, Limits, ModelSettings, Views

type Descriptors = npt.NDArray[np.float32]
"""[n, dimensions], L2-normalised."""

MODEL = "sscd_disc_mixup_int8"
_BATCH = 16


@dataclass(frozen=True)
class Screened:
    """What an upload is described by: uint8 [n, size, size, 3], or the reason that it is not."""

    squares: Pixels | None
    reason: str | None


class Screener:
    """The worker's decoder and a real model. A context manager."""

    def __init__(self) -> None:
        settings = ModelSettings(name=MODEL, device="cpu", threads=2)
        self._model = embedders.load(settings)
        decode = Decode(workers=2, deadline_seconds=60)
        self._decoder = Decoder(decode, Limits(), self._model.preprocessing, Views())
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}

    @property
    def size(self) -> int:
        """The side of the model's square, in pixels."""
        return self._model.preprocessing.size

    def screen(self, data: bytes) -> Screened:
        """Decode an upload as the worker does."""
        try:
            prepared = self._decoder.prepare(data, nullcontext)
        except DecodeError as error:
            return Screened(None, str(error.reason))
        return Screened(prepared.pixels, None)

    def squares(self, painted: Painted) -> Pixels:
        """A browser's picture on white, and on black where that differs, at the model's size."""
        pictures = [painted.white] if painted.is_opaque else [painted.white, painted.black]
        return np.stack([self.square(one) for one in pictures])

    def square(self, picture: Pixels) -> Pixels:
        """One picture at the model's size, resized as the worker does."""
        return resize(np.ascontiguousarray(picture), self._model.preprocessing)

    def describe(self, squares: Sequence[Pixels] | Pixels) -> Descriptors:
        """Describe squares. Equal pixels are described one time in the life of this object."""
        keys = [
            hashlib.blake2b(np.ascontiguousarray(one), digest_size=16).digest() for one in squares
        ]
        new = {key: one for key, one in zip(keys, squares, strict=True) if key not in self._known}
        names = list(new)
        for at in range(0, len(names), _BATCH):
            part = names[at : at + _BATCH]
            described = self._model.describe(np.stack([new[name] for name in part]))
            self._known |= dict(zip(part, np.asarray(described, np.float32), strict=True))
        return np.stack([self._known[key] for key in keys])

    def close(self) -> None:
        """End the decoder's processes."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
