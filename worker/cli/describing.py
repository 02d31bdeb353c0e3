"""What `bench describe` measures: ways to run a model, in turns with the loop of its model card.

The card's loop is what one writes who follows the card: open, convert, transform, and run the fp32
network as it comes, one picture at a time. Both sides begin with encoded bytes and end with
descriptors, in one process, so a noisy machine hurts both.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from worker.cli.subjects import Subject
from worker.descriptor import precision
from worker.descriptor.checkpoints import Checkpoint
from worker.descriptor.embedders import Embedder, TorchEmbedder, device_of, normalise
from worker.errors import ModelError, Unscreenable
from worker.hardware import cpu_computes
from worker.image.decoder import Decoder
from worker.records import Pixels
from worker.settings import ModelSettings, Settings, Views


@dataclass(slots=True)
class Row:
    """One way to run a model at one size of batch; a speed and a ratio for each round.

    `lowest_cosine` and `mean_cosine` are to the fp32 descriptors of the same pixels; None where
    there is no fp32 network with these weights, or `not_available` says why there is nothing.
    """

    option: str
    batch: int
    not_available: str | None = None
    lowest_cosine: float | None = None
    mean_cosine: float | None = None
    card: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    describe_only: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """End to end over the card's loop, of each round."""
        return [ours / card for ours, card in zip(self.end_to_end, self.card, strict=True)]

    def told(self) -> dict[str, Any]:
        """The row as a document: medians over the rounds, and the spread of the ratio."""
        named = {"option": self.option, "batch": self.batch}
        if self.not_available is not None:
            return named | {"not_available": self.not_available}
        return named | {
            "images_per_second": _median(self.end_to_end),
            "describe_only_images_per_second": _median(self.describe_only),
            "card_images_per_second": _median(self.card),
            "ratio": _median(self.ratios),
            "ratio_spread": [round(min(self.ratios), 2), round(max(self.ratios), 2)],
            "lowest_cosine": self.lowest_cosine,
            "mean_cosine": self.mean_cosine,
        }


def options(subject: Subject, *, compiled: bool) -> dict[str, Callable[[], Embedder]]:
    """The ways to run it, by name. Each makes its embedder, or raises ModelError."""
    if subject.graph is not None:
        graph = subject.graph
        return {"onnx": lambda: graph}
    make = partial(_network, subject)
    fp16 = device_of(subject.settings).type == "cuda" or cpu_computes("fp16")
    names = ["fp32", "bf16", "fp16"] if fp16 else ["fp32", "bf16"]
    ways = {"fp32 NCHW": partial(make, "fp32", layout=torch.contiguous_format)}
    ways |= {f"{name} channels_last": partial(make, name) for name in names}
    if compiled:
        ways |= {f"{name} compiled": partial(make, name, compiled=True) for name in names}
    return dict(ways)


def _network(
    subject: Subject,
    name: str,
    layout: torch.memory_format = torch.channels_last,
    *,
    compiled: bool = False,
) -> Embedder:
    chosen = subject.settings.model_copy(update={"precision": name, "compile": compiled})
    return TorchEmbedder(subject.checkpoint, subject.weights, chosen, layout)


# -- measuring ------------------------------------------------------------------------------------


class Card:
    """What Birder's model card does: torchvision's transform, and the fp32 network as it comes."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        from torchvision.transforms import v2  # noqa: PLC0415 - takes seconds to import

        side = (checkpoint.size, checkpoint.size)
        self._device = device
        self._network = checkpoint.network().to(device)
        self._transform = v2.Compose(
            [
                v2.Resize(side, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=checkpoint.mean, std=checkpoint.std),
            ]
        )

    @torch.inference_mode()
    def images_per_second(self, encoded: Sequence[bytes], seconds: float) -> float:
        """One picture at a time, at least one, then on until `seconds` are over."""
        started = time.monotonic()
        for done, data in enumerate(cycle(encoded), start=1):
            batch: Tensor = self._transform(Image.open(BytesIO(data)).convert("RGB")).unsqueeze(0)
            self._network.descriptor(batch.to(self._device)).cpu()
            if (taken := time.monotonic() - started) >= seconds:
                return done / taken
        raise ValueError("no pictures")


class Bench:
    """The pictures, and the pool that decodes them, which `close` ends."""

    def __init__(self, encoded: Sequence[bytes], settings: Settings, seconds: float) -> None:
        self._encoded = encoded
        self._settings = settings
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(settings.decode.workers)

    def close(self) -> None:
        """End the pool."""
        self._pool.shutdown()

    def measure(
        self,
        subject: Subject,
        batches: Sequence[int],
        rounds: int,
        on_progress: Callable[[str], object],
        *,
        compiled: bool = False,
    ) -> list[Row]:
        """All ways to run `subject`. `on_progress` is told before each step.

        Raises ModelError where none of them works.
        """
        ready: list[tuple[Row, Embedder]] = []
        absent: list[Row] = []
        decoder = Decoder(
            self._settings.decode, self._settings.limits, subject.preprocessing, Views(renditions=1)
        )
        with closing(decoder):
            pictures = [_picture(decoder, data) for data in self._encoded]
            exact = None if subject.graph else _exact(subject.checkpoint, pictures)
            for name, make in options(subject, compiled=compiled).items():
                on_progress(f"{subject.settings.name}: {name}")
                try:
                    embedder = make()
                    drift = () if exact is None else _drift(embedder, pictures, exact)
                except (ModelError, Unscreenable) as error:
                    absent += [Row(name, batch, not_available=str(error)) for batch in batches]
                else:
                    ready += [(Row(name, batch, None, *drift), embedder) for batch in batches]
            if not ready:
                raise ModelError(str(absent[0].not_available))
            self._alternate(subject, ready, decoder, pictures, rounds, on_progress)
        return [row for row, _ in ready] + absent

    def _alternate(
        self,
        subject: Subject,
        ready: Sequence[tuple[Row, Embedder]],
        decoder: Decoder,
        pictures: Sequence[Pixels],
        rounds: int,
        on_progress: Callable[[str], object],
    ) -> None:
        """Each row once a round, right after the card's loop; every other round backwards."""
        card = Card(subject.checkpoint, ready[0][1].device)
        card.images_per_second(self._encoded, 0)
        for row, embedder in ready:
            embedder.describe(_batch(pictures, row.batch))  # warm
        for number in range(rounds):
            for row, embedder in ready if number % 2 == 0 else ready[::-1]:
                on_progress(f"{subject.settings.name}: {row.option}, batches of {row.batch}")
                row.card.append(card.images_per_second(self._encoded, self._seconds))
                row.end_to_end.append(self._end_to_end(embedder, decoder, row.batch))
                alone = self._describe_only(embedder, _batch(pictures, row.batch))
                row.describe_only.append(alone)

    def _end_to_end(self, embedder: Embedder, decoder: Decoder, size: int) -> float:
        """Images a second; the pool decodes the next batch while the model has this one."""
        source = cycle(self._encoded)

        def ahead() -> list[Future[Pixels]]:
            return [self._pool.submit(_picture, decoder, data) for data in islice(source, size)]

        started, done = time.monotonic(), 0
        futures = ahead()
        while futures:
            pictures = [future.result() for future in futures]
            futures = ahead() if time.monotonic() - started < self._seconds else []
            embedder.describe(np.stack(pictures))
            done += size
        return done / (time.monotonic() - started)

    def _describe_only(self, embedder: Embedder, batch: Pixels) -> float:
        started, done = time.monotonic(), 0
        while not done or time.monotonic() - started < self._seconds:
            embedder.describe(batch)  # which ends when the descriptors are checked, on CUDA too
            done += len(batch)
        return done / (time.monotonic() - started)


def _exact(checkpoint: Checkpoint, pictures: Sequence[Pixels]) -> Tensor:
    """Descriptors of pictures at the model's size: fp32, NCHW, nothing folded, on the CPU."""
    network = checkpoint.network()
    mean, std = torch.tensor(checkpoint.mean), torch.tensor(checkpoint.std)
    with torch.inference_mode():
        batches = (normalise(torch.from_numpy(one)[None], mean, std) for one in pictures)
        return torch.cat([network.descriptor(batch.contiguous()) for batch in batches])


def _drift(embedder: Embedder, pictures: Sequence[Pixels], exact: Tensor) -> tuple[float, float]:
    """Lowest and mean cosine of the embedder's descriptors to the exact ones.

    Raises Unscreenable if a picture has none, as where fp16 overflows.
    """
    found = torch.cat([embedder.describe(one[None]).cpu() for one in pictures])
    cosines = functional.cosine_similarity(found.double(), exact.double())
    return round(float(cosines.min()), 7), round(float(cosines.mean()), 7)


def _picture(decoder: Decoder, data: bytes) -> Pixels:
    pixels: Pixels = decoder.prepare(data, nullcontext).pixels[0]
    return pixels


def _batch(pictures: Sequence[Pixels], size: int) -> Pixels:
    return np.stack(list(islice(cycle(pictures), size)))


# -- told -----------------------------------------------------------------------------------------


def machine(settings: ModelSettings) -> dict[str, Any]:
    """What the figures depend on."""
    device = device_of(settings)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": settings.threads or torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cpu_computes_bf16": cpu_computes("bf16"),
        "torch": torch.__version__,
    }


def told(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """A subject and its rows as a document."""
    card = [speed for row in rows for speed in row.card]
    return {
        "model": subject.settings.name,
        "weights": subject.weights,
        "architecture": "graph" if subject.graph else subject.checkpoint.architecture.name,
        "card": f"fp32 {subject.checkpoint.architecture.name}",
        "card_images_per_second": _median(card),
        "options": [row.told() for row in rows],
        "auto": None if subject.graph else _auto(rows, subject.settings),
    }


def _auto(rows: Sequence[Row], settings: ModelSettings) -> dict[str, Any]:
    """What `model.precision: auto` is for a network, its drift, and if that is within the bound.

    Those two are None where its row is not available. `fastest` is the fastest row that is within
    the bound.
    """
    option = f"{precision.automatic(device_of(settings))} channels_last"
    lowest = next(row.lowest_cosine for row in rows if row.option == option)
    sound = [row for row in rows if (row.lowest_cosine or 0.0) >= precision.LOWEST_COSINE]
    fastest = max(sound, key=lambda row: statistics.median(row.end_to_end), default=None)
    return {
        "option": option,
        "lowest_cosine": lowest,
        "bound": precision.LOWEST_COSINE,
        "within_bound": None if lowest is None else lowest >= precision.LOWEST_COSINE,
        "fastest": fastest and f"{fastest.option}, batches of {fastest.batch}",
    }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2)
