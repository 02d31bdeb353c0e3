"""Calibrations applied under load: what every verdict says can be computed again."""

import itertools
import json
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import batched

import numpy as np
import pytest
import torch

from tests.fixtures.processes import MODEL, picture
from worker.descriptor import embedders
from worker.hotset.mirror import Mirror
from worker.hotset.types import Bank
from worker.image.decoder import Decoder
from worker.records import Version
from worker.scoring import artefact
from worker.scoring.learning import Way, learn
from worker.scoring.rules import Rules
from worker.settings import Decode, Limits, ModelSettings, Views
from worker.stream.tools import Tail, UploadProducer

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.processes]

REFERENCES, UPLOADS, CHANGES = 12, 240, 16
BENIGN = 120
RAW = (("content-type", b"image/jpeg"),)
NONE = "none"
WAYS: tuple[tuple[Way, float], ...] = (("none", 1.0), ("centre", 0.5), ("none", 0.0))
TOLERANCE = 2e-3
"""A descriptor is not the same to the last bit in another batch."""


def states(store, model, made):
    """A mirror of the hot set and its rules, for each calibration, from what the store has."""
    reader = store.of_model(model, artefact.read_for)
    snapshot = reader.snapshot(reader.head())
    snapshot = replace(snapshot, buckets=list(snapshot.buckets))
    expected = {}
    for name in (*made, NONE):
        mirror = Mirror(model, "cpu")
        mirror.load(replace(snapshot, calibration=made.get(name)))
        expected[name] = mirror, Rules(["plain"]).of(mirror.against())
    return expected


def check(verdict, query, mirror, rules):
    """Hold scores, thresholds and rates of a verdict to those that are computed here."""
    thresholds = rules.thresholds(None)
    assert verdict["thresholds"].keys() <= thresholds.keys()
    for bank, threshold in verdict["thresholds"].items():
        assert threshold == pytest.approx(thresholds[bank], abs=1e-4)
    (hits,) = mirror.search(query, [None], 100).hits
    (offset,) = rules.offsets(query)
    scores = {(hit.reference.reference_id, hit.view): hit.similarity - offset for hit in hits}
    for match in verdict["matches"]:
        score = scores[match["reference_id"], match["view"]]
        assert match["score"] == pytest.approx(score, abs=TOLERANCE)
        assert match["score"] >= match["threshold"] - 1e-6
        rate = rules.rules[match["bank"]].false_matches_per_million(match["score"])
        told = match["false_matches_per_million"]
        assert told is rate is None or told == pytest.approx(rate, rel=0.05)
    wanted = {
        hit.reference.reference_id
        for hit in hits
        if hit.similarity - offset >= thresholds.get(hit.bank.name, 9) + TOLERANCE
    }
    assert wanted <= {match["reference_id"] for match in verdict["matches"]}


def screened(screening, model, names, pictures):
    """Screen pictures while calibrations change; by what was applied, what was sent, and verdicts.

    Versions to names, numbers of pictures in the order that they were sent in, and verdicts by
    their place in that order.
    """
    store, kafka = screening.store, screening.stream.settings.kafka
    applied = {store.version(): NONE}
    workers = [screening.start(), screening.start()]
    for worker in workers:
        worker.wait_for("partition_assigned")
    sent: list[int] = []
    verdicts: dict[int, dict] = {}
    turns = zip(itertools.cycle(names), batched(range(len(pictures)), len(pictures) // CHANGES))
    with UploadProducer(kafka) as producer, closing(Tail(kafka, [kafka.topics.verdicts])) as tail:

        def take():
            for result in tail.poll():
                verdict = json.loads(result.value)
                verdicts[int(verdict["upload_id"])] = verdict

        deadline = time.monotonic() + 240
        for name, part in turns:
            version = store.apply_calibration(None if name == NONE else name, model.sha256)
            applied[version] = name
            # The uploads go on until one was screened under it, however slow the machine is.
            for count, number in enumerate(itertools.cycle(part), 1):
                assert time.monotonic() < deadline
                producer.send(pictures[number], str(len(sent)).encode(), RAW)
                sent.append(number)
                take()
                seen = any(Version(**one["hot_set"]) >= version for one in verdicts.values())
                if seen and count >= len(part):
                    break
        while len(verdicts) < len(sent):
            assert time.monotonic() < deadline
            take()
    return applied, sent, verdicts


def test_every_verdict_can_be_computed_again_while_calibrations_change(screening):
    embedder = embedders.load(ModelSettings(name=MODEL, threads=1))
    store, model = screening.store, embedder.model
    decoder = Decoder(Decode(workers=1), Limits(), embedder.preprocessing, Views(renditions=1))

    def describe(images):
        looks = np.concatenate([decoder.prepare(one, nullcontext).pixels for one in images])
        parts = [embedder.describe(looks[at : at + 20]) for at in range(0, len(looks), 20)]
        return torch.cat(parts)

    budget = Bank(name="rare", label="rare", severity="low", max_false_matches_per_million=200_000)
    store.set_bank(budget)
    for number in range(REFERENCES):
        screening.add_reference(f"rare-{number}", picture(900 + number), "rare")
    rows = describe([picture(2000 + number) for number in range(BENIGN)]).numpy()
    benign = rows.astype(np.float16)
    made = {
        one.id: one
        for one in (
            learn(model.sha256, benign[:40], benign[40:, None], np.arange(80), way=way, beta=beta)
            for way, beta in WAYS
        )
    }
    for one in made.values():
        store.keep_calibration(one.artefact, model.sha256)
    pictures = [
        picture(900 + number % REFERENCES) if number % 3 else picture(3000 + number)
        for number in range(UPLOADS)
    ]
    uploads = describe(pictures)

    applied, sent, verdicts = screened(screening, model, [*made, NONE], pictures)
    expected = states(store, model, made)
    seen = set()
    for number, verdict in verdicts.items():
        at = Version(**verdict["hot_set"])
        name = applied[max(version for version in applied if version <= at)]
        assert verdict["calibration"] == (None if name == NONE else name)
        seen.add(name)
        shown = sent[number]
        check(verdict, uploads[shown : shown + 1], *expected[name])
    assert seen == {*made, NONE}
    assert sum(bool(verdict["matches"]) for verdict in verdicts.values()) > len(verdicts) / 4
