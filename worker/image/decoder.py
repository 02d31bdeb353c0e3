"""Decodes in the threads that ask or in sandboxed processes, as settings and picture say."""

from worker.image.decode import Reserve, needs_process
from worker.image.preprocess import prepare
from worker.image.sandbox import Sandbox
from worker.records import Prepared, Preprocessing
from worker.settings import Decode, Limits, Views
from worker.telemetry import metrics


class Decoder:
    """Turns files into pictures of the model's size."""

    def __init__(
        self,
        decode: Decode,
        limits: Limits,
        preprocessing: Preprocessing,
        views: Views = Views(),
        threads: int | None = None,
    ) -> None:
        """`threads` is how many use it, `decode.workers` unless said otherwise.

        Raises StartupError if the children do not start.
        """
        self._limits = limits
        self._preprocessing = preprocessing
        self._views = views
        self._all = decode.isolation == "processes"
        self._sandbox = Sandbox(decode, limits, preprocessing, views, threads)

    def prepare(self, data: bytes, reserve: Reserve) -> Prepared:
        """Encoded bytes to a model's input; see `preprocess.prepare`. Raises DecodeError."""
        if self._all or needs_process(data, self._limits):
            prepared = self._sandbox.prepare(data, reserve)
        else:
            prepared = prepare(data, self._limits, self._preprocessing, self._views, reserve)
        metrics.DECODES.labels(prepared.info.format).inc()
        return prepared

    def close(self) -> None:
        """End the children."""
        self._sandbox.close()
