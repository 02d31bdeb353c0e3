import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.canary.seal import Seal
from worker.errors import StoreError

KEY, OTHER, THIRD = bytes(32), bytes([1]) * 32, bytes([2]) * 32


def sealed(*keys):
    seal = Seal()
    for key in keys:
        seal.learn(key)
    return seal


def test_it_is_the_hmac_that_the_documentation_tells():
    message = (8).to_bytes(8, "big") + b"canary:1" + b"value"
    expected = hmac.new(KEY, message, hashlib.sha256).hexdigest().encode()
    assert sealed(KEY).sign("canary:1", b"value") == expected


@given(st.text(max_size=20), st.binary(max_size=50), st.text(max_size=20), st.binary(max_size=50))
def test_only_what_was_signed_is_genuine(upload_id, value, other_id, other_value):
    signature = sealed(KEY).sign(upload_id, value)
    replica = sealed(KEY)
    assert replica.is_genuine(upload_id, value, signature)
    same = (other_id, other_value) == (upload_id, value)
    assert replica.is_genuine(other_id, other_value, signature) == same
    assert not sealed(OTHER).is_genuine(upload_id, value, signature)


@pytest.mark.parametrize(
    "signature", [b"", b"0" * 64, b"\xff" * 64, "é".encode() * 32, b"0" * 10_000]
)
def test_what_is_no_signature_is_not_genuine(signature):
    assert not sealed(KEY).is_genuine("canary:1", b"value", signature)
    upper = sealed(KEY).sign("canary:1", b"value").upper()
    assert not sealed(KEY).is_genuine("canary:1", b"value", upper)


def test_bytes_cannot_move_between_id_and_value():
    signature = sealed(KEY).sign("canary:1", b"23")
    assert not sealed(KEY).is_genuine("canary:12", b"3", signature)


def test_without_a_key_nothing_is_signed_and_nothing_genuine():
    nothing = hmac.new(b"", (8).to_bytes(8, "big") + b"canary:1v", "sha256").hexdigest().encode()
    assert not Seal().is_genuine("canary:1", b"v", nothing)
    with pytest.raises(StoreError, match="no key"):
        Seal().sign("canary:1", b"v")


def test_the_last_key_but_one_is_still_good():
    seal = Seal()
    assert seal.learn(KEY)
    assert not seal.learn(KEY)
    old = seal.sign("canary:1", b"v")
    assert seal.learn(OTHER)
    assert seal.is_genuine("canary:1", b"v", old)
    assert seal.sign("canary:1", b"v") == sealed(OTHER).sign("canary:1", b"v")
    seal.learn(THIRD)
    assert not seal.is_genuine("canary:1", b"v", old)
