"""What is done to the servers and the replicas while uploads come in, each for some `seconds`.

A fault leaves everything running; what it did is in the scene's marks.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping

from tests.chaos.scene import Scene

SESSION_SECONDS = 6.0
STARTING = 2
"""A replica takes seconds to start: in a storm so many are on their way."""

type Fault = Callable[[Scene, random.Random, float], None]


def calm(scene: Scene, _: random.Random, seconds: float) -> None:
    """Nothing happens: what the others are held to."""
    scene.sleep(seconds)


def kill(scene: Scene, chance: random.Random, seconds: float) -> None:
    """kill -9 of a replica at random; its successor starts at once."""
    until = time.monotonic() + seconds
    scene.sleep(chance.uniform(1, 4))
    while time.monotonic() < until:
        scene.kill(chance.choice(scene.joined or scene.members))
        scene.start()
        scene.sleep(chance.uniform(9, 15))


def stop(scene: Scene, chance: random.Random, seconds: float) -> None:
    """SIGSTOP of a replica for longer than the session timeout; then it goes on as if nothing.

    Meanwhile another may join, so that it comes back into a group that has changed.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        scene.sleep(chance.uniform(1, 3))
        worker = chance.choice(scene.joined or scene.members)
        with _stopped(scene, worker.process.pid, worker.log.stem):
            if chance.random() < 0.5 and len(scene.members) <= scene.replicas:
                scene.start()
            scene.sleep(SESSION_SECONDS + chance.uniform(3, 6))
        scene.sleep(4)


def storm(scene: Scene, chance: random.Random, seconds: float) -> None:
    """Members leave and others join, every few seconds; one stays at least."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if len(scene.joined) > 1:
            scene.dismiss(chance.choice(scene.joined))
        if len(scene.members) < scene.replicas + STARTING:
            scene.start()
        scene.sleep(chance.uniform(2, 4))


def broker_restart(scene: Scene, chance: random.Random, seconds: float) -> None:
    """The broker crashes and comes back with its data; later it is restarted in order."""
    scene.sleep(chance.uniform(0.1, 0.2) * seconds)
    scene.mark("broker killed")
    scene.broker.kill()
    scene.sleep(chance.uniform(1, 3))
    scene.broker.restart()
    scene.mark("broker back")
    scene.sleep(seconds / 3)
    scene.mark("broker restarts in order")
    scene.broker.restart()
    scene.mark("broker back")


def broker_pause(scene: Scene, chance: random.Random, seconds: float) -> None:
    """The broker is there, and says nothing (SIGSTOP), for longer than the session timeout."""
    scene.sleep(chance.uniform(0.1, 0.2) * seconds)
    with _stopped(scene, scene.broker.pid, "broker"):
        scene.sleep(chance.uniform(10, 14))


def redis_restart(scene: Scene, chance: random.Random, seconds: float) -> None:
    """Redis crashes and comes back with its data, twice."""
    for _ in range(2):
        scene.sleep(chance.uniform(0.1, 0.2) * seconds)
        scene.mark("Redis killed")
        scene.redis.kill()
        scene.sleep(chance.uniform(2, 5))
        scene.redis.restart()
        scene.mark("Redis back")


def image_host(scene: Scene, _: random.Random, seconds: float) -> None:
    """The image host is slow, answers 503, cuts bodies short, goes away; then all is well."""
    for mode in ("slow", "refusing", "cutting"):
        scene.mark(f"host {mode}")
        scene.host.mode = mode
        scene.sleep(seconds / 5)
    scene.mark("host away")
    scene.host.mode = "well"
    scene.host.away()
    scene.sleep(seconds / 5)
    scene.host.back()
    scene.mark("host back")


@contextlib.contextmanager
def _stopped(scene: Scene, pid: int, who: str) -> Iterator[None]:
    scene.mark(f"SIGSTOP {who}")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        scene.mark(f"SIGCONT {who}")


CALM = "calm"
FAULTS: Mapping[str, Fault] = {
    "kill": kill,
    "stop": stop,
    "storm": storm,
    "broker_restart": broker_restart,
    "broker_pause": broker_pause,
    "redis_restart": redis_restart,
    "image_host": image_host,  # last: its breaker may stay open for a while
}
