"""What a change of calibration or banks would make of the hot set, before it is made."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.cli.common import stdout
from worker.cli.mirroring import current_calibration, rules_for
from worker.descriptor.embedders import Embedder
from worker.errors import StoreError
from worker.hotset import layout
from worker.hotset.policies import Lost
from worker.hotset.store import Store
from worker.hotset.types import Bank, BankPut, CalibrationPut, Change, Entry, Head
from worker.records import Version
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.hotset.mirror import Mirror
    from worker.scoring.calibration import Calibration
    from worker.scoring.rules import Applied, Rule, Rules

_NOTHING, _SHADOW, _ENFORCED = range(3)
"""What a bank does, the more the higher."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The rules that banks have `before` a change, and that they would have `after` it.

    `with_copies` are the latter if no copies were set aside; `copies` are digests of benign images
    that are copies of references, by reference.
    """

    before: "Applied"
    after: "Applied"
    with_copies: "Applied"
    copies: Mapping[str, tuple[str, ...]]

    @property
    def set_aside(self) -> int:
        """How many of the calibration's images are copies of references."""
        if self.after.masked is None or (benign := self.after.masked.calibration.benign) is None:
            return 0
        return len({name for names in self.copies.values() for name in names} & {*benign.names})

    def refuse_less(self, advice: str) -> None:
        """Raise StoreError where a bank would do less than it does, without being asked to."""
        if told := less(self.before, self.after):
            raise StoreError(f"then {'; '.join(told)}: {advice}, or --force")


def less(before: "Applied", after: "Applied") -> list[str]:
    """The banks that do less than before, though their policy asks for more, each with why."""
    told: list[str] = []
    for name, rule in after.rules.items():
        if name not in before.rules:
            continue
        bank, does = after.against.banks[name], _does(after, name)
        if does < min(_does(before, name), _asked(bank)):
            effect = "matches nothing" if does == _NOTHING else "only matches in shadow"
            told.append(f"{name} {effect} ({rule.why})")
    return told


def _asked(bank: Bank) -> int:
    if not bank.enabled or bank.kind == "allow":
        return _NOTHING
    return _ENFORCED if bank.mode == "enforce" else _SHADOW


def _does(applied: "Applied", name: str) -> int:
    bank, rule = applied.against.banks[name], applied.rules[name]
    if rule.threshold is None:
        return _NOTHING
    return min(_asked(bank), _ENFORCED if rule.is_enforced else _SHADOW)


def preview_calibration(
    store: Store,
    settings: Settings,
    embedder: Embedder,
    calibration: "Calibration | None",
    banks: Sequence[Bank] = (),
) -> Preview | None:
    """What another calibration would do, with banks as they'd be; None: there is no hot set.

    Raises StoreError.
    """
    if (head := store.head()) is None:
        return None
    mirror, rules = _load(store, embedder, head), rules_for(settings, embedder)
    before = rules.of(mirror.against())
    of = embedder.model.sha256
    put = CalibrationPut(of, calibration.id if calibration else None, calibration)
    _make(mirror, [*_puts(banks), put])
    return _compared(store, mirror, rules, before)


def preview_banks(store: Store, settings: Settings, banks: Sequence[Bank]) -> Preview:
    """What banks would do with another policy.

    The model and the descriptors are only needed where there is a calibration. Raises StoreError
    and ModelError.
    """
    from worker.descriptor import embedders  # noqa: PLC0415 - imports torch
    from worker.hotset.hot_set import Against  # noqa: PLC0415
    from worker.scoring.rules import Rules  # noqa: PLC0415

    head = store.head()
    if head is None or current_calibration(store, settings.model) is None:
        known = store.banks()
        bare = Against(head.version if head else Version(0, 0), known, None, {}, frozenset())
        other = replace(bare, banks=known | {bank.name: bank for bank in banks})
        before, after = Rules(()).of(bare), Rules(()).of(other)
        return Preview(before, after, after, {})
    embedder = embedders.load(settings.model)
    mirror, rules = _load(store, embedder, head), rules_for(settings, embedder)
    before = rules.of(mirror.against())
    _make(mirror, _puts(banks))
    after = rules.of(mirror.against())
    return Preview(before, after, after, {})


def _load(store: Store, embedder: Embedder, head: Head) -> "Mirror":
    """The hot set as it is; without its calibration where that cannot be read."""
    from worker.hotset.mirror import Mirror  # noqa: PLC0415 - imports torch
    from worker.scoring import artefact  # noqa: PLC0415

    reader = store.of_model(embedder.model, artefact.read_for)
    mirror = Mirror(embedder.model, embedder.device)
    try:
        mirror.load(reader.snapshot(head))
    except layout.Unusable as error:
        if not isinstance(error, Lost) and error.what != "calibration":
            raise
        mirror.load(reader.snapshot(head, calibrated=error.what != "calibration", whole=False))
    return mirror


def _puts(banks: Sequence[Bank]) -> list[BankPut]:
    return [BankPut(bank, layout.write_bank(bank)) for bank in banks]


def _make(mirror: "Mirror", changes: Sequence[Change]) -> None:
    """Make changes in the mirror alone: it stays at the version that it was loaded at."""
    if (head := mirror.head) is not None:
        mirror.apply(Entry(head.version, head.mark, head.mark, time.time(), changes))


def _compared(store: Store, mirror: "Mirror", rules: "Rules", before: "Applied") -> Preview:
    from worker.cli.mirroring import current  # noqa: PLC0415 - imports torch
    from worker.evaluation.copies import copies_of  # noqa: PLC0415

    against, calibration = mirror.against(), current(mirror)
    blocking = [
        one
        for one in store.references()
        if not one.canary and one.bank in against.banks and against.banks[one.bank].kind == "block"
    ]
    copies = copies_of(blocking, calibration.benign if calibration else None)
    masked = frozenset(digest for digests in copies.values() for digest in digests)
    return Preview(
        before=before,
        after=rules.of(replace(against, copies=masked)),
        with_copies=rules.of(replace(against, copies=frozenset())),
        copies=copies,
    )


def tell(found: Preview, names: Sequence[str] | None = None) -> None:
    """Say what banks would match at: all, and what was set aside, or those of these names."""
    for name, rule in found.after.rules.items():
        if rule.state != "allow" and (names is None or name in names):
            style = None if rule.is_enforced else "yellow"
            stdout.print(f"{name}: {matches(rule)}", style=style, markup=False, highlight=False)
    if names is None and (count := found.set_aside):
        line = f"{count} of the calibration's images {_are(count)} of references: set aside"
        stdout.print(line, highlight=False)


def _are(count: int) -> str:
    return "is a copy" if count == 1 else "are copies"


def matches(rule: "Rule") -> str:
    """What a bank matches at, in words."""
    if rule.threshold is None:
        return f"matches nothing ({rule.why})"
    only = "matches" if rule.is_enforced else "only matches in shadow,"
    return f"{only} at score {rule.threshold:.4f} ({rule.why})"
