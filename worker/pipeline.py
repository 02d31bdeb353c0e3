"""THE data path: admit -> fetch -> decode -> describe -> match -> decide -> publish -> commit.

Read it from top to bottom. Each stage hands an `Upload` on to the next; whatever happens to it, it
ends in exactly one `Delivery` to the publisher, which ends it in the ledger:

    consumer thread   admit(record)            bounded by limits.in_flight_*
    admit thread      _admit                   bytes -> Upload, or a dead letter
    fetch queue       _arrive                  linked images
    decode lanes      _decode                  bytes -> renditions, at the model's size
    device thread     _describe_and_match      pixels -> descriptor -> hits, in batches
    publisher thread  decision -> events -> Kafka's acknowledgement -> ledger

What an upload's own bytes cause is an `Unscreenable` or a `BadEvent`, and ends that upload alone.
Any other error is ours: the stage dies, and the process with it.
"""

import contextlib
import functools
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import batched
from typing import cast

import numpy as np
import torch

from worker.compare import Compared, compare
from worker.descriptor.batcher import Batcher
from worker.descriptor.embedders import Embedder
from worker.descriptor.recent import Described, Recent
from worker.errors import BadEvent, FetchError, Unscreenable, UnscreenedReason
from worker.hotset.floods import Sightings
from worker.hotset.mirror import Mirror
from worker.image.budget import ByteBudget
from worker.image.decode import Reserve
from worker.image.decoder import Decoder
from worker.image.fetch import Fetcher
from worker.image.fetching import FetchQueue, Result
from worker.image.lanes import DecodeLanes
from worker.image.preprocess import boxes
from worker.records import Looks, Pixels, Query, Record, Upload
from worker.results import Results, Screened, Unscreened
from worker.scoring.rules import Rules
from worker.settings import Settings
from worker.stream import admission
from worker.stream.held import Held, Load
from worker.stream.ledger import Ledger
from worker.stream.publisher import Delivery, Outgoing, Publisher
from worker.stream.turnstile import Turnstile
from worker.telemetry import metrics

RECENT_LOOKS = 4096


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upload that waits for the device; `held` is the memory of its pixels."""

    query: Query
    held: contextlib.ExitStack


class Pipeline:
    """All stages between the consumer and the publisher."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        publisher: Publisher,
        embedder: Embedder,
        mirror: Mirror,
        sightings: Sightings,
        on_failure: Callable[[str, BaseException], None],
        signer_of: admission.SignerOf = admission.unsigned,
    ) -> None:
        """`sightings` takes what was matched, to count it, and knows what is in flood.

        `on_failure` is told which stage died of what; `signer_of` says whose a canary is.
        """
        self._limits = settings.limits
        self._ledger = ledger
        self._publisher = publisher
        self._embedder = embedder
        self._mirror = mirror
        self._on_failure = on_failure
        self._signer_of = signer_of
        self._rules = Rules(tuple(boxes(settings.views)), embedder.device)
        mirror.on_prepared = self._rules.prepare
        self._results = Results(settings, embedder.model, embedder.precision, sightings)
        self._held = Held()
        self._fetches = FetchQueue(
            settings.fetch,
            Fetcher(settings.fetch, settings.limits.image_bytes),
            on_failure=lambda error: on_failure("fetch", error),
        )
        self._turnstile: Turnstile[Upload] = Turnstile()
        self._recent = Recent(RECENT_LOOKS)
        self._fetched = ByteBudget(settings.limits.in_flight_bytes, metrics.FETCHED_IN_FLIGHT)
        self._decoder = Decoder(
            settings.decode,
            settings.limits,
            embedder.preprocessing,
            settings.views,
            settings.decode.threads,
        )
        self._arrived: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._lanes = DecodeLanes(
            settings.decode, settings.limits, lambda error: on_failure("decode", error)
        )
        self._batch_size = settings.batch.max_size
        self._batcher: Batcher[Decoded] = Batcher(
            self._batch_size, settings.batch.max_delay_ms / 1000
        )
        self._threads = [
            threading.Thread(target=self._guarded("admit", self._admit_all), name="admit"),
            threading.Thread(target=self._guarded("device", self._screen_all), name="device"),
        ]

    def start(self) -> None:
        """Start the stages; the embedder is warm and the mirror loaded already."""
        self._rules.prepare(self._mirror.against())
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the stages; what is still in flight is left to the next owner."""
        self._arrived.put(None)
        self._batcher.close()
        self._fetches.close()
        self._lanes.close()
        self._decoder.close()

    @property
    def alive(self) -> bool:
        """Whether the stages' threads run: for liveness."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def hosts_away(self) -> bool:
        """Whether hosts that many uploads need are away: take nothing until they are back."""
        return self._fetches.outage

    # -- admit ---------------------------------------------------------------------------------

    def admit(self, record: Record) -> None:
        """Take one record in. Called by the consumer's thread; never blocks."""
        self._held.add(record.position, record.size)
        self._arrived.put(record)

    def load(self) -> Load:
        """What is held: also of partitions that went to another owner, until it is found out."""
        return self._held.load()

    def _admit_all(self) -> None:
        """One thread, so that uploads with the same id keep their order."""
        while (record := self._arrived.get()) is not None:
            metrics.QUEUE.labels("admit").set(self._arrived.qsize())
            try:
                upload = admission.read(record, self._limits.record_bytes, self._signer_of)
            except BadEvent as error:
                self._end_as_dead_letter(record, error)
                continue
            self._held.shrink(record.position, upload.size)
            del record  # only what `upload` has of it is needed from here on
            if self._turnstile.enter(upload.upload_id, upload):
                self._begin(upload)

    def _begin(self, upload: Upload) -> None:
        if url := upload.image_url:
            self._fetches.submit(
                url,
                wanted=functools.partial(self._ledger.owns, upload.position),
                done=self._guarded("fetch", functools.partial(self._arrive, upload)),
            )
            return
        self._fetches.count_inline()
        data, upload = upload.image or b"", upload.without_image()
        shrink = functools.partial(self._held.shrink, upload.position, upload.size)
        self._lanes.submit(functools.partial(self._decode, upload, data), done=shrink)

    # -- fetch ---------------------------------------------------------------------------------

    def _arrive(self, upload: Upload, result: Result) -> None:
        """Take a linked image over from the queue; its thread waits here until there is room."""
        if not self._still_ours(upload) or result is None:
            return
        with self._ending(upload):
            if isinstance(result, FetchError):
                raise result
            held = contextlib.ExitStack()
            held.enter_context(self._fetched.reserve(len(result)))
            self._lanes.submit(functools.partial(self._decode, upload, result), done=held.close)

    # -- decode --------------------------------------------------------------------------------

    def _decode(self, upload: Upload, data: bytes, reserve: Reserve) -> None:
        """Bytes to a query; bytes seen lately bring their descriptors along."""
        if not self._still_ours(upload):
            return
        with self._ending(upload):
            digest = hashlib.sha256(data).hexdigest()
            admission.verify_digest(upload, digest)
            held = contextlib.ExitStack()
            if known := self._recent.get(digest):
                query = Query(upload, known.info, known.looks, descriptors=known.descriptors)
            else:
                with _timed("decode"):
                    found = self._decoder.prepare(data, reserve)
                held.enter_context(self._lanes.hold(found.pixels.nbytes))
                query = Query(upload, found.info, found.looks, pixels=found.pixels)
            self._batcher.put(Decoded(query, held))

    # -- describe, match -----------------------------------------------------------------------

    def _screen_all(self) -> None:
        while batch := self._batcher.take():
            metrics.QUEUE.labels("describe").set(len(self._batcher))
            with contextlib.ExitStack() as held:
                for one in batch:
                    held.push(one.held)
                ours = [one.query for one in batch if self._still_ours(one.query.upload)]
                for outcome in self._describe_and_match(ours):
                    self._end(outcome)

    def _describe_and_match(self, queries: Sequence[Query]) -> Iterator[Screened | Unscreened]:
        """One outcome for each query, in order."""
        started = time.monotonic()
        with _timed("describe"):
            described = self._describe(queries)
        good = [i for i, one in enumerate(described) if isinstance(one, torch.Tensor)]
        compared: dict[int, Compared] = {}
        if good:
            with _timed("match"):
                uploads = [one for one in described if isinstance(one, torch.Tensor)]
                tenants = [queries[i].upload.tenant for i in good]
                canaries = [queries[i].upload.is_canary for i in good]
                found = compare(self._mirror, self._rules, uploads, tenants, canaries)
                compared = dict(zip(good, found, strict=True))
        metrics.DEVICE_BUSY.inc(time.monotonic() - started)
        for i, (query, one) in enumerate(zip(queries, described, strict=True)):
            if isinstance(one, Unscreenable):
                yield Unscreened(query.upload, one, query.info)
            else:
                yield Screened(query.upload, query.info, query.looks, compared[i])

    def _describe(self, queries: Sequence[Query]) -> list[torch.Tensor | Unscreenable]:
        """The descriptors of each one's looks on the device, [looks, dims], or why there are none.

        One look that cannot be described leaves the upload unscreened.
        """
        pictures = [picture for query in queries for picture in _pictures(query)]
        rows = iter(
            row
            for batch in batched(pictures, self._batch_size)
            for row in self._bisect(np.stack(batch))
        )
        found: list[torch.Tensor | Unscreenable] = []
        for query in queries:
            if query.descriptors is not None:
                found.append(torch.from_numpy(query.descriptors).to(self._embedder.device))
                continue
            looks = [next(rows) for _ in query.looks]
            if failed := next((row for row in looks if isinstance(row, Unscreenable)), None):
                found.append(failed)
                continue
            described = torch.stack(cast("list[torch.Tensor]", looks))
            self._recent.put(Described(query.info, query.looks, described.cpu().numpy()))
            found.append(described)
        return found

    def _bisect(self, pictures: Looks) -> list[torch.Tensor | Unscreenable]:
        """Describe a batch; one that fails is halved until the culprit is alone."""
        try:
            return list(self._embedder.describe(pictures))
        except Exception as error:  # noqa: BLE001 - each runtime has errors of its own
            if len(pictures) > 1:
                half = len(pictures) // 2
                return self._bisect(pictures[:half]) + self._bisect(pictures[half:])
            self._embedder.warm(1)  # a device that fails on a plain picture is broken: that raises
            detail = f"the model failed on this picture: {type(error).__name__}"
            return [Unscreenable(UnscreenedReason.DESCRIBE_FAILED, detail)]

    # -- publish -------------------------------------------------------------------------------

    def _end(self, outcome: Screened | Unscreened) -> None:
        """Hand the one result of an upload to the publisher."""
        upload = outcome.upload

        def make() -> Sequence[Outgoing]:
            match outcome:
                case Screened():
                    return self._results.screened(outcome)
                case Unscreened():
                    return self._results.unscreened(outcome)

        def done(finished: bool) -> None:  # noqa: FBT001 - the publisher's callback
            if finished:
                waited = datetime.now(UTC) - upload.received_at
                metrics.END_TO_END.observe(waited.total_seconds())
            self._held.remove(upload.position)

        # Kafka keeps the order in which results of one id are sent, so the next one may follow.
        sent = functools.partial(self._leave, upload.upload_id)
        refused = functools.partial(self._results.refused, upload.origin)
        self._publisher.submit(Delivery(upload.position, make, refused, sent, done))

    def _end_as_dead_letter(self, record: Record, error: BadEvent) -> None:
        """The result of a record that has no upload id to wait for."""
        self._publisher.submit(
            Delivery(
                record.position,
                make=lambda: self._results.dead_letter(record, error),
                refused=functools.partial(self._results.refused, record.origin),
                sent=lambda: None,
                done=lambda _finished: self._held.remove(record.position),
            )
        )

    def _leave(self, upload_id: str) -> None:
        """Let the next upload with this id in, if one waits."""
        while (waiting := self._turnstile.leave(upload_id)) is not None:
            if self._ledger.owns(waiting.position):
                self._begin(waiting)
                return
            self._drop(waiting)

    # -- what all stages share -----------------------------------------------------------------

    def _still_ours(self, upload: Upload) -> bool:
        """False: the partition has another owner now, who will screen the upload."""
        if self._ledger.owns(upload.position):
            return True
        self._drop(upload)
        self._leave(upload.upload_id)
        return False

    def _drop(self, upload: Upload) -> None:
        metrics.DROPPED.inc()
        self._held.remove(upload.position)

    @contextlib.contextmanager
    def _ending(self, upload: Upload) -> Iterator[None]:
        """End the upload if the stage finds that it cannot be screened."""
        try:
            yield
        except Unscreenable as error:
            # A new one, for the traceback of the old one holds the picture.
            plain = Unscreenable(error.reason, str(error))
            self._end(Unscreened(upload, plain))

    def _guarded[**P](self, stage: str, work: Callable[P, None]) -> Callable[P, None]:
        """A stage that dies of an error of ours takes the process with it."""

        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                work(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - reported, and ends the process
                self._on_failure(stage, error)

        return guarded


def _pictures(query: Query) -> Sequence[Pixels]:
    """What of an upload has to be described: nothing where its bytes were seen lately."""
    return [] if query.pixels is None else list(query.pixels)


@contextlib.contextmanager
def _timed(stage: str) -> Iterator[None]:
    with metrics.STAGE_SECONDS.labels(stage).time():
        yield
