import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.canary.seal import Seal
from worker.errors import StoreError
from worker.stream.admission import Signer

KEY, OTHER, THIRD = bytes(32), bytes([1]) * 32, bytes([2]) * 32


def sealed(*keys):
    seal = Seal()
    for key in keys:
        seal.learn(key)
    return seal


def test_it_is_the_hmac_that_the_documentation_tells():
    message = (8).to_bytes(8, "big") + b"canary:1" + b"value"
    key_id = hmac.new(KEY, b"copysieve canary key id", hashlib.sha256).hexdigest()[:16]
    expected = f"{key_id}:{hmac.new(KEY, message, hashlib.sha256).hexdigest()}".encode()
    assert sealed(KEY).sign("canary:1", b"value") == expected


@given(st.text(max_size=20), st.binary(max_size=50), st.text(max_size=20), st.binary(max_size=50))
def test_only_what_was_signed_is_genuine(upload_id, value, other_id, other_value):
    signature = sealed(KEY).sign(upload_id, value)
    replica = sealed(KEY)
    assert replica.signer_of(upload_id, value, signature) is Signer.OURS
    same = (other_id, other_value) == (upload_id, value)
    expected = Signer.OURS if same else Signer.NOBODY
    assert replica.signer_of(other_id, other_value, signature) is expected
    assert sealed(OTHER).signer_of(upload_id, value, signature) is Signer.ANOTHER


@pytest.mark.parametrize(
    "signature",
    [b"", b"0" * 64, b"\xff" * 81, b"0" * 16 + b":", b"0" * 10_000, b"0" * 16 + b":" + b"g" * 64],
)
def test_what_is_no_signature_is_not_genuine(signature):
    assert sealed(KEY).signer_of("canary:1", b"value", signature) is Signer.NOBODY
    upper = sealed(KEY).sign("canary:1", b"value").upper()
    assert sealed(KEY).signer_of("canary:1", b"value", upper) is Signer.NOBODY


def test_bytes_cannot_move_between_id_and_value():
    signature = sealed(KEY).sign("canary:1", b"23")
    assert sealed(KEY).signer_of("canary:12", b"3", signature) is Signer.NOBODY


def test_without_a_key_nothing_is_signed_and_nothing_genuine():
    for signature in (b"", sealed(b"").sign("canary:1", b"v"), sealed(KEY).sign("canary:1", b"v")):
        assert Seal().signer_of("canary:1", b"v", signature) is Signer.NOBODY
    with pytest.raises(StoreError, match="no key"):
        Seal().sign("canary:1", b"v")


def test_the_last_key_but_one_is_still_good():
    seal = Seal()
    assert seal.learn(KEY)
    assert not seal.learn(KEY)
    old = seal.sign("canary:1", b"v")
    assert seal.learn(OTHER)
    assert seal.signer_of("canary:1", b"v", old) is Signer.OURS
    assert seal.sign("canary:1", b"v") == sealed(OTHER).sign("canary:1", b"v")
    seal.learn(THIRD)
    assert seal.signer_of("canary:1", b"v", old) is Signer.ANOTHER
