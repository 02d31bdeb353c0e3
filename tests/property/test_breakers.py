"""Breakers against plain lists of what happened."""

import itertools
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.image.breakers import BUCKETS, Breaker, Breakers, Rule, Window

RULE = Rule()
STEPS = st.floats(0, 12, allow_nan=False)
HISTORY = st.lists(st.tuples(STEPS, st.booleans()), max_size=120)


@given(st.lists(STEPS, max_size=200))
def test_a_window_forgets_nothing_young_and_keeps_nothing_old(steps):
    window, moments, now = Window(30.0), [], 0.0
    for step in steps:
        now += step
        window.add(now)
        moments.append(now)
        young = sum(one > now - 30 + 30 / BUCKETS for one in moments)
        assert young <= window.total(now) <= sum(one > now - 30 - 1e-6 for one in moments)
        assert len(window.counts) <= BUCKETS


@given(HISTORY, st.floats(0, 0.5))
def test_a_breaker_opens_by_its_rule_and_closes_by_a_success(history, pace):
    breaker, told, now = Breaker(RULE), deque[tuple[float, bool]](), 0.0
    for step, failed in history:
        now += step * pace
        was_open = breaker.open
        changed = breaker.tell(now, failed=failed)
        assert changed == (breaker.open != was_open)
        if was_open:
            assert breaker.open == failed
            told.clear()
            continue
        told.append((now, failed))
        within = [bad for at, bad in told if at > now - 30 - 1e-6]
        surely = [bad for at, bad in told if at > now - 30 + 30 / BUCKETS]
        if breaker.open:
            assert failed
            assert len(within) >= RULE.fetches
        if failed and len(surely) == len(within) >= RULE.fetches:
            assert breaker.open == (2 * sum(within) >= len(within))


@given(st.lists(st.floats(0, 3, allow_nan=False), max_size=100))
def test_an_open_host_gets_one_probe_every_few_seconds(steps):
    breakers = away({"known"})
    now, probes = 1000.0, []
    for step in steps:
        now += step
        assert breakers.blocked("known")
        if breakers.probe("known", now):
            probes.append(now)
            breakers.tell("known", now, failed=True, picture=False)
    assert all(b - a >= RULE.probe_seconds for a, b in itertools.pairwise(probes))
    assert len(probes) >= int((now - 1000) // (RULE.probe_seconds + 3))
    breakers.tell("known", now, failed=False, picture=True)
    assert not breakers.blocked("known")
    assert not breakers.outage


def away(named, now=1000.0, uploads=40):
    """Breakers with an open host `known`."""
    breakers = Breakers(named.__contains__, RULE)
    for _ in range(uploads):
        breakers.arrived("known", now)
        breakers.tell("known", now, failed=True, picture=False)
    return breakers


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 5), st.integers(1, 30), st.booleans()),
        max_size=60,
    )
)
def test_hosts_that_never_gave_pictures_stop_nobody(history):
    """However many dead links there are; a few pictures beside them change nothing."""
    breakers, now = Breakers({"named"}.__contains__, RULE), 0.0
    pictures = dict.fromkeys(range(6), 0)
    for step, host, number, picture in history:
        now += step
        for _ in range(number):
            given = picture and pictures[host] < RULE.pictures - 1
            pictures[host] += given
            breakers.arrived(host, now)
            breakers.tell(host, now, failed=not given, picture=given)
            assert not breakers.outage
            assert not breakers.all_open
            assert not breakers.waits(host, now)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_an_outage_is_what_carries_more_than_its_share(missed, others, inline):
    breakers, now = Breakers({"missed"}.__contains__, RULE), 5.0
    for name, number in (("missed", missed), ("others", others), (None, inline)):
        for _ in range(number):
            breakers.arrived(name, now)
    for _ in range(RULE.fetches):
        breakers.tell("missed", now, failed=True, picture=False)
    expected = missed > RULE.outage_share * (missed + others + inline)
    assert breakers.outage == expected
    assert breakers.waits("missed", now) == expected
    assert not breakers.waits("others", now)
    # Nothing new is taken meanwhile, so the shares stand still; a success ends it, or silence.
    breakers.judge(now + 200)
    assert breakers.outage == expected
    breakers.judge(now + 400)
    assert not breakers.outage
    assert not breakers.open_hosts


def test_failures_of_an_open_host_are_not_those_of_all():
    """One host that is away does not stop the others, however much it had carried."""
    breakers, now = Breakers({"one", "other"}.__contains__, RULE), 0.0
    for _ in range(19):
        breakers.tell("other", now, failed=False, picture=True)
    for _ in range(19):
        breakers.tell("one", now, failed=True, picture=False)
    assert breakers.all_open  # 19 of 38, and neither host had 20 of its own
    breakers.tell("other", now, failed=False, picture=True)
    assert not breakers.all_open
    breakers.tell("one", now, failed=True, picture=False)
    assert breakers.open_hosts == {"one"}
    for _ in range(RULE.fetches):
        breakers.tell("one", now, failed=True, picture=False)
        breakers.tell("other", now, failed=False, picture=True)
    assert not breakers.all_open


def test_many_hosts_that_fail_a_little_are_an_outage_together():
    names = [f"host-{n}" for n in range(10)]
    breakers = Breakers(set(names).__contains__, RULE)
    for round_ in range(2):
        for name in names:
            breakers.arrived(name, round_)
            breakers.tell(name, round_, failed=True, picture=False)
    assert not breakers.open_hosts
    assert breakers.all_open
    assert breakers.outage
    assert all(breakers.blocked(name) and breakers.waits(name, 1) for name in [*names, "stranger"])
    sent = [name for name in names if breakers.probe(name, 10)]
    assert sent == names[:1]
    breakers.tell(names[0], 11, failed=False, picture=True)
    assert not breakers.outage
    assert not breakers.blocked("stranger")


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=20), st.integers(20, 60))
def test_twenty_pictures_and_then_dead_links_stop_the_others_for_five_minutes(steps, uploads):
    """One that nobody named; a named one is waited for until it is back."""
    breakers, now = Breakers({"named"}.__contains__, RULE), 0.0
    for name in ("named", "evil"):
        for _ in range(RULE.pictures):
            breakers.tell(name, now, failed=False, picture=True)
        for _ in range(uploads):
            breakers.arrived(name, now)
    died = now
    now += RULE.window_seconds + 1  # those pictures are explained
    for _ in range(uploads):
        breakers.arrived("evil", now)
        breakers.tell("evil", now, failed=True, picture=False)
    assert breakers.outage
    assert breakers.waits("evil", now)
    for step in steps * 100:
        now += step
        breakers.judge(now)
        if breakers.probe("evil", now):
            breakers.tell("evil", now, failed=True, picture=False)
        late = now - died > RULE.lately_seconds
        assert breakers.outage == breakers.waits("evil", now) == (not late)
        if late:
            break
    for _ in range(uploads):
        breakers.arrived("named", now)
        breakers.tell("named", now, failed=True, picture=False)
    for _ in range(100):
        now += RULE.probe_seconds
        assert breakers.probe("named", now)
        breakers.tell("named", now, failed=True, picture=False)
        assert breakers.waits("named", now)


@given(st.booleans())
def test_strangers_together_stop_the_others_for_five_minutes(named):
    """A network that is gone is waited for only where the settings name what is missed."""
    names = [f"host-{n}" for n in range(10)]
    breakers = Breakers((set(names) if named else set()).__contains__, RULE)
    for name in names:
        for _ in range(RULE.pictures):
            breakers.tell(name, 0, failed=False, picture=True)
    now = RULE.window_seconds + 1
    for n in range(4):
        for name in names:
            breakers.arrived(name, now + n)
            breakers.tell(name, now + n, failed=True, picture=False)
    assert breakers.all_open
    breakers.judge(RULE.lately_seconds)
    assert breakers.outage
    breakers.judge(RULE.lately_seconds + 1)
    assert breakers.outage == named


def test_a_host_that_stops_counting_takes_its_failures_along():
    """And brings them once when it counts again."""
    breakers = Breakers(set().__contains__, RULE)
    for _ in range(RULE.pictures):
        breakers.tell("one", 0, failed=False, picture=True)
    for _ in range(19):
        breakers.tell("one", RULE.lately_seconds - 1, failed=True, picture=False)
    assert breakers._all.failures.total(RULE.lately_seconds) == 19
    breakers.tell("one", RULE.lately_seconds + 1, failed=False, picture=False)
    assert breakers._all.failures.total(RULE.lately_seconds + 1) == 0
    breakers.tell("one", RULE.lately_seconds + 2, failed=False, picture=True)
    assert breakers._all.failures.total(RULE.lately_seconds + 2) == 19


def test_a_flood_is_what_gives_nothing_at_hosts_that_may_not_wait():
    breakers: Breakers[object] = Breakers({"named"}.__contains__, RULE)
    for _ in range(100):  # not in doubt until it fails, and it counts then too
        breakers.tell("named", 0, failed=True, picture=False)
    for n in range(19):
        breakers.tell(n, 0, failed=False, picture=False)  # a slow 404 is no picture either
    assert not breakers.flooded(0)
    breakers.tell(19, 0, failed=True, picture=False)
    assert breakers.flooded(0)
    for n in range(20, 42):
        breakers.tell(n, 0, failed=False, picture=True)
    assert not breakers.flooded(0)
    assert not any(breakers.may_wait(n, 0) for n in range(20))
    assert all(breakers.may_wait(n, 0) for n in ("named", *range(20, 42)))


def test_hosts_in_doubt_are_those_that_give_nothing_lately():
    breakers = Breakers({"named"}.__contains__, RULE)
    assert breakers.in_doubt("new", 0)
    assert not breakers.in_doubt("named", 0)
    breakers.tell("new", 0, failed=False, picture=True)
    assert not breakers.in_doubt("new", 0)
    assert breakers.in_doubt("new", RULE.lately_seconds + 1)
    breakers.tell("new", 1, failed=True, picture=False)
    breakers.tell("named", 1, failed=True, picture=False)
    assert breakers.in_doubt("new", 1)
    assert breakers.in_doubt("named", 1)


def test_memory_is_bounded_whatever_users_post():
    breakers: Breakers[int] = Breakers(lambda _name: False, Rule(hosts=100))
    for n in range(5_000):
        breakers.arrived(n, 0)
        for _ in range(RULE.fetches):
            breakers.tell(n, 0, failed=True, picture=False)
    assert len(breakers._hosts) == 100
    assert len(breakers.open_hosts) == 100


def test_a_host_that_fails_alone_opens_its_own_breaker_and_not_that_of_all():
    """What it gave before it counted is counted for all as well."""
    breakers = Breakers(set().__contains__, RULE)
    for _ in range(2 * RULE.pictures):
        breakers.tell("one", 0, failed=False, picture=True)
    for _ in range(2 * RULE.pictures):
        breakers.tell("one", 1, failed=True, picture=False)
    assert breakers.open_hosts == {"one"}
    assert not breakers.all_open
