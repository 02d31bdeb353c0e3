"""The short form of the decoders' part of `make fuzz`."""

from tests.fuzz.decoding import decode_all
from worker.image.formats import FORMATS


def test_mutated_pictures_of_every_format_end_in_a_picture_or_a_reason():
    report = decode_all(1, 1_000)
    assert report.failures == []
    assert report.deaths == {}
    assert report.outcomes.keys() == FORMATS.keys()
    for kind, outcomes in report.outcomes.items():
        assert outcomes["picture"] > 0, kind
        assert outcomes["undecodable"] > 0, kind
