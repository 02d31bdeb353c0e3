"""From picture files to references in the hot set: the work behind `copysieve refs add`."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np

from worker.cli.applying import less
from worker.cli.mirroring import current, load_mirror, rules_for
from worker.descriptor import embedders
from worker.descriptor.embedders import Embedder
from worker.descriptor.views import REFERENCE_VIEWS
from worker.errors import StoreError, Unscreenable, UnscreenedReason
from worker.evaluation.copies import with_copies
from worker.events import Severity
from worker.hotset.mirror import Mirror
from worker.hotset.store import Added, open_store
from worker.hotset.types import Bank, Descriptors, Reference, View
from worker.image import pdq
from worker.image.decoder import Decoder
from worker.image.fetch import Fetcher
from worker.image.files import bytes_of
from worker.records import Pixels, Version
from worker.scoring.calibration import Benign
from worker.scoring.rules import Rules
from worker.settings import Limits, Settings, Views
from worker.vetting import Candidate, Objected, Vetting

type Source = Path | str
"""A file, or a URL with its scheme."""
type Despite = Literal["refuse", "shadow", "force"]
"""What becomes of a picture that there are objections to: it is not added, added in shadow, or
added as any other."""


@dataclass(frozen=True, slots=True)
class Details:
    """What is noted of every picture. Without `reference_id`: the bank's name and the digest."""

    added_by: str = "copysieve"
    reference_id: str | None = None
    label: str | None = None
    severity: Severity | None = None
    source: str | None = None
    note: str | None = None
    expires_at: datetime | None = None
    canary: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A picture that could not be added. `reason` is one of the verdicts' closed list."""

    image: str
    reason: UnscreenedReason
    detail: str


@dataclass(frozen=True, slots=True)
class Questioned:
    """A picture that there are objections to: in `state` it was added, or it was refused."""

    image: str
    reference_id: str
    state: Literal["refused", "shadow", "forced"]
    objections: tuple[Objected, ...]


@dataclass(slots=True)
class Report:
    """What became of the pictures. `version` is None if none could be added.

    Of the `animated` ones the first frame is the reference. `questioned` are those that there are
    objections to, the refused ones among them. `set_aside` benign images of the calibration are
    copies of what was added, and `weakened` are the banks that match less without them, with why.
    """

    version: Version | None = None
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    animated: int = 0
    reference_ids: list[str] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    questioned: list[Questioned] = field(default_factory=list)
    set_aside: int = 0
    weakened: list[str] = field(default_factory=list)

    @property
    def refused(self) -> list[Questioned]:
        """The pictures that were not added for what speaks against them."""
        return [one for one in self.questioned if one.state == "refused"]

    def count(self, done: Added) -> None:
        """Take in what the store did."""
        self.version = done.version
        self.added += done.added
        self.replaced += done.replaced
        self.unchanged += done.unchanged


@dataclass(frozen=True, slots=True)
class _Picture:
    source: Source
    sha256: str
    frames: int
    pixels: Pixels
    pdq: str | None
    """In hex, of the pixels as they are described; None where they show too little for one."""


def add_references(
    settings: Settings,
    bank: str,
    sources: Sequence[Source],
    details: Details = Details(),
    on_progress: Callable[[int], object] = lambda _: None,
    despite: Despite = "refuse",
) -> Report:
    """Describe pictures as an upload would be, in the bank's views, and add them to the hot set.

    `on_progress` is told how many more sources are done. What cannot be read, and what there are
    objections to, is in the report, the rest is added. Raises StoreError (Redis away, no such bank,
    an id that is taken) and ModelError.
    """
    report = Report()
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(settings.redis, details.added_by)))
        policy = store.banks().get(bank)
        if policy is None:
            raise StoreError(f"there is no bank {bank}: `copysieve banks set {bank}` first")
        if details.canary and policy.kind == "allow":
            raise StoreError(f"bank {bank} matches nothing, it allows: a canary needs another")
        embedder = embedders.load(settings.model)
        mirror = load_mirror(store, embedder, may_be_unusable=True)
        share = settings.hotset.false_match_share
        rules = rules_for(settings, embedder)
        vetting = Vetting(embedder, mirror, rules, share, store.references(bank))
        calibration = current(mirror)
        benign = calibration.benign if calibration else None
        fetcher = None
        if any(is_url(source) for source in sources):
            fetcher = Fetcher(settings.fetch, settings.limits.image_bytes)
            stack.callback(fetcher.close)
        pool = stack.enter_context(ThreadPoolExecutor(settings.decode.workers))
        decoder = Decoder(
            settings.decode, settings.limits, embedder.preprocessing, Views(renditions=1)
        )
        stack.callback(decoder.close)
        copies: set[str] = set()
        read = partial(_read, limits=settings.limits, decoder=decoder, fetcher=fetcher)
        for batch in batched(sources, settings.batch.max_size):
            pictures: dict[str, _Picture] = {}
            for one in pool.map(read, batch):
                if isinstance(one, Failed):
                    report.failed.append(one)
                else:
                    pictures[one.sha256] = one
                    report.animated += one.frames > 1
            # The model gets as many at a time as in the worker, whatever the number of views.
            at_once = max(1, settings.batch.max_size // len(policy.views))
            described = [
                one
                for part in batched(pictures.values(), at_once)
                for one in _describe(part, policy.views, embedder, report)
            ]
            references = _vet(described, policy, vetting, details, despite, report, benign)
            if references:
                of = calibration.id if calibration else None
                report.count(store.add_references(references, embedder.model, of))
                copies |= {name for reference, _ in references for name in reference.copies}
            report.reference_ids += [reference.reference_id for reference, _ in references]
            on_progress(len(batch))
        if benign is not None and policy.kind == "block" and not details.canary:
            _set_aside(copies.intersection(benign.names), mirror, rules, report)
    return report


def _set_aside(copies: set[str], mirror: Mirror, rules: Rules, report: Report) -> None:
    """Tell how many benign images were set aside, and what banks do without them."""
    against = mirror.against()
    report.set_aside = len(copies - against.copies)
    if report.set_aside:
        before = rules.of(against)
        after = rules.of(replace(against, copies=against.copies | copies))
        report.weakened = less(before, after)


def is_url(source: Source) -> bool:
    """Whether a source is to be fetched."""
    return isinstance(source, str) and "://" in source


def _read(
    source: Source, limits: Limits, decoder: Decoder, fetcher: Fetcher | None
) -> _Picture | Failed:
    """One picture, decoded and resized as an upload's would be; of an animation its first frame."""
    try:
        image = decoder.prepare(_bytes_of(source, limits, fetcher), nullcontext)
    except Unscreenable as error:
        return Failed(_shown(source), error.reason, str(error))
    pixels = image.pixels[0]
    digest, quality = pdq.hash_of(pixels)
    known = digest.hex() if quality >= pdq.LEAST_QUALITY else None
    return _Picture(source, image.info.sha256, image.info.frames, pixels, known)


def _bytes_of(source: Source, limits: Limits, fetcher: Fetcher | None) -> bytes:
    if fetcher is not None and is_url(source):
        return fetcher.fetch(str(source))
    return bytes_of(Path(source), limits)


def _describe(
    pictures: Sequence[_Picture], views: tuple[View, ...], embedder: Embedder, report: Report
) -> list[tuple[_Picture, Descriptors]]:
    """Describe all views of all pictures."""
    looks = [np.stack([REFERENCE_VIEWS[view](one.pixels) for view in views]) for one in pictures]
    described = []
    for picture, found in zip(pictures, embedders.describe_each(embedder, looks), strict=True):
        if isinstance(found, Unscreenable):
            failed = Failed(_shown(picture.source), found.reason, str(found))
            report.failed.append(failed)
        else:
            rows = found.cpu().numpy().astype(np.float16)
            described.append((picture, Descriptors(views, rows)))
    return described


def _vet(
    described: Sequence[tuple[_Picture, Descriptors]],
    bank: Bank,
    vetting: Vetting,
    details: Details,
    despite: Despite,
    report: Report,
    benign: Benign | None,
) -> list[tuple[Reference, Descriptors]]:
    """Make references of what there are no objections to, or what is added in spite of them.

    Those of the `benign` images that are copies of one are noted with it.
    """
    made = [_reference(picture, bank.name, details) for picture, _ in described]
    known = (vetting.known.get(one.reference_id) for one in made)
    made = [
        one.model_copy(update={"copies": old.copies if old else ()})
        for one, old in zip(made, known, strict=True)
    ]
    candidates = [
        Candidate(reference, descriptors, picture.pixels)
        for reference, (picture, descriptors) in zip(
            with_copies(made, benign), described, strict=True
        )
    ]
    references: list[tuple[Reference, Descriptors]] = []
    for number, raised in enumerate(vetting.objections(bank, candidates)):
        candidate, source = candidates[number], described[number][0].source
        reference_id = candidate.reference.reference_id
        reference = _admitted(candidate.reference, raised, despite, vetting.known.get(reference_id))
        if reference is not None:
            references.append((reference, candidate.descriptors))
        if raised:
            question = Questioned(_shown(source), reference_id, _state(reference), raised)
            report.questioned.append(question)
    return references


def _reference(picture: _Picture, bank: str, details: Details) -> Reference:
    fields = asdict(details)
    fields["reference_id"] = details.reference_id or f"{bank}-{picture.sha256[:32]}"
    fields |= {"sha256": picture.sha256, "pdq": picture.pdq}
    return Reference(**fields, bank=bank, added_at=datetime.now(UTC))


def _admitted(
    reference: Reference,
    raised: Sequence[Objected],
    despite: Despite,
    old: Reference | None,
) -> Reference | None:
    """The reference as it is added in spite of what speaks against it; None: it is refused.

    Objections that it was added in spite of before are not raised anew: it stays as it is.
    """
    if not raised:
        return reference
    objections = tuple(one.objection for one in raised)
    if despite != "refuse":
        changes: dict[str, object] = {"shadow": despite == "shadow", "objections": objections}
    elif old is not None and set(objections) <= set(old.objections):
        note = reference.note or old.note
        changes = {"shadow": old.shadow, "objections": old.objections, "note": note}
    else:
        return None
    return reference.model_copy(update=changes)


def _state(admitted: Reference | None) -> Literal["refused", "shadow", "forced"]:
    if admitted is None:
        return "refused"
    return "shadow" if admitted.shadow else "forced"


def _shown(source: Source) -> str:
    """A file by its path; a URL by its host alone, for the rest may be signed."""
    if not is_url(source):
        return str(source)
    parts = urlsplit(str(source))
    return f"{parts.scheme}://{parts.hostname}/..."
