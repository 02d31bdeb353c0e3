"""What a calibration would make of the hot set, before it is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.cli.common import stdout
from worker.cli.mirroring import rules_for
from worker.evaluation.copies import copies_of
from worker.hotset.store import Store
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.scoring.calibration import Calibration
    from worker.scoring.rules import Applied


@dataclass(frozen=True, slots=True)
class Preview:
    """The rules that banks would have, and, `with_copies`, if none of those were set aside.

    `copies` are digests of benign images that are copies of references, by reference.
    """

    applied: "Applied"
    with_copies: "Applied"
    copies: Mapping[str, tuple[str, ...]]

    @property
    def pinned(self) -> list[str]:
        """Enabled banks whose threshold was set for another calibration: they'd match nothing."""
        return [
            name
            for name, rule in self.applied.rules.items()
            if rule.state == "other_calibration" and self.applied.against.banks[name].enabled
        ]


def preview(
    store: Store, settings: Settings, embedder: "Embedder", calibration: "Calibration | None"
) -> Preview | None:
    """Load the hot set as it would be; None: there is none. Raises StoreError."""
    from worker.hotset.mirror import Mirror  # noqa: PLC0415 - imports torch
    from worker.scoring import artefact  # noqa: PLC0415

    reader = store.of_model(embedder.model, artefact.read_for)
    head = reader.head()
    if head is None:
        return None
    mirror = Mirror(embedder.model, embedder.device)
    mirror.load(replace(reader.snapshot(head), calibration=calibration))
    against, rules = mirror.against(), rules_for(settings, embedder)
    blocking = [
        one
        for one in store.references()
        if not one.canary and one.bank in against.banks and against.banks[one.bank].kind == "block"
    ]
    copies = copies_of(blocking, calibration.benign if calibration else None)
    masked = frozenset(digest for digests in copies.values() for digest in digests)
    return Preview(
        applied=rules.of(replace(against, copies=masked)),
        with_copies=rules.of(replace(against, copies=frozenset())),
        copies=copies,
    )


def tell(found: Preview) -> None:
    """Say what each bank would match at."""
    for name, rule in found.applied.rules.items():
        if rule.state != "allow":
            at = "nothing" if rule.threshold is None else f"score {rule.threshold:.4f}"
            shadow = "" if rule.is_enforced else ", nothing is enforced"
            line = f"{name}: matches at {at}{shadow} ({rule.why})"
            style = None if rule.is_enforced else "yellow"
            stdout.print(line, style=style, markup=False, highlight=False)
    if count := sum(map(len, found.copies.values())):
        line = f"{count} of its images are copies of {len(found.copies)} references: set aside"
        stdout.print(line, highlight=False)
