"""What was waited for is matched: no upload that comes after it misses it, on any replica."""

import io
import json
import time
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.processes import MODEL, picture
from worker.cli.waiting import wait_for
from worker.descriptor import embedders
from worker.hotset.types import Descriptors, Reference
from worker.records import Version
from worker.settings import ModelSettings
from worker.stream.tools import Tail, UploadProducer

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

REFERENCES = 200
FIRST = 1000
RAW = (("content-type", b"image/jpeg"),)


def described(pictures):
    """Descriptors of pictures, fp16 [n, dims], and the model that made them."""
    embedder = embedders.load(ModelSettings(name=MODEL, threads=1))
    size = embedder.preprocessing.size
    pixels = [np.asarray(Image.open(io.BytesIO(one)).resize((size, size))) for one in pictures]
    rows = [
        embedder.describe(np.stack(pixels[n : n + 20])).numpy() for n in range(0, len(pixels), 20)
    ]
    return np.concatenate(rows).astype(np.float16), embedder.model


def test_a_reference_that_was_waited_for_is_never_missed(screening):
    pictures = [picture(FIRST + number) for number in range(REFERENCES)]
    rows, model = described(pictures)
    likeness = rows.astype(np.float32) @ rows.astype(np.float32).T
    threshold = screening.store.banks()["known-bad"].threshold
    assert np.triu(likeness, k=1).max() < threshold  # each matches itself alone

    kafka = screening.stream.settings.kafka
    workers = [screening.start(), screening.start()]
    for worker in workers:
        worker.wait_for("partition_assigned")
    found, wanted = {}, {}
    with UploadProducer(kafka) as producer, closing(Tail(kafka, [kafka.topics.verdicts])) as tail:
        for number, (image, row) in enumerate(zip(pictures, rows, strict=True)):
            if number == REFERENCES // 4:  # one that starts meanwhile
                workers.append(screening.start())
            if number == REFERENCES * 3 // 4:
                workers[-1].wait_for("partition_assigned")
            name = f"known-{number}"
            reference = Reference(
                reference_id=name, bank="known-bad", added_by="ann", added_at=datetime.now(UTC)
            )
            one = Descriptors(("plain",), row[np.newaxis])
            version = screening.store.add_references([(reference, one)], model).version
            waited = wait_for(screening.store, version, 60)
            assert len(waited.applied) >= 2
            assert waited.late == []
            producer.send(image, name.encode(), RAW)
            wanted[name] = version
            deadline = time.monotonic() + 60
            while name not in found:  # else it would wait behind others, and be screened later
                assert time.monotonic() < deadline
                for result in tail.poll():
                    verdict = json.loads(result.value)
                    found[verdict["upload_id"]] = verdict

    assert found.keys() == wanted.keys()
    for name, version in wanted.items():
        verdict = found[name]
        assert verdict["outcome"] == "match", name
        assert [match["reference_id"] for match in verdict["matches"]] == [name]
        assert Version(**verdict["hot_set"]) >= version
    screened = [worker.total('copysieve_uploads_total{outcome="match"}') for worker in workers]
    assert sum(screened) == REFERENCES
    assert min(screened) > 0
