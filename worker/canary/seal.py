"""The seal: what tells the worker's own canaries from uploads that only look like them.

HMAC-SHA256 over the upload id, its length before it, and the record's value, as 64 hex digits in a
header. No time is signed: a canary may wait behind any lag, and one that is published a second time
is only screened a second time, since nobody waits for it any more.
"""

import hmac

from worker.errors import StoreError

_KEYS = 2
_DIGITS = 64


class Seal:
    """The keys that this replica knows. Thread-safe.

    The key before the last one goes on being good, for uploads that wait since before a Redis that
    lost it. Without any key nothing is genuine.
    """

    def __init__(self) -> None:
        self._keys: tuple[bytes, ...] = ()  # newest first

    def learn(self, key: bytes) -> bool:
        """Sign with this key from now on; True: it is another than before."""
        if self._keys[:1] == (key,):
            return False
        self._keys = (key, *self._keys)[:_KEYS]
        return True

    def sign(self, upload_id: str, value: bytes) -> bytes:
        """The header's value. Raises StoreError where no key is known."""
        if not self._keys:
            raise StoreError("there is no key to sign canaries with")
        return _signature(self._keys[0], upload_id, value)

    def is_genuine(self, upload_id: str, value: bytes, signature: bytes) -> bool:
        """Whether a replica signed this."""
        if len(signature) != _DIGITS:
            return False
        return any(
            hmac.compare_digest(_signature(key, upload_id, value), signature) for key in self._keys
        )


def _signature(key: bytes, upload_id: str, value: bytes) -> bytes:
    name = upload_id.encode()
    signing = hmac.new(key, len(name).to_bytes(8, "big") + name, "sha256")
    signing.update(value)
    return signing.hexdigest().encode("ascii")
