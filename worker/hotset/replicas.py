"""What the live replicas tell of themselves, each under a key of its own that expires."""

from importlib import resources

from worker.hotset import layout
from worker.hotset.connection import Client, as_store_errors
from worker.hotset.layout import Keys, Unusable, reject
from worker.hotset.types import Heartbeat

EXPIRES_SECONDS = 30
"""A replica that is cut off or killed is live for so long, then taken for gone."""
_LEFT_SECONDS = 24 * 3600
"""As long as anybody may wait."""


class Replicas:
    """The heartbeats of one namespace. All methods raise StoreError where Redis is away."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        script = resources.files(__package__).joinpath("forget.lua").read_bytes()
        self._forget = client.register_script(script)

    @as_store_errors
    def live(self) -> list[Heartbeat]:
        """What they tell, by name; names of dead ones are forgotten here."""
        names = sorted(layout.text(name) for name in self._client.smembers(self._keys.replicas))
        found: list[Heartbeat] = []
        for name in names:
            raw = self._client.get(self._keys.replica(name))
            if raw is None:
                self._forget(keys=[self._keys.replicas, self._keys.replica(name)], args=[name])
                continue
            try:
                found.append(layout.read_row(Heartbeat, name, raw))
            except Unusable as error:
                reject(error)
        return found

    @as_store_errors
    def tell(self, heartbeat: Heartbeat) -> None:
        """Write a replica's heartbeat."""
        pipeline = self._client.pipeline(transaction=False)
        key = self._keys.replica(heartbeat.identity)
        pipeline.set(key, heartbeat.model_dump_json(), ex=EXPIRES_SECONDS)
        pipeline.sadd(self._keys.replicas, heartbeat.identity)
        pipeline.delete(self._keys.left(heartbeat.identity))
        pipeline.execute()

    @as_store_errors
    def leave(self, identity: str) -> None:
        """Take a replica's heartbeat away: nobody need wait for it any more."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(self._keys.left(identity), "", ex=_LEFT_SECONDS)
        pipeline.delete(self._keys.replica(identity))
        pipeline.srem(self._keys.replicas, identity)
        pipeline.execute()

    @as_store_errors
    def has_left(self, identity: str) -> bool:
        """Whether a replica that is not live has left, and was not killed or cut off."""
        return bool(self._client.exists(self._keys.left(identity)))
