"""The pipeline with a real model, behind which results wait for Kafka."""

import base64
import io
import json
import threading
import time
import tracemalloc
from datetime import UTC, datetime
from typing import cast

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.hot_set import bank, snapshot
from worker.descriptor import embedders
from worker.hotset.floods import Sightings
from worker.hotset.mirror import Mirror
from worker.pipeline import Pipeline
from worker.records import Position, Record
from worker.settings import ModelSettings, Settings
from worker.stream.ledger import Ledger, Partition, Start
from worker.stream.publisher import Publisher

MIB = 1024 * 1024
UPLOADS = 24


class WaitingPublisher:
    """Keeps all results, as the publisher does while Kafka is away."""

    def __init__(self):
        self.deliveries = []
        self.all_there = threading.Event()

    def submit(self, delivery):
        self.deliveries.append(delivery)
        if len(self.deliveries) == UPLOADS:
            self.all_there.set()


def image(number):
    """A JPEG of 1 MiB, nearly all of it behind its end."""
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue().ljust(MIB, b"\0")


def record(position, form):
    key, now = f"u-{position.offset}".encode(), datetime.now(UTC)
    data = image(position.offset)
    if form == "raw":
        return Record(position, key, data, (("content-type", b"image/jpeg"),), now, now)
    event = {"upload_id": key.decode(), "image_base64": base64.b64encode(data).decode()}
    return Record(position, key, json.dumps(event).encode(), (), now, now)


@pytest.mark.parametrize("form", ["raw", "base64"])
def test_an_image_goes_when_it_is_decoded_however_long_its_result_waits(form):
    settings = Settings(decode={"isolation": "threads", "workers": 1})
    embedder = embedders.load(ModelSettings(name="sscd_distilled"))
    mirror = Mirror(embedder.model, "cpu")
    mirror.load(snapshot([bank("known-bad")], []))
    ledger, publisher, failures = Ledger(), WaitingPublisher(), []
    partition = Partition("image.uploads", 0)
    epoch = ledger.assign(partition, Start(0))
    pipeline = Pipeline(
        settings,
        ledger,
        cast("Publisher", publisher),
        embedder,
        mirror,
        Sightings(),
        on_failure=lambda *failure: failures.append(failure),
    )
    pipeline.start()
    tracemalloc.start()
    try:
        for offset in range(UPLOADS):
            position = Position(*partition, offset, epoch)
            assert ledger.take(position, 0)
            pipeline.admit(record(position, form))
        assert publisher.all_there.wait(60)
        deadline = time.monotonic() + 30
        while pipeline.load().bytes > UPLOADS * 100 and time.monotonic() < deadline:
            time.sleep(0.01)  # the last thread ends its work
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pipeline.close()
    assert not failures
    assert pipeline.load().records == UPLOADS
    assert pipeline.load().bytes < UPLOADS * 100
    assert held < UPLOADS * MIB / 2
    for delivery in publisher.deliveries:
        delivery.done(True)
    assert pipeline.load() == (0, 0)
