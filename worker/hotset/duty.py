"""What the replicas share about canaries: the key that signs them, and whose duty it is to publish.

The lease is Redis's usual lock: a token that is set where there is none, renewed and given up by
whoever has it, and gone by itself when its holder is.
"""

import secrets

from redis.exceptions import LockNotOwnedError

from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable

LEASE_SECONDS = 10.0
_KEY_BYTES = 32


class Duty:
    """One replica's part in it, for one thread. All methods raise StoreError (Redis away)."""

    def __init__(self, client: Client, keys: Keys, lease_seconds: float = LEASE_SECONDS) -> None:
        self._client = client
        self._keys = keys
        self._lease = client.lock(keys.canary_lease, timeout=lease_seconds, thread_local=False)
        self._held = False

    @as_store_errors
    def key(self) -> bytes:
        """The key that all replicas have, made by whoever asks first. Raises Unusable."""
        name = self._keys.canary_key
        found = self._client.get(name)
        if found is None:
            self._client.set(name, secrets.token_hex(_KEY_BYTES), nx=True)
            found = self._client.get(name) or b""
        try:
            key = bytes.fromhex(found.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise Unusable("canary", "key", "length or digits")
        return key

    @as_store_errors
    def hold(self) -> bool:
        """Take the lease, or go on holding it for `lease_seconds`; False: another has it."""
        if self._held:
            try:
                self._lease.reacquire()
            except LockNotOwnedError:
                self._held = False
            else:
                return True
        self._held = self._lease.acquire(blocking=False)
        return self._held

    @as_store_errors
    def release(self) -> None:
        """Let another take the lease at once. Does nothing where this one has not got it."""
        if self._held:
            self._held = False
            try:
                self._lease.release()
            except LockNotOwnedError:
                return
