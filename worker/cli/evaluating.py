"""What `evaluate` does, from pictures to findings: somebody's own pictures, or a labelled set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer

from worker.cli import progress
from worker.cli.common import with_model
from worker.descriptor import embedders
from worker.descriptor.embedders import Embedder
from worker.errors import StartupError
from worker.evaluation import describing, experiment, groups, labelled
from worker.evaluation import splits as dealing
from worker.evaluation.choices import ALL, PHASH, Choice, Normalisation
from worker.evaluation.describing import Picture
from worker.evaluation.edits import EDITS, Edit
from worker.evaluation.experiment import Findings, Resampling
from worker.evaluation.gallery import Benign, Comparing, System
from worker.evaluation.groups import Grouping
from worker.evaluation.words import counted
from worker.image.files import walk
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """The options that both ways to evaluate have."""

    settings: Settings
    models: Sequence[str]
    choices: Sequence[str]
    seed: int
    replicates: int
    nearest: int
    k: int
    beta: float | None

    def comparing(self, benign: Benign = "edited") -> Comparing:
        """How systems compare."""
        return Comparing(Normalisation(self.k, self.beta), self.nearest, benign)

    @property
    def resampling(self) -> Resampling:
        """How intervals are made."""
        return Resampling(self.replicates, self.seed)


@dataclass(frozen=True, slots=True)
class Own:
    """Pictures of one's own, and what is made of them."""

    images: Path
    groups: Path | None
    edits: Sequence[str]
    splits: int
    most: int
    benign: Benign

    def name(self, file: Path) -> str:
        """What a picture is called: its path in the folder."""
        return file.relative_to(self.images).as_posix()


@dataclass(frozen=True, slots=True)
class Labelled:
    """A set that somebody labelled."""

    references: Path
    queries: Path
    background: Path | None
    truth: Path


def of_own(own: Own, plan: Plan) -> Findings:
    """Make copies, deal roles, compare. Raises StartupError, and BadParameter for an option."""
    edits = _edits(own.edits)
    systems, models = _systems(plan, background=True)
    files = list(walk([own.images]))
    if 0 < len(files) < dealing.LEAST_GROUPS:
        there = counted(len(files), "file")
        raise StartupError(f"{there}, evaluate needs {dealing.LEAST_GROUPS} scenes")
    with progress.counts("reading", min(len(files), own.most)) as advance:
        read = describing.read(_some(files, own.most, plan.seed), plan.settings, advance)
    pictures, left_out = read
    if not pictures:
        raise StartupError(f"{own.images}: there is no picture that can be read")
    grouping = _grouped(own, files, pictures)
    hosts = dealing.hosts(grouping.groups, plan.seed)
    splits = dealing.make(grouping.groups, hosts, own.splits, plan.seed)
    if plan.k > (least := min(len(split.background) for split in splits)):
        raise typer.BadParameter(f"{plan.k}: the background has {least}", param_hint="--k")
    with progress.counts("describing copies", len(pictures)) as advance:
        gallery = describing.describe(
            pictures, grouping.groups, hosts, edits, models, plan.settings, plan.seed, advance
        )
    gallery = replace(gallery, names=[own.name(one.file) for one in pictures])
    with progress.counts("comparing", len(splits)) as advance:
        trials = experiment.run(gallery, systems, splits, plan.comparing(own.benign), advance)
    facts = _facts(plan, models) | {
        "pictures": len(pictures),
        "scenes": len(np.unique(grouping.groups)),
        "grouped_by": dict(grouping.pairs),
        "splits": own.splits,
        "each_split": {role: len(getattr(splits[0], role)) for role in dealing.SHARES},
        "edits": [edit.name for edit in edits],
        "benign": own.benign,
        "not_chosen": max(0, len(files) - own.most),
        "left_out": [{"file": str(one.file), "reason": one.reason} for one in left_out],
    }
    with progress.counts("resampling", plan.replicates) as advance:
        return experiment.told(gallery, trials, plan.resampling, facts, _about_own(facts), advance)


def _edits(names: Sequence[str]) -> list[Edit]:
    unknown = [name for name in names if name not in EDITS]
    if unknown:
        raise typer.BadParameter(f"no such edit: {unknown[0]!r}", param_hint="--edit")
    return [edit for edit in EDITS.values() if not names or edit.name in names]


def _some(files: Sequence[Path], most: int, seed: int) -> list[Path]:
    """Of too many files some that chance chooses, in order."""
    if len(files) <= most:
        return list(files)
    chosen = np.random.default_rng([seed, 3]).choice(len(files), most, replace=False)
    return [files[number] for number in np.sort(chosen)]


def _grouped(own: Own, files: Sequence[Path], pictures: Sequence[Picture]) -> Grouping:
    """By what the pictures show, and by what the user knows."""
    with progress.shares() as on_progress:
        found = groups.group(
            describing.fingerprints(pictures),
            lambda what, share: on_progress(f"grouping by {what}", share),
        )
    if own.groups is None:
        return found
    numbers: dict[str, int | None] = {own.name(file): None for file in files}
    numbers |= {own.name(one.file): number for number, one in enumerate(pictures)}
    return groups.join(found, groups.read_groups(own.groups, numbers))


def of_labelled(given: Labelled, plan: Plan) -> Findings:
    """Compare as labelled. Raises StartupError, and BadParameter for an option."""
    systems, models = _systems(plan, background=given.background is not None)
    references, queries, background = (
        list(walk([folder])) if folder else []
        for folder in (given.references, given.queries, given.background)
    )
    truth = labelled.read_truth(given.truth, labelled.ids(queries), labelled.ids(references))
    asked = [queries[number] for number in truth.queries]
    groups_of = labelled.groups_of(len(references), len(asked), len(background))
    everything = [*references, *asked, *background]
    with progress.counts("describing", len(everything)) as advance:
        gallery = labelled.describe_all(everything, groups_of, models, plan.settings, advance)
    with progress.counts("comparing", len(systems)) as advance:
        trials = labelled.trials(gallery, systems, truth.pairs, plan.comparing(), advance)
    facts = _facts(plan, models) | {
        "references": len(references),
        "queries": len(asked),
        "background": len(background),
        "true_pairs": len(truth.pairs),
        "left_out": [
            {"file": str(queries[number]), "reason": f"not in {given.truth.name}"}
            for number in sorted(set(range(len(queries))) - set(truth.queries))
        ],
    }
    with progress.counts("resampling", plan.replicates) as advance:
        about = _about_labelled(facts)
        return experiment.told(gallery, trials, plan.resampling, facts, about, advance)


def _systems(plan: Plan, *, background: bool) -> tuple[list[System], list[Embedder]]:
    """What is evaluated, and the models for it. Raises BadParameter for what is no choice."""
    choices = _choices(plan.choices, background=background)
    named: Sequence[str | None] = plan.models or [None]
    loaded = [embedders.load(with_model(plan.settings.model, name), exact=True) for name in named]
    names = [one.model.name for one in loaded]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two models of one name", param_hint="--model")
    systems = [System(one, name) for name in names for one in choices if not one.is_hash]
    return systems + [System(one) for one in choices if one.is_hash], loaded


def _choices(names: Sequence[str], *, background: bool) -> list[Choice]:
    """Those that are named, or all that can be had here."""
    try:
        choices = list(dict.fromkeys(Choice.parse(name) for name in names or ALL))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--choice") from None
    if not names:
        choices = [one for one in choices if background or not one.needs_background]
        return [one for one in choices if describing.has_phash() or one.name != PHASH]
    for one in choices:
        if one.needs_background and not background:
            raise typer.BadParameter(f"{one.name} needs --background", param_hint="--choice")
        if one.name == PHASH and not describing.has_phash():
            raise StartupError("phash needs the package ImageHash: pip install ImageHash")
    return choices


# -- what is told ---------------------------------------------------------------------------------


def _facts(plan: Plan, models: Sequence[Embedder]) -> dict[str, Any]:
    """What it takes to do it again."""
    return {
        "models": [
            {"name": one.model.name, "sha256": one.model.sha256, "precision": one.precision}
            for one in models
        ],
        "seed": plan.seed,
        "k": plan.k,
        "beta": plan.beta,
        "nearest": plan.nearest,
        "replicates": plan.replicates,
    }


def _about_own(facts: dict[str, Any]) -> dict[str, str]:
    each, edits = facts["each_split"], len(facts["edits"])
    forms = {"edited": "in all forms, as copies are", "unedited": "as they are"}
    return {
        "model": _models(facts),
        "pictures": f"{facts['pictures']:,}, {counted(facts['scenes'], 'group')} (scenes)",
        "left out": _left_out(facts),
        "splits": f"{facts['splits']}, by group; seed {facts['seed']}",
        "first split": f"{counted(each['references'], 'reference')} with"
        f" {counted(edits, 'copy', 'copies')} each, {counted(each['negatives'], 'negative')},"
        f" background of {each['background']:,}, null of {each['null']:,}",
        "benign queries": f"the negatives, {forms[facts['benign']]}",
    }


def _about_labelled(facts: dict[str, Any]) -> dict[str, str]:
    return {
        "model": _models(facts),
        "pictures": f"{counted(facts['references'], 'reference')},"
        f" {counted(facts['queries'], 'query', 'queries')},"
        f" background of {facts['background']:,}",
        "left out": _left_out(facts),
        "true pairs": f"{facts['true_pairs']:,}",
        "predictions": f"the {facts['nearest']} nearest references of each query",
    }


def _left_out(facts: dict[str, Any]) -> str:
    """How many files, by the kind of reason."""
    kinds = Counter(one["reason"].partition(":")[0] for one in facts["left_out"])
    if others := facts.get("not_chosen"):
        kinds["not chosen, by --most"] = others
    told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common())
    return told or "nothing"


def _models(facts: dict[str, Any]) -> str:
    return ", ".join(f"{one['name']} ({one['sha256'][:12]})" for one in facts["models"])
