"""The queue of fetches on real servers: tries, breakers, outages, and who waits for whom.

Nothing asserts how long something took: what must not wait is shown to end while the others cannot.
"""

import contextlib
import functools
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fixtures.http_server import Server, answer
from worker.errors import FetchError, UnscreenedReason
from worker.image.breakers import Rule
from worker.image.fetch import Fetcher
from worker.image.fetching import FetchQueue, Result
from worker.settings import Fetch
from worker.telemetry import metrics

QUICK = Rule(probe_seconds=0.3)
KNOWN = Rule(probe_seconds=0.3, pictures=1)
"""A host counts from its first picture on."""
AWAY = answer(b"", "503 Service Unavailable")


class Fetches:
    """A queue, and what became of what was put into it."""

    def __init__(self, fetcher: Callable[..., Fetcher], rule: Rule, settings: dict[str, Any]):
        given = {"workers": 4, "deadline_seconds": 20.0} | settings
        resolve = given.pop("resolve", None)
        self.failures: list[BaseException] = []
        self.queue = FetchQueue(
            Fetch(**{name: given[name] for name in ("workers", "deadline_seconds")}),
            fetcher(resolve, **given),
            self.failures.append,
            rule,
        )
        self.results: dict[object, Result] = {}
        self._told = threading.Condition()
        self._numbers = itertools.count()

    def submit(self, url: str, number: int = 1, wanted: Callable[[], bool] = lambda: True) -> list:
        """Put an image in, `number` times; returns their names in `results`."""
        names = [f"{url} {next(self._numbers)}" for _ in range(number)]
        for name in names:
            self.queue.submit(url, wanted, functools.partial(self._done, name))
        return names

    def wait(self, names: list) -> list[Result]:
        with self._told:
            assert self._told.wait_for(lambda: set(names) <= self.results.keys(), timeout=60)
        return [self.results[name] for name in names]

    def fetch(self, url: str) -> Result:
        return self.wait(self.submit(url))[0]

    def reasons(self, names: list) -> set:
        return {
            result.reason if isinstance(result, FetchError) else "fetched"
            for result in self.wait(names)
        }

    def _done(self, name: object, result: Result) -> None:
        with self._told:
            assert name not in self.results
            self.results[name] = result
            self._told.notify_all()


type Build = Callable[..., Fetches]


@pytest.fixture
def fetches(fetcher: Callable[..., Fetcher]) -> Iterator[Build]:
    with contextlib.ExitStack() as stack:

        def build(rule: Rule = QUICK, **settings: Any) -> Fetches:
            made = Fetches(fetcher, rule, settings)
            stack.callback(made.queue.close)
            return made

        yield build


def eventually(check: Callable[[], bool]) -> None:
    for _ in range(600):
        if check():
            return
        time.sleep(0.05)
    pytest.fail("did not happen")


def in_turn(*responses: bytes) -> Callable[[socket.socket], object]:
    """Each connection gets the next one; the last goes on for ever."""
    left = list(responses)
    return lambda peer: peer.sendall(left.pop(0) if len(left) > 1 else left[0])


def known(server: Server, fetches: Build, **settings: Any) -> Fetches:
    """The server has given a picture, so that it counts; now it is away."""
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches(KNOWN, **settings)
    queue.fetch(server.url("/picture"))
    queue.results.clear()
    server.answers["/picture"] = AWAY
    return queue


# -- tries --


@pytest.mark.parametrize(
    "failure",
    [
        AWAY,
        answer(b"", "500 Internal Server Error"),
        answer(b"", "408 Request Timeout"),
        answer(b"", "425 Too Early"),
        answer(b"", "429 Too Many Requests"),
        answer(b"short", content_length=100),
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
    ],
)
def test_what_fails_transiently_succeeds_at_the_third_try(
    server: Server, fetches: Build, failure: bytes
) -> None:
    server.answers["/picture"] = in_turn(failure, failure, answer(b"bytes"))
    before = metrics.RETRIES._value.get()
    assert fetches().fetch(server.url("/picture")) == b"bytes"
    assert len(server.requests) == 3
    assert metrics.RETRIES._value.get() == before + 2


def test_names_that_cannot_be_looked_up_now_are_tried_again(server: Server, fetches: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    replies: Iterator[Exception | list[str]] = iter(
        [socket.gaierror(socket.EAI_AGAIN, "later"), ["127.0.0.1"]]
    )

    def resolve(_host: str, _port: int) -> list[str]:
        if isinstance(reply := next(replies), Exception):
            raise reply
        return reply

    assert fetches(resolve=resolve).fetch(server.url("/picture", "a.test")) == b"bytes"


def test_refused_connections_are_tried_again(fetches: Build) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = fetches(deadline_seconds=1.5).fetch(f"http://127.0.0.1:{port}/x")
    assert isinstance(ended, FetchError)
    assert ended.reason is UnscreenedReason.FETCH_FAILED
    assert str(ended).endswith("attempts")


def test_an_attempt_in_which_nothing_comes_leaves_time_for_another(
    server: Server, fetches: Build
) -> None:
    stalls = iter([True])

    def stall_once(peer: socket.socket) -> None:
        if next(stalls, False):
            server.stopping.wait(30)
        peer.sendall(answer(b"bytes"))

    server.answers["/picture"] = stall_once
    assert fetches(deadline_seconds=6).fetch(server.url("/picture")) == b"bytes"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(b"", "404 Not Found"), UnscreenedReason.FETCH_NOT_FOUND),
        (answer(b"", "410 Gone"), UnscreenedReason.FETCH_NOT_FOUND),
        (answer(b"", "401 Unauthorized"), UnscreenedReason.FETCH_DENIED),
        (answer(b"", "403 Forbidden"), UnscreenedReason.FETCH_DENIED),
        (answer(b"", "400 Bad Request"), UnscreenedReason.FETCH_FAILED),
        (answer(b""), UnscreenedReason.FETCH_FAILED),
        (answer(b"", content_length=300_000), UnscreenedReason.TOO_LARGE),
        (
            answer(b"", "302 Found", location="http://169.254.169.254/"),
            UnscreenedReason.FETCH_DENIED,
        ),
    ],
)
def test_what_fails_for_good_is_tried_once(
    server: Server, fetches: Build, response: bytes, expected: UnscreenedReason
) -> None:
    server.answers["/picture"] = response
    queue = fetches()
    assert queue.reasons(queue.submit(server.url("/picture"))) == {expected}
    assert len(server.requests) == 1


def test_urls_that_are_refused_need_no_turn(fetches: Build) -> None:
    queue = fetches()
    names = queue.submit("file:///etc/passwd") + queue.submit("http://user@host/")
    assert set(names) == queue.results.keys()
    assert queue.reasons(names) == {UnscreenedReason.FETCH_DENIED}


def test_a_host_is_left_alone_for_as_long_as_it_asks(server: Server, fetches: Build) -> None:
    asked: list[float] = []
    later = answer(b"", "503 Service Unavailable", retry_after=2)

    def behave(peer: socket.socket) -> None:
        asked.append(time.monotonic())
        peer.sendall(later if len(asked) == 1 else answer(b"bytes"))

    server.answers["/picture"] = behave
    assert fetches().fetch(server.url("/picture")) == b"bytes"
    assert asked[1] - asked[0] >= 2  # at least: that is no question of speed

    server.answers["/much-later"] = answer(b"", "429 Too Many Requests", retry_after=3600)
    queue = fetches()
    assert queue.reasons(queue.submit(server.url("/much-later"))) == {UnscreenedReason.FETCH_FAILED}
    assert sum(request.target == "/much-later" for request in server.requests) == 1


def test_objects_are_tried_again_too(
    server: Server, fetches: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", server.url(""))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    stored = answer(b"bytes", last_modified="Mon, 01 Jan 2024 00:00:00 GMT")
    server.answers["/bucket/key"] = in_turn(AWAY, stored)
    server.answers["/bucket/odd"] = answer(b"", "400 Bad Request")
    queue = fetches(allowed_schemes=("s3",), allowed_buckets=("s3://bucket",))
    assert queue.fetch("s3://bucket/key") == b"bytes"
    assert len(server.requests) == 2
    assert queue.reasons(queue.submit("s3://bucket/odd")) == {UnscreenedReason.FETCH_FAILED}
    assert len(server.requests) == 3


def slowly(response: bytes) -> Callable[[socket.socket], object]:
    def behave(peer: socket.socket) -> None:
        time.sleep(0.05)
        peer.sendall(response)

    return behave


# -- breakers and outages --


def test_a_dead_host_is_given_up_and_others_are_not(server: Server, fetches: Build) -> None:
    server.answers["/away"] = AWAY
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"], workers=8)
    opened = metrics.BREAKERS_OPENED.labels("host")._value
    before = opened.get()
    dead = queue.submit(server.url("/away", "dead.test"), 60)
    live = queue.submit(server.url("/picture", "live.test"), 60)
    assert queue.reasons(live) == {"fetched"}
    assert queue.reasons(dead) == {UnscreenedReason.HOST_UNAVAILABLE}
    away, cut = "dead.test: away", "dead.test: no answer so far, and too many others like it"
    told = {str(queue.results[name]) for name in dead}
    assert away in told
    assert told <= {away, cut}  # on a slow machine some are cut before the breaker opens
    assert opened.get() == before + 1
    asked = sum(request.target == "/away" for request in server.requests)
    assert asked < 60
    assert queue.reasons(queue.submit(server.url("/away", "dead.test"))) == {
        UnscreenedReason.HOST_UNAVAILABLE
    }
    assert not queue.queue.outage
    server.answers["/away"] = answer(b"bytes")
    eventually(lambda: queue.fetch(server.url("/away", "dead.test")) == b"bytes")


def test_in_an_outage_nothing_ends_and_afterwards_all_is_fetched(
    server: Server, fetches: Build
) -> None:
    queue = known(server, fetches, deadline_seconds=2.0)
    names = queue.submit(server.url("/picture"), 60)
    eventually(lambda: queue.queue.outage)
    later = queue.submit(server.url("/picture"), 5)
    probes = len(server.requests)
    eventually(lambda: len(server.requests) >= probes + 10)  # for longer than any deadline
    assert not queue.results
    eventually(lambda: metrics.PARKED._value.get() == 65)
    assert metrics.OUTAGE._value.get() == 1
    server.answers["/picture"] = answer(b"bytes")
    assert queue.reasons(names + later) == {"fetched"}
    assert not queue.queue.outage
    eventually(lambda: metrics.PARKED._value.get() == metrics.OUTAGE._value.get() == 0)


def test_the_settings_name_hosts_by_their_usual_port(fetcher: Callable[..., Fetcher]) -> None:
    ours = fetcher(
        allowed_hosts=("One.test", "*.two.test"),
        allowed_buckets=("s3://bucket",),
        allowed_schemes=ALL,
    )
    named = (
        "https://ONE.test/x",
        "http://one.test:80/x",
        "https://one.test.:443/x",
        "s3://bucket/x",
    )
    for url in named:
        assert ours.is_named(ours.origin(url)), url
    for url in ("https://one.test:8443/x", "https://a.two.test/x"):
        assert not ours.is_named(ours.origin(url)), url


ALL = ("http", "https", "s3")


def test_a_host_counts_once_it_has_given_pictures(server: Server, fetches: Build) -> None:
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches()
    queue.wait(queue.submit(server.url("/picture"), QUICK.pictures))
    server.answers["/picture"] = AWAY
    names = queue.submit(server.url("/picture"), 60)
    eventually(lambda: queue.queue.outage)
    assert not set(names) & queue.results.keys()
    server.answers["/picture"] = answer(b"bytes")
    assert queue.reasons(names) == {"fetched"}


def test_uploads_without_links_count_as_well(server: Server, fetches: Build) -> None:
    """30 of 200 uploads are no outage."""
    queue = known(server, fetches, workers=8)
    for _ in range(170):
        queue.queue.count_inline()
    names = queue.submit(server.url("/picture"), 30)
    assert queue.reasons(names) == {UnscreenedReason.HOST_UNAVAILABLE}
    assert not queue.queue.outage


def test_a_dead_port_says_nothing_about_its_host(server: Server, fetches: Build) -> None:
    """Else anybody could take a platform's host away with links to a port that nobody serves."""
    server.answers["/picture"] = answer(b"bytes")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    queue = fetches(allowed_hosts=("127.0.0.1",), deadline_seconds=3.0)
    queue.wait(queue.submit(server.url("/picture"), QUICK.pictures))
    dead = queue.submit(f"http://127.0.0.1:{port}/x", 80)
    assert queue.reasons(dead) <= {
        UnscreenedReason.HOST_UNAVAILABLE,
        UnscreenedReason.FETCH_FAILED,
    }
    assert not queue.queue.outage
    assert queue.fetch(server.url("/picture")) == b"bytes"


def test_what_nobody_wants_any_more_is_dropped_while_it_waits(
    server: Server, fetches: Build
) -> None:
    queue = known(server, fetches)
    ours = threading.Event()
    ours.set()
    names = queue.submit(server.url("/picture"), 40, wanted=ours.is_set)
    eventually(lambda: queue.queue.outage)
    ours.clear()
    assert queue.wait(names) == [None] * 40
    assert not queue.queue.outage  # nothing waits: taking goes on, for a probe
    asked = len(server.requests)
    assert queue.wait(queue.submit(server.url("/other"), 3, wanted=ours.is_set)) == [None] * 3
    assert len(server.requests) == asked


# -- who waits for whom --


def test_dead_links_leave_room_for_live_ones(server: Server, fetches: Build) -> None:
    """64 hosts that take connections and never answer, and as many links to one of them."""
    server.answers["/dead"] = lambda _peer: server.stopping.wait()
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"], workers=6)
    assert queue.fetch(server.url("/picture", "live.test")) == b"bytes"
    dead = queue.submit(server.url("/dead", "one.test"), 64)
    for number in range(64):
        dead += queue.submit(server.url("/dead", f"dead-{number}.test"))
    live = queue.submit(server.url("/picture", "live.test"), 100)
    assert queue.reasons(live) == {"fetched"}
    assert not set(dead) & queue.results.keys()
    assert sum(request.target == "/dead" for request in server.requests) == 3


def test_probes_leave_room_for_live_links(server: Server, fetches: Build) -> None:
    """More open hosts that hang than threads, one of them named: each would hold one."""
    hanging = threading.Event()

    def behave(peer: socket.socket) -> None:
        if hanging.is_set():
            server.stopping.wait()
        peer.sendall(AWAY)

    server.answers["/dead"] = behave
    server.answers["/picture"] = answer(b"bytes")
    quick = Rule(probe_seconds=0.1, fetches=1)
    queue = fetches(quick, resolve=lambda _host, _port: ["127.0.0.1"], workers=8)
    assert queue.fetch(server.url("/picture", "live.test")) == b"bytes"
    dead = [server.url("/dead", f"dead-{n}.test") for n in range(20)]
    queue.wait([queue.submit(url)[0] for url in dead])
    assert len(queue.queue._breakers.open_hosts) == 20
    hanging.set()
    asked = len(server.requests)
    for _ in range(10):
        for url in dead:
            queue.submit(url, 2)
        time.sleep(0.2)
    live = queue.submit(server.url("/picture", "live.test"), 20)
    assert queue.reasons(live) == {"fetched"}
    assert sum(request.target == "/dead" for request in server.requests[asked:]) == 1


def test_a_host_that_is_back_is_found_in_a_flood(server: Server, fetches: Build) -> None:
    """Hosts in doubt hold their half for ever; the probe needs none of it."""
    server.answers["/dead"] = lambda _peer: server.stopping.wait()
    server.answers["/picture"] = AWAY
    queue = fetches(Rule(probe_seconds=0.3, fetches=2), resolve=lambda _host, _port: ["127.0.0.1"])
    gone = server.url("/picture", "gone.test")
    assert queue.reasons(queue.submit(gone, 4)) == {UnscreenedReason.HOST_UNAVAILABLE}
    for n in range(20):
        queue.submit(server.url("/dead", f"dead-{n}.test"))
    eventually(lambda: queue.queue._sent_in_doubt == 2)
    server.answers["/picture"] = answer(b"bytes")
    eventually(lambda: queue.fetch(gone) == b"bytes")
    assert queue.queue._sent_in_doubt == 2


def test_what_is_in_doubt_is_counted_by_attempts(server: Server, fetches: Build) -> None:
    """A host that is in doubt at one attempt and not at the next, many times at once."""
    queue = fetches(Rule(fetches=1000), resolve=lambda _host, _port: ["127.0.0.1"])
    names = []
    for n in range(40):
        server.answers[f"/{n}"] = in_turn(AWAY, answer(b"bytes"))
        names += queue.submit(server.url(f"/{n}", f"{n % 4}.test"))
    assert queue.reasons(names) == {"fetched"}
    eventually(lambda: queue.queue._sent == 0)
    assert queue.queue._sent_in_doubt == queue.queue._probes == 0


def test_one_slow_host_holds_half_of_the_threads(server: Server, fetches: Build) -> None:
    server.answers["/slow"] = lambda _peer: server.stopping.wait()
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"])
    for host in ("a.test", "b.test"):
        assert queue.fetch(server.url("/picture", host)) == b"bytes"
    slow = queue.submit(server.url("/slow", "a.test"), 20)
    eventually(lambda: len(server.requests) == 4)
    assert queue.reasons(queue.submit(server.url("/picture", "b.test"), 20)) == {"fetched"}
    assert not set(slow) & queue.results.keys()
    assert sum(request.target == "/slow" for request in server.requests) == 2


def test_waiting_for_a_retry_holds_no_thread(server: Server, fetches: Build) -> None:
    server.answers["/later"] = answer(b"", "503 Later", retry_after=15)
    server.answers["/picture"] = answer(b"bytes")
    queue = fetches(workers=2, rule=Rule(fetches=1000))
    waiting = queue.submit(server.url("/later"), 10)
    eventually(lambda: len(server.requests) == 10)
    assert queue.reasons(queue.submit(server.url("/picture"), 10)) == {"fetched"}
    assert not set(waiting) & queue.results.keys()


def test_a_flood_of_dead_links_ends_rather_than_fills_the_room(
    server: Server, fetches: Build
) -> None:
    """60 hosts that hang, for two threads and a deadline of 1 s: one after another takes 60 s."""
    server.answers["/dead"] = lambda _peer: server.stopping.wait()
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"], workers=2, deadline_seconds=1.0)
    names = [queue.submit(server.url("/dead", f"dead-{n}.test"))[0] for n in range(60)]
    assert queue.reasons(names) == {
        UnscreenedReason.HOST_UNAVAILABLE,
        UnscreenedReason.FETCH_TIMEOUT,
    }
    assert len(server.requests) < 20


@pytest.mark.parametrize("path", ["/refused", "/slow"])
def test_a_flood_of_dead_links_is_cut_to_four_a_thread(
    server: Server, fetches: Build, path: str
) -> None:
    """Whether they wait for a turn or for a retry, and long before any deadline."""
    server.answers["/refused"] = AWAY
    server.answers["/slow"] = slowly(AWAY)
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"], deadline_seconds=600.0)
    names = [queue.submit(server.url(path, f"dead-{n}.test"))[0] for n in range(100)]
    eventually(lambda: len(queue.results) >= 100 - 4 * 4 - 2)
    assert queue.reasons(names[:20]) == {UnscreenedReason.HOST_UNAVAILABLE}
    assert not set(names[-10:]) & queue.results.keys()  # the oldest go first


def test_a_crowd_of_new_hosts_is_not_cut(server: Server, fetches: Build) -> None:
    """Each is in doubt, they wait for several sweeps, and some of the links are dead."""
    server.answers["/picture"] = slowly(answer(b"bytes"))
    server.answers["/gone"] = answer(b"", "404 Not Found")
    queue = fetches(resolve=lambda _host, _port: ["127.0.0.1"])
    names = [
        queue.submit(server.url("/gone" if n % 4 == 0 else "/picture", f"new-{n}.test"))[0]
        for n in range(200)
    ]
    reasons = [queue.reasons([name]) for name in names]
    assert reasons.count({UnscreenedReason.FETCH_NOT_FOUND}) == 50
    assert reasons.count({"fetched"}) == 150


def test_an_image_that_waits_for_room_keeps_its_thread(
    server: Server, fetcher: Callable[..., Fetcher]
) -> None:
    """So no more images than threads wait, and memory is bounded."""
    server.answers["/picture"] = answer(b"bytes")
    room, arrived = threading.Event(), list[object]()

    def done(result: Result) -> None:
        arrived.append(result)
        room.wait(60)

    queue = FetchQueue(Fetch(workers=4), fetcher(), arrived.append)
    try:
        for _ in range(20):
            queue.submit(server.url("/picture"), lambda: True, done)
        eventually(lambda: len(arrived) == 2)
        time.sleep(0.5)
        assert len(arrived) == len(server.requests) == 2  # half of the threads: it is one host
        room.set()
        eventually(lambda: len(arrived) == 20)
    finally:
        room.set()
        queue.close()


def test_an_error_of_ours_is_told(fetches: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = fetches()
    monkeypatch.setattr(Fetcher, "fetch", None)
    queue.submit("http://127.0.0.1:9999/x")
    eventually(lambda: [type(error) for error in queue.failures] == [TypeError])
