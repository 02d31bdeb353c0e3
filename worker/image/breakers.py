"""When a host is left alone, and when so much is away that nothing more should be taken.

    closed   --half of at least 20 fetches within 30 s failed-->   open
    open     one probe every few seconds, nothing else             --a probe succeeds-->   closed

Failed means transiently: connections refused or cut, 5xx, timeouts. A host that says 404 is there.

Each host has a breaker, and all hosts that count have one together. A host counts if the settings
name it, or while it gives pictures: 20 so far, the last within five minutes. One that gave none
cannot be missed, so users who post dead links stop nobody; one that gave a few and then died stops
the others for five minutes, unless it is named. While the open hosts that count carry more than 30%
of the recent uploads it is an outage. Time stands still for those 30% meanwhile, since nothing new
is taken; it does not for those five minutes.

Pure: no threads, no clock. `now` is seconds of a monotonic clock and never goes back.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

BUCKETS = 10


@dataclass(frozen=True, slots=True)
class Rule:
    """The numbers. Other ones are for tests."""

    window_seconds: float = 30.0
    fetches: int = 20
    failed_share: float = 0.5
    probe_seconds: float = 5.0
    outage_share: float = 0.3
    pictures: int = 20
    """A host that has given as many counts towards an outage. One would be cheap to fake."""
    lately_seconds: float = 300.0
    """A host that gave no picture for this long is in doubt, and counts only if it is named; an
    open one nobody asks for is forgotten."""
    hosts: int = 8192
    """Hosts remembered, those longest unused go first."""


class Window:
    """Counts what happened within the last `seconds`, by buckets: of one size whatever comes."""

    __slots__ = ("_seconds", "counts")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds / BUCKETS
        self.counts: dict[int, int] = {}
        """By bucket."""

    def add(self, now: float) -> None:
        """Count one."""
        bucket = self._move(now)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def total(self, now: float) -> int:
        """How many there were, none of them older than the window."""
        self._move(now)
        return sum(self.counts.values())

    def merge(self, other: "Window", times: int = 1) -> None:
        """Count what `other` counted as well; -1 times takes it out again."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = max(0, self.counts.get(bucket, 0) + times * count)

    def clear(self) -> None:
        """Forget all."""
        self.counts.clear()

    def _move(self, now: float) -> int:
        bucket = int(now // self._seconds)
        for old in [one for one in self.counts if one <= bucket - BUCKETS]:
            del self.counts[old]
        return bucket


class Breaker:
    """Closed, or open with a time for the next probe."""

    __slots__ = ("_rule", "failures", "fetches", "probe_due")

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.fetches = Window(rule.window_seconds)
        self.failures = Window(rule.window_seconds)
        self.probe_due: float | None = None

    @property
    def open(self) -> bool:
        """Whether only probes may be sent."""
        return self.probe_due is not None

    def probe(self, now: float) -> None:
        """One is sent."""
        self.probe_due = now + self._rule.probe_seconds

    def tell(self, now: float, *, failed: bool) -> bool:
        """How a fetch went. True: that opened or closed it."""
        if self.open:
            if failed:
                return False
            self.probe_due = None
            self.forget()
            return True
        self.count(now, failed=failed)
        if not failed or not self.due(now):
            return False
        self.probe(now)
        return True

    def count(self, now: float, *, failed: bool) -> None:
        """Remember how a fetch went, and stay as it is."""
        self.fetches.add(now)
        if failed:
            self.failures.add(now)

    def due(self, now: float) -> bool:
        """Whether enough was fetched, and enough of it failed, to open."""
        return self.fetches.total(now) >= self._rule.fetches and self.fails(now)

    def fails(self, now: float) -> bool:
        """Whether half of what was fetched failed, however little that was."""
        failures = self.failures.total(now)
        return failures > 0 and failures >= self._rule.failed_share * self.fetches.total(now)

    def merge(self, other: "Breaker", times: int = 1) -> None:
        """Count the fetches of another breaker as well; -1 times takes them out again."""
        self.fetches.merge(other.fetches, times)
        self.failures.merge(other.failures, times)

    def forget(self) -> None:
        """Begin to count anew."""
        self.fetches.clear()
        self.failures.clear()


class _Host:
    __slots__ = ("arrived", "breaker", "in_all", "pictured_at", "pictures")

    def __init__(self, rule: Rule) -> None:
        self.breaker = Breaker(rule)
        self.arrived = Window(rule.window_seconds)
        self.pictures = 0
        self.pictured_at: float | None = None
        self.in_all = False
        """Whether what its breaker counts is counted for all hosts as well."""


class Breakers[Name: Hashable]:
    """What is known about all hosts, in bounded memory. Not thread-safe.

    `is_named` says whether the settings name a host.
    """

    def __init__(self, is_named: Callable[[Name], bool], rule: Rule) -> None:
        self._is_named = is_named
        self._rule = rule
        self._hosts: OrderedDict[Name, _Host] = OrderedDict()
        self._open: set[Name] = set()
        self._all = Breaker(rule)
        self._doubtful = Breaker(rule)
        """Of hosts that may not wait; it only counts."""
        self._pictured_at: float | None = None
        self._arrived = Window(rule.window_seconds)
        self._linked = Window(rule.window_seconds)
        self._linked_to_named = Window(rule.window_seconds)
        self._outage_since: float | None = None

    @property
    def outage(self) -> bool:
        """Whether the open hosts carry so much that taking should pause."""
        return self._outage_since is not None

    @property
    def all_open(self) -> bool:
        """Whether the breaker of all hosts together is open."""
        return self._all.open

    @property
    def open_hosts(self) -> frozenset[Name]:
        """Hosts whose own breaker is open."""
        return frozenset(self._open)

    def counts(self, name: Name, now: float) -> bool:
        """Whether the host would be missed."""
        if self._is_named(name):
            return True
        host = self._known(name)
        return host.pictures >= self._rule.pictures and self._is_lately(host.pictured_at, now)

    def in_doubt(self, name: Name, now: float) -> bool:
        """Whether the host has given nothing lately, or fails: it may hold threads for nothing."""
        host = self._known(name)
        if host.breaker.fails(now):
            return True
        return not (self._is_lately(host.pictured_at, now) or self._is_named(name))

    def may_wait(self, name: Name, now: float) -> bool:
        """Whether uploads of the host may wait for their turn for as long as it takes."""
        return self.blocked(name) or self.counts(name, now) or not self.in_doubt(name, now)

    def flooded(self, now: float) -> bool:
        """Whether half of what was tried at hosts that may not wait gave nothing."""
        return self._doubtful.due(now)

    def arrived(self, name: Name | None, now: float) -> None:
        """Count an upload; `name` is None for one that brings its bytes along."""
        moment = self._moment(now)
        self._arrived.add(moment)
        if name is not None:
            self._use(name).arrived.add(moment)
            if self.counts(name, now):
                self._linked.add(moment)
            if self._is_named(name):
                self._linked_to_named.add(moment)

    def blocked(self, name: Name) -> bool:
        """Whether nothing but probes may be sent to the host."""
        return self._all.open or name in self._open

    def waits(self, name: Name, now: float) -> bool:
        """Whether uploads of a blocked host wait, rather than end without their picture."""
        return self.outage and (self._all.open or self.counts(name, now))

    def probe(self, name: Name, now: float) -> bool:
        """Whether a fetch may be sent to a blocked host now; if so, that was the probe."""
        asked = [one for one in (self._all, self._use(name).breaker) if one.open]
        if any(one.probe_due is not None and one.probe_due > now for one in asked):
            return False
        for one in asked:
            one.probe(now)
        return True

    def tell(self, name: Name, now: float, *, failed: bool, picture: bool) -> list[str]:
        """How a fetch went. Names the breakers that this opened: `host`, `all`."""
        host, opened = self._use(name), list[str]()
        if not self.may_wait(name, now):
            self._doubtful.count(now, failed=not picture)
        if picture:
            host.pictures += 1
            host.pictured_at = self._pictured_at = now
        counts = self.counts(name, now)
        self._count_for_all(host, counts=counts)
        changed = host.breaker.tell(now, failed=failed)
        if changed and host.breaker.open:
            self._open.add(name)
            opened.append("host")
        elif changed:
            self._open.discard(name)
        self._count_for_all(host, counts=counts)
        concerns_all = not failed and (picture or counts) if self._all.open else counts
        if concerns_all and name not in self._open:
            changed = self._all.tell(now, failed=failed)
            opened += ["all"] if changed and self._all.open else []
        self.judge(now)
        return opened

    def judge(self, now: float) -> None:
        """Find out whether it is an outage. To be called now and then."""
        for name in self._open.copy():
            if now - (self._known(name).breaker.probe_due or now) > self._rule.lately_seconds:
                self._forget(name)  # nobody posts links to it any more
        moment = self._moment(now)
        if self._all.open:  # a picture, whosever it was, would have closed it
            strangers_count = self._is_lately(self._pictured_at, now)
            away = (self._linked if strangers_count else self._linked_to_named).total(moment)
        else:
            away = sum(
                self._hosts[name].arrived.total(moment)
                for name in self._open
                if self.counts(name, now)
            )
        if away > self._rule.outage_share * self._arrived.total(moment):
            self._outage_since = moment
        else:
            self._outage_since = None

    def _count_for_all(self, host: _Host, *, counts: bool) -> None:
        """Let all hosts have the fetches of one that counts and is not open.

        Failures of an open host are explained: they say nothing about the others.
        """
        belongs = counts and not host.breaker.open
        if belongs != host.in_all:
            self._all.merge(host.breaker, 1 if belongs else -1)
            host.in_all = belongs

    def _is_lately(self, at: float | None, now: float) -> bool:
        return at is not None and now - at <= self._rule.lately_seconds

    def _moment(self, now: float) -> float:
        """The time by which uploads are counted."""
        return now if self._outage_since is None else self._outage_since

    def _known(self, name: Name) -> _Host:
        return self._hosts.get(name) or _Host(self._rule)

    def _use(self, name: Name) -> _Host:
        host = self._hosts.setdefault(name, self._known(name))
        self._hosts.move_to_end(name)
        if len(self._hosts) > self._rule.hosts:
            self._forget(next(iter(self._hosts)))
        return host

    def _forget(self, name: Name) -> None:
        self._open.discard(name)
        del self._hosts[name]
