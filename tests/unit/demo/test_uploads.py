from collections import Counter
from datetime import UTC, datetime

import pytest

from worker.demo import uploads
from worker.errors import BadEvent, DecodeError
from worker.image.edits import EDITS, UNEDITED
from worker.image.preprocess import decode
from worker.records import Position, Record
from worker.settings import Limits
from worker.stream import admission

LINK = "http://127.0.0.1:1"


def record(upload) -> Record:
    now = datetime.now(UTC)
    key = upload.upload_id.encode()
    return Record(Position("t", 0, 0, 1), key, upload.value, upload.headers, now, now)


def test_the_plan_has_as_many_uploads_as_asked_and_each_id_once(references, benign):
    for count in (20, 100):
        planned = uploads.plan(references, benign, count, LINK)
        assert len({one.upload_id for one in planned}) == count


def test_every_upload_is_an_event_that_leads_to_its_picture(references, benign):
    planned = uploads.plan(references, benign, 120, LINK)
    forms = Counter((one.format, one.transport) for one in planned if one.kind != "broken")
    assert len(forms) == 12
    for one in planned:
        if one.kind == "broken":
            continue
        upload = admission.read(record(one), Limits().record_bytes)
        assert upload.upload_id == one.upload_id
        if one.transport == "link":
            assert upload.image_url == f"{LINK}/{one.upload_id}"
        else:
            assert upload.image == one.image
        assert decode(one.image, Limits()).info.format == one.format


def test_every_reference_comes_unedited_and_in_all_edits(references, benign):
    planned = uploads.plan(references, benign, 2 * len(references) * len(EDITS) + 5, LINK)
    copies = {(one.expected, one.what) for one in planned if one.kind == "copy"}
    assert copies == {(picture.name, what) for picture in references for what in EDITS}
    short = uploads.plan(references, benign, 20, LINK)
    unedited = {one.expected for one in short if one.what == UNEDITED}
    assert unedited == {picture.name for picture in references}


def test_no_benign_upload_comes_twice(references, benign):
    planned = uploads.plan(references, benign, 120, LINK)
    images = [one.image for one in planned if one.kind == "benign"]
    assert len(images) == len(set(images)) > 50


def test_the_plan_is_always_the_same(references, benign):
    def told(planned):
        return [(one.upload_id, one.what, one.image) for one in planned]

    first, second = (uploads.plan(references, benign, 40, LINK) for _ in range(2))
    assert told(first) == told(second)


def test_what_is_broken_is_refused_for_the_reason_that_is_expected(references, benign):
    planned = uploads.plan(references, benign, 100, LINK)
    broken = {one.what: one for one in planned if one.kind == "broken"}
    with pytest.raises(BadEvent) as bad:
        admission.read(record(broken["no JSON"]), Limits().record_bytes)
    assert bad.value.reason == broken["no JSON"].expected
    for what in ("cut JPEG", "text as JPEG"):
        upload = admission.read(record(broken[what]), Limits().record_bytes)
        with pytest.raises(DecodeError) as refused:
            decode(upload.image or b"", Limits())
        assert refused.value.reason == broken[what].expected
    for what in ("dead link", "link to metadata"):
        assert admission.read(record(broken[what]), Limits().record_bytes).image_url
