"""The ledger driven by chance: deliver, finish, acknowledge, fail, revoke, lose, reassign, abort.

Two replicas with a ledger each share one "Kafka": a log with gaps and a store of commits.
"""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from worker.records import Position
from worker.stream.ledger import Commit, Ledger, Partition, Start
from worker.stream.metadata import (
    METADATA_BYTES,
    RUNS_BYTES,
    Log,
    Metadata,
    decode,
    decode_runs,
    encode,
    encode_runs,
)

TP = Partition("uploads", 0)
LOG = Log("cluster", "topic-id")


def runs_of(commit):
    """What the metadata of a commit tells, bound to its offset."""
    found = decode(commit.metadata)
    assert found is None or found.watermark == commit.offset
    return found.runs if found else []


def start_at(commit):
    return Start(commit.offset, tuple(runs_of(commit)), LOG)


@dataclass
class Replica:
    ledger: Ledger = field(default_factory=Ledger)
    epoch: int = 0
    cursor: int = 0
    taken: list[Position] = field(default_factory=list)
    sent: list[Position] = field(default_factory=list)


class LedgerMachine(RuleBasedStateMachine):
    """`acknowledged` is the truth: the offsets whose results Kafka has."""

    @initialize(gaps=st.lists(st.integers(0, 3), min_size=5, max_size=40))
    def start(self, gaps):
        self.log, offset = [], 0
        for gap in gaps:
            offset += gap
            self.log.append(offset)
            offset += 1
        self.committed: Commit | None = None
        self.acknowledged: set[int] = set()
        self.may_repeat: set[int] = set()
        self.stale: list[tuple[Replica, Position]] = []
        self.replicas = [Replica(), Replica()]
        self.owners: list[Replica] = []

    @property
    def owner(self) -> Replica:
        return self.owners[0]

    def owned(self):
        return bool(self.owners)

    @precondition(lambda self: not self.owners)
    @rule(which=st.integers(0, 1))
    def reassign(self, which):
        self.owners = [self.replicas[which]]
        start = self.committed or Commit(0, "", -1)
        self.owner.epoch = self.owner.ledger.assign(TP, start_at(start))
        self.owner.cursor = start.offset

    @precondition(owned)
    @rule()
    def deliver(self):
        owner = self.owner
        offset = next((o for o in self.log if o >= owner.cursor), None)
        if offset is None:
            return
        position = Position(*TP, offset, owner.epoch)
        owner.cursor = offset + 1
        if owner.ledger.take(position):
            owner.taken.append(position)
            repeated = offset in self.acknowledged and offset not in self.may_repeat
            assert not repeated, "finished twice after a clean hand-over"
        else:
            assert offset in self.acknowledged, "skipped what nobody finished"

    @precondition(lambda self: self.owned() and self.owner.taken)
    @rule(data=st.data())
    def finish(self, data):
        owner = self.owner
        position = data.draw(st.sampled_from(owner.taken))
        owner.taken.remove(position)
        assert owner.ledger.release(position)
        assert not owner.ledger.release(position), "released twice"
        owner.sent.append(position)

    @precondition(lambda self: self.owned() and self.owner.sent)
    @rule(data=st.data())
    def acknowledge(self, data):
        position = data.draw(st.sampled_from(self.owner.sent))
        self.owner.sent.remove(position)
        self._ack(position)

    def _ack(self, position):
        assert self.owner.ledger.acknowledge(position)
        self.acknowledged.add(position.offset)

    def _arrive(self, positions):
        """Kafka has them, but the ledger never learns of it: they will be sent again."""
        self.acknowledged |= {position.offset for position in positions}
        self.may_repeat |= {position.offset for position in positions}

    def _committed_offsets(self):
        if self.committed is None:
            return set()
        done = set(range(self.committed.offset))
        for start, stop in runs_of(self.committed):
            done.update(range(start, stop))
        return done

    @precondition(owned)
    @rule(taken=st.booleans())
    def commit(self, taken):
        commits = self.owner.ledger.commits()
        if commits and taken:
            self.committed = commits[TP]
            self.owner.ledger.committed(commits)

    @precondition(owned)
    @rule()
    def revoke_cleanly(self):
        owner = self.owner
        owner.ledger.revoke([TP])
        for position in owner.taken:
            assert not owner.ledger.release(position), "released while revoking"
        while owner.sent:
            self._ack(owner.sent.pop())
        assert owner.ledger.unacknowledged([TP]) == 0
        self.committed = owner.ledger.commits().get(TP, self.committed)
        self._gone()

    @precondition(owned)
    @rule()
    def lose(self):
        # What was sent may yet arrive: those offsets may be finished again by the next owner.
        self._arrive(self.owner.sent)
        self.may_repeat |= set(self.acknowledged) - self._committed_offsets()
        self._gone()

    def _gone(self):
        self.stale += [(self.owner, p) for p in self.owner.taken + self.owner.sent]
        self.owner.taken, self.owner.sent = [], []
        self.owner.ledger.drop([TP])
        assert self.owner.ledger.in_flight == 0
        self.owners = []

    @precondition(owned)
    @rule(taken=st.booleans())
    def commit_transaction(self, taken):
        """All that was sent becomes visible with its offsets, or none of it."""
        owner = self.owner
        commits = owner.ledger.commits_with(owner.sent)
        assert commits is not None
        if taken:
            while owner.sent:
                self._ack(owner.sent.pop())
            self.committed = commits.get(TP, self.committed)
            owner.ledger.committed(commits)

    @precondition(owned)
    @rule(sent_arrives=st.booleans())
    def fail(self, sent_arrives):
        """A delivery or transaction failed: a new epoch at what Kafka has of our commits."""
        owner = self.owner
        if sent_arrives:
            self._arrive(owner.sent)
        self.may_repeat |= set(self.acknowledged) - self._committed_offsets()
        position = next(iter(owner.sent), None)
        self._gone()
        if position:
            assert owner.ledger.commits_with([position]) is None
        self.reassign(self.replicas.index(owner))

    @invariant()
    def nothing_of_an_old_epoch_passes(self):
        for replica, position in getattr(self, "stale", []):
            assert not replica.ledger.release(position)
            assert not replica.ledger.acknowledge(position)

    @invariant()
    def nothing_unacknowledged_is_committed(self):
        if getattr(self, "committed", None):
            assert (self._committed_offsets() & set(self.log)) <= self.acknowledged

    @invariant()
    def the_count_is_right(self):
        for owner in getattr(self, "owners", []):
            assert owner.ledger.in_flight == len(owner.taken) + len(owner.sent)


LedgerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestLedger = LedgerMachine.TestCase


@st.composite
def runs(draw):
    watermark = draw(st.integers(0, 10**12))
    cursor, found = watermark, []
    for _ in range(draw(st.integers(0, 30))):
        start = cursor + draw(st.integers(1, 1000))
        cursor = start + draw(st.integers(1, 1000))
        found.append((start, cursor))
    return watermark, found


@given(runs())
def test_runs_survive_the_metadata(case):
    watermark, found = case
    assert decode_runs(watermark, encode_runs(watermark, found)) == found


@given(st.integers(0, 10**12), st.integers(1, 9), st.integers(1, 9))
def test_what_is_wide_and_torn_is_told_as_bits(watermark, finished, gap):
    found = [
        (start, start + finished)
        for start in range(watermark + gap, watermark + 18_000, finished + gap)
    ]
    text = encode_runs(watermark, found)
    assert len(text) <= RUNS_BYTES
    assert decode_runs(watermark, text) == found


def test_what_does_not_fit_counts_as_not_finished():
    found = [(start, start + 1) for start in range(1, 50_000, 2)]
    text = encode_runs(0, found)
    assert len(text) <= RUNS_BYTES
    kept = decode_runs(0, text)
    assert 9_000 < len(kept) < len(found)
    assert kept == found[: len(kept)]


@given(st.floats(0, 1), st.floats(0, 0.3), st.integers())
@settings(max_examples=30, deadline=None)
def test_a_partition_that_is_not_full_always_fits(share, handed_over, seed):
    """Whatever finishes in whatever order, whoever owns it: exactly once depends on it."""
    ledger, chance = Ledger(), Random(seed)
    epoch, offset, waiting = ledger.assign(TP, Start(0)), 0, []
    acknowledged: set[int] = set()
    for _ in range(60):
        if TP not in ledger.full():
            for _ in range(ledger.most_to_take()):
                position = Position(*TP, offset, epoch)
                if ledger.take(position):
                    waiting.append(position)
                offset += 1
        chance.shuffle(waiting)
        for position in waiting[: int(share * len(waiting))]:
            ledger.release(position)
            ledger.acknowledge(position)
            acknowledged.add(position.offset)
        waiting = waiting[int(share * len(waiting)) :]
        commit = ledger.commits(changed=False)[TP]
        assert len(commit.metadata) <= METADATA_BYTES
        told = set(range(commit.offset))
        for start, stop in runs_of(commit):
            told.update(range(start, stop))
        assert told == acknowledged
        if chance.random() < handed_over:
            ledger = Ledger()
            epoch, offset = ledger.assign(TP, start_at(commit)), commit.offset
            waiting = []


def test_of_what_was_given_up_a_transaction_commits_nothing():
    """Kafka may have committed it after all, and further than the ledger knows."""
    ledger = Ledger()
    epoch = ledger.assign(TP, Start(0))
    first, second = (Position(*TP, offset, epoch) for offset in (3, 5))  # a gap before each
    assert ledger.take(first)
    assert ledger.take(second)
    assert ledger.release(first)
    assert TP in (ledger.commits_with([]) or {})
    ledger.revoke([TP])
    assert ledger.commits_with([]) == {}
    assert [c.offset for c in (ledger.commits_with([first]) or {}).values()] == [5]


def test_who_inherits_a_full_partition_goes_on():
    ledger = Ledger()
    epoch, offset = ledger.assign(TP, Start(0)), 0
    while TP not in ledger.full():
        position = Position(*TP, offset, epoch)
        ledger.take(position)
        if offset % 100:
            ledger.release(position)
            ledger.acknowledge(position)
        offset += 1
    commit = ledger.commits()[TP]
    heir = Ledger()
    epoch = heir.assign(TP, start_at(commit))
    assert TP not in heir.full()
    left = [n for n in range(offset) if heir.take(Position(*TP, n, epoch))]
    assert left == list(range(0, offset, 100))


@given(
    st.text(max_size=40) | st.from_regex(r"r1:[0-9,-]{0,20}|b1:[A-Za-z0-9=]{0,20}", fullmatch=True)
)
def test_foreign_metadata_is_no_error(text):
    assert all(start <= stop for start, stop in decode_runs(7, text))
    assert decode(text) is None


@given(runs(), st.integers(-1, 2**31 - 1), st.text())
def test_what_metadata_is_bound_to_survives_it(case, epoch, cluster):
    watermark, found = case
    bound = Metadata(Log.of(cluster, "AbCdEfGhIjKlMnOpQrStUv"), watermark, epoch, found)
    text = encode(bound)
    assert decode(text) == bound
    assert len(text.removesuffix(encode_runs(watermark, found))) <= METADATA_BYTES - RUNS_BYTES


def test_what_an_earlier_owner_finished_is_not_counted_as_unfinished():
    ledger = Ledger()
    ledger.assign(TP, Start(3, ((4, 12), (13, 20))))
    assert ledger.unfinished(TP, 3, 8) == 1
    assert ledger.unfinished(TP, 10, 30) == 11
    assert ledger.unfinished(TP, 8, 3) == 0
