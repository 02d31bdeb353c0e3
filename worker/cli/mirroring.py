"""The hot set in memory, for a command that compares pictures with it."""

from typing import TYPE_CHECKING

from worker.cli.common import stderr
from worker.errors import StoreError
from worker.hotset.store import Store
from worker.image.preprocess import boxes
from worker.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from worker.descriptor.embedders import Embedder
    from worker.hotset.mirror import Mirror
    from worker.scoring.calibration import Calibration
    from worker.scoring.rules import Applied, Rules


def load_mirror(store: Store, embedder: "Embedder", *, may_be_unusable: bool = False) -> "Mirror":
    """Load the hot set as the model sees it, and warn of references that it does not describe.

    Raises StoreError where there is no hot set, or, unless `may_be_unusable`, no other reference.
    """
    from worker.hotset.mirror import Mirror  # noqa: PLC0415 - imports torch
    from worker.scoring import artefact  # noqa: PLC0415

    reader = store.of_model(embedder.model, artefact.read_for)
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


def current(mirror: "Mirror") -> "Calibration | None":
    """The calibration of a mirror that was loaded."""
    from worker.scoring.calibration import Calibration  # noqa: PLC0415 - imports torch

    found = mirror.against().calibration
    return found if isinstance(found, Calibration) else None


def current_calibration(store: Store, settings: ModelSettings) -> str | None:
    """The id of the current calibration of the model in use.

    Raises ModelError where there are some and the model's file is not here to tell which is its.
    """
    current = store.current_calibrations()
    return current.get(model_sha256(settings)) if current else None


def model_sha256(settings: ModelSettings) -> str:
    """The digest of the model in use. Raises ModelError where its file is not here."""
    from worker.descriptor import zoo  # noqa: PLC0415 - not needed for --help

    return zoo.verify(zoo.locate(settings), settings)


def rules_for(settings: Settings, embedder: "Embedder") -> "Rules":
    """What makes the rules of banks as a replica with these settings does."""
    from worker.scoring.rules import Rules  # noqa: PLC0415 - imports torch

    return Rules(tuple(boxes(settings.views)), embedder.device)


def apply_rules(store: Store, settings: Settings) -> "Applied | None":
    """The banks' rules as replicas have them now, from the whole hot set; None: there is none.

    Raises StoreError and ModelError.
    """
    from worker.descriptor import embedders  # noqa: PLC0415 - imports torch
    from worker.hotset.hot_set import Against  # noqa: PLC0415
    from worker.scoring.rules import Rules  # noqa: PLC0415

    if (head := store.head()) is None:
        return None
    if current_calibration(store, settings.model) is None:  # then it takes no descriptors
        bare = Against(head.version, store.banks(), None, {}, frozenset())
        return Rules(()).of(bare)
    embedder = embedders.load(settings.model)
    mirror = load_mirror(store, embedder, may_be_unusable=True)
    return rules_for(settings, embedder).of(mirror.against())
