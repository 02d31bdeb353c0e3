"""How much a hot set takes, in a real Redis."""

import threading

import pytest

from tests.fixtures.hot_set import bank
from worker.errors import StoreError
from worker.hotset.store import open_store
from worker.hotset.types import MOST_BANKS

pytestmark = pytest.mark.redis


def test_one_bank_too_many_is_refused_whoever_adds_it(store, redis_settings):
    for number in range(MOST_BANKS - 1):
        store.set_bank(bank(f"b{number}"))
    refused: list[str] = []

    def add(name):
        own = open_store(redis_settings)
        try:
            own.set_bank(bank(name))
        except StoreError as error:
            refused.append(str(error))
        own.close()

    threads = [threading.Thread(target=add, args=(f"last-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["there are 1,000 banks, no more can be: remove one first"] * 3
    assert len(store.banks()) == MOST_BANKS
    store.set_bank(bank("b0", threshold=0.9))
    store.remove_bank("b1")
    store.set_bank(bank("b1"))
