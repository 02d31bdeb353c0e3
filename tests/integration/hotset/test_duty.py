"""The lease and the key of canaries, on real servers."""

import time
from contextlib import closing

import pytest

from worker.errors import StoreError
from worker.hotset.connection import connect
from worker.hotset.duty import Duty
from worker.hotset.layout import Keys, Unusable
from worker.hotset.store import open_store

pytestmark = pytest.mark.redis
KEYS = Keys("copysieve")
SHORT = 0.5


@pytest.fixture
def duty(redis_settings):
    """Makes one replica's part, with a connection of its own."""
    clients = []

    def made(lease_seconds=30.0):
        clients.append(connect(redis_settings))
        return Duty(clients[-1], KEYS, lease_seconds)

    yield made
    for client in clients:
        client.close()


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_one_of_two_holds_it_and_goes_on_holding_it(duty):
    one, two = duty(), duty()
    assert [one.hold(), two.hold(), one.hold(), two.hold()] == [True, False, True, False]


def test_whoever_gives_it_up_lets_the_other_have_it(duty):
    one, two = duty(), duty()
    assert one.hold()
    two.release()
    assert not two.hold()
    one.release()
    assert two.hold()
    assert not one.hold()
    one.release()
    assert two.hold()


def test_a_holder_that_dies_loses_it_and_cannot_take_it_back(duty, redis_server):
    dead, heir = duty(SHORT), duty()
    assert dead.hold()
    assert not heir.hold()
    until(heir.hold)
    with redis_server.client() as client:
        token = client.get(KEYS.canary_lease)
        assert not dead.hold()
        dead.release()
        assert client.get(KEYS.canary_lease) == token
        assert client.pttl(KEYS.canary_lease) > SHORT * 1000
    assert heir.hold()


def test_holding_renews_it(duty, redis_server):
    one, two = duty(30.0), duty()
    assert one.hold()
    with redis_server.client() as client:
        client.pexpire(KEYS.canary_lease, 3_000)
        assert one.hold()
        assert client.pttl(KEYS.canary_lease) > 20_000
    assert not two.hold()


def test_a_redis_that_lost_it_gives_it_to_the_first_who_asks(duty, redis_server):
    one, two = duty(), duty()
    assert one.hold()
    with redis_server.client() as client:
        client.flushall()
    assert two.hold()
    assert not one.hold()


def test_all_have_the_same_key_and_namespaces_have_their_own(duty, redis_settings, redis_server):
    one, two = duty(), duty()
    assert one.key() == two.key() == one.key()
    other = redis_settings.model_copy(update={"namespace": "other"})
    with closing(open_store(other)) as store:
        assert store.duty().key() != one.key()
    with redis_server.client() as client:
        old = one.key()
        client.delete(KEYS.canary_key)
        assert two.key() == one.key() != old
        assert client.pttl(KEYS.canary_key) == -1


@pytest.mark.parametrize("value", [b"", b"ab", b"z" * 64, b"0" * 62, b"\xff" * 64, b"0" * 128])
def test_a_key_that_breaks_the_rules_is_none(duty, redis_server, value):
    with redis_server.client() as client:
        client.set(KEYS.canary_key, value)
        with pytest.raises(Unusable, match="canary 'key' in Redis cannot be used"):
            duty().key()
        assert client.get(KEYS.canary_key) == value


def test_without_redis_every_question_is_a_store_error(duty, redis_server):
    one = duty()
    assert one.hold()
    with redis_server.client() as client:
        client.delete(KEYS.canary_key, KEYS.canary_lease)
        client.hset(KEYS.canary_key, "not", "a string")
        client.hset(KEYS.canary_lease, "not", "a string")
    with pytest.raises(StoreError):
        one.key()
    with pytest.raises(StoreError):
        one.hold()
