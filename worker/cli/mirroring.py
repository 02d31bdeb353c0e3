"""The hot set in memory, for a command that compares pictures with it."""

from typing import TYPE_CHECKING

from worker.cli.common import stderr
from worker.errors import StoreError
from worker.hotset.store import Store

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.hotset.mirror import Mirror


def load_mirror(store: Store, embedder: "Embedder", *, may_be_unusable: bool = False) -> "Mirror":
    """Load the hot set as the model sees it, and warn of references that it does not describe.

    Raises StoreError where there is no hot set, or, unless `may_be_unusable`, no other reference.
    """
    from worker.hotset.mirror import Mirror  # noqa: PLC0415 - imports torch
    from worker.scoring import calibration as calibrations  # noqa: PLC0415

    reader = store.of_model(embedder.model, calibrations.check)
    head = reader.head()
    if head is None:
        raise StoreError("there is no hot set yet: `copysieve banks set`, then `refs add`")
    mirror = Mirror(embedder.model, embedder.device)
    mirror.load(reader.snapshot(head))
    if unusable := mirror.sizes().unusable:
        line = f"{unusable} references are not described by {embedder.model.name}: add them again"
        if not mirror.sizes().references and not may_be_unusable:
            raise StoreError(line)
        stderr.print(line, style="yellow", markup=False, highlight=False)
    return mirror
