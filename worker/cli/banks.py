"""`copysieve banks`: groups of references with one policy each."""

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from pydantic import ValidationError
from rich.table import Table

from worker.cli import admissible, waiting
from worker.cli.common import (
    ConfigOption,
    JsonOption,
    emit,
    first_problem,
    load_settings,
    stderr,
    stdout,
)
from worker.cli.mirroring import apply_rules, model_sha256
from worker.cli.waiting import ByOption, TimeoutOption, WaitOption
from worker.errors import ModelError, StoreError
from worker.events import Action, Severity
from worker.hotset.store import Store, open_store
from worker.hotset.types import Bank, View
from worker.records import Version
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.cli.applying import Preview
    from worker.scoring.rules import Rule

app = typer.Typer(name="banks", no_args_is_help=True, help="Banks: references with one policy.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits, - and _.")]
_DEFAULT_SEVERITY: Severity = "medium"
_OF_A_RULE = (
    "kind", "mode", "threshold", "calibration", "max_false_matches_per_million", "views", "enabled",
)  # fmt: skip


@app.command("set")
def set_bank(
    name: Name,
    label: Annotated[str | None, typer.Option(help="For people; NAME if unset.")] = None,
    severity: Annotated[
        Severity | None, typer.Option(help=f"{_DEFAULT_SEVERITY} if unset.")
    ] = None,
    action: Annotated[Action | None, typer.Option(help="review if unset.")] = None,
    kind: Annotated[Literal["block", "allow"] | None, typer.Option(help="block if unset.")] = None,
    mode: Annotated[
        Literal["enforce", "shadow"] | None, typer.Option(help="enforce if unset.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Match from this score on; clears the budget.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            "--max-false-matches-per-million",
            help="Match at the score the calibration gives for it; clears the threshold.",
        ),
    ] = None,
    tenants: Annotated[
        list[str] | None, typer.Option("--tenant", help="For this tenant's uploads; repeatable.")
    ] = None,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="For all uploads.")] = False,
    views: Annotated[
        list[str] | None,
        typer.Option(
            "--view",
            help=f"Describe references so: {', '.join(get_args(View.__value__))}; repeatable. "
            "Plain and inverted if unset; holds for references added later.",
        ),
    ] = None,
    suppresses: Annotated[
        list[str] | None,
        typer.Option("--suppresses", help="An allow bank overrules this bank; repeatable."),
    ] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable")] = None,
    flood_per_hour: Annotated[
        str | None,
        typer.Option(
            metavar="N|none",
            help="Alarm when one reference, or all together, match more distinct images than this "
            "in an hour. If unset, ten times the budget and 20 at least; without a budget never.",
        ),
    ] = None,
    flood_demotes: Annotated[
        bool | None,
        typer.Option(
            "--flood-demotes/--no-flood-demotes",
            help="In a flood review what would be held or blocked, but never what is critical or "
            "confirmed (`refs confirm`). Off if unset.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Even if a bank then matches less than it should, or far more."
        ),
    ] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bank, or change what is given of one; the rest of its policy stays.

    Where it has a budget, tells what it then matches at. A budget that the calibration cannot
    support would take the bank out of force, and is refused.
    """
    given: dict[str, Any] = {
        "label": label,
        "severity": severity,
        "action": action,
        "kind": kind,
        "mode": mode,
        "threshold": threshold,
        "max_false_matches_per_million": budget,
        "tenants": tuple(tenants) if tenants else None,
        "views": tuple(views) if views else None,
        "suppresses": tuple(suppresses) if suppresses else None,
        "enabled": enabled,
        "flood_demotes": flood_demotes,
    }
    given = {field: value for field, value in given.items() if value is not None}
    if all_tenants:
        given["tenants"] = None
    if flood_per_hour is not None:
        given["flood_per_hour"] = _count_or_none(flood_per_hour)

    settings = load_settings(config)

    def change(store: Store) -> Version:
        def put(old: Bank | None) -> Bank:
            return changed(name, old, given, under[1] if under else None)

        old, under = store.banks().get(name), None
        if threshold is not None or (budget is not None and not force):
            under = _calibration(store, settings)
        bank = put(old)
        for warning in _warnings(old, bank):
            stderr.print(warning, style="yellow", markup=False, highlight=False)
        calibration = under[1] if under else bank.calibration
        before, after = map(admissible.enforced_threshold, (old, bank))
        if _rule_changes(old, bank) and (found := _look_ahead(store, settings, bank, force=force)):
            before, after = (
                admissible.enforced_threshold(one.against.banks.get(name), one.rules.get(name))
                for one in (found.before, found.after)
            )
            current = found.after.against.calibration
            calibration = current.id if current else None
        if old is not None:
            admissible.try_on_recent(store, name, calibration, before, after, force=force)
        return store.change_bank(name, put, under)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


@app.command("list")
def list_banks(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell all banks, their policies, and what they match at.

    A budget is resolved as replicas do it, for the bank as it is now: at which score it matches,
    and why not, if it does not. That needs the model's file and the whole hot set.

    References that lack a view were added before their bank wanted it. Pictures are not kept: only
    adding them again describes them so.
    """
    settings = load_settings(config)
    with closing(open_store(settings.redis)) as store:
        banks = store.banks().values()
        lacking = store.lacking_views()
        rules = _rules(store, settings) if any(map(_needs_calibration, banks)) else {}
    if as_json:
        emit(
            [
                bank.model_dump(mode="json")
                | {"lacking_views": lacking.get(bank.name, {})}
                | {"rule": _resolved(rules.get(bank.name))}
                for bank in banks
            ]
        )
        return
    table = Table("bank", "label", "severity", "action", "mode", "matches at", "tenants", box=None)
    for bank in banks:
        table.add_row(
            bank.name,
            bank.label,
            bank.severity,
            bank.action if bank.kind == "block" else f"allow over {', '.join(bank.suppresses)}",
            bank.mode if bank.enabled else "disabled",
            _rule(bank, rules.get(bank.name)),
            ", ".join(bank.tenants) if bank.tenants else "all",
        )
    stdout.print(table)
    for bank in banks:
        rule = rules.get(bank.name)
        if rule is not None and not rule.is_enforced and bank.kind == "block":
            stdout.print(f"\n{bank.name}: {_unenforced(rule)}", style="yellow", markup=False)
        line = f"\n{bank.name}: views {', '.join(bank.views)}{_flood(bank)}"
        stdout.print(line, markup=False, highlight=False)
        for model, count in sorted(lacking.get(bank.name, {}).items()):
            line = f"  {count} references lack one of them (by {model}): add them again"
            stdout.print(line, markup=False, highlight=False)


@app.command()
def remove(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if the bank is enabled.")] = False,
    by: ByOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a bank that has no references, with its policy; a bank in use asks for `--force`."""

    def change(store: Store) -> Version:
        bank = store.banks().get(name)
        if bank is not None and bank.enabled and not force:
            raise StoreError(f"bank {name} is enabled: --disable it first, or --force")
        return store.remove_bank(name)

    waiting.make(change, config, by=by, wait=wait, timeout=timeout, as_json=as_json)


def _rule_changes(old: Bank | None, bank: Bank) -> bool:
    """Whether a bank matches at something else, for which it takes a calibration to tell."""
    if old is not None and all(getattr(old, name) == getattr(bank, name) for name in _OF_A_RULE):
        return False
    return any(_needs_calibration(one) for one in (old, bank) if one is not None)


def _calibration(store: Store, settings: Settings) -> tuple[str, str | None] | None:
    """The digest of the model in use and the calibration that is current for it.

    None where no model has one. Raises ModelError where one has, and this model's file is not here.
    """
    if not (current := store.current_calibrations()):
        return None
    sha256 = model_sha256(settings.model)
    return sha256, current.get(sha256)


def _look_ahead(store: Store, settings: Settings, bank: Bank, *, force: bool) -> "Preview | None":
    """Tell what a bank would match at. Raises StoreError if it's less than now, unless forced.

    None: the model's file is not here to tell.
    """
    from worker.cli import applying  # noqa: PLC0415 - imports torch

    try:
        with stderr.status("resolving its budget ..."):
            found = applying.preview_banks(store, settings, [bank])
    except ModelError as error:
        if not force:
            raise
        stderr.print(f"its budget is not resolved: {error}", style="yellow", markup=False)
        return None
    if not force:
        advice = {
            "no_calibration": "`copysieve calibrations apply FILE --budget "
            f"{bank.name}=N` does both at once",
            "not_supported": "give it a larger budget",
        }
        state = found.after.rules[bank.name].state
        found.refuse_less(advice.get(state, "change what it lacks first"))
        admissible.refuse_useless(found.after, bank.name)
    applying.tell(found, [bank.name])
    return found


def changed(name: str, old: Bank | None, given: Mapping[str, Any], calibration: str | None) -> Bank:
    """A bank with what is given put in its place; a threshold is for the calibration.

    Raises BadParameter for what a bank cannot be.
    """
    if "threshold" in given and "max_false_matches_per_million" in given:
        raise typer.BadParameter("a bank has a threshold or a budget, not both")
    fields: dict[str, Any] = {"name": name, "label": name, "severity": _DEFAULT_SEVERITY}
    if old is not None:
        fields = old.model_dump()
        if given.get("kind", old.kind) != old.kind:
            for rule in ("action", "threshold", "calibration", "suppresses"):
                fields.pop(rule)
            fields.pop("max_false_matches_per_million")
    if "threshold" in given:
        fields["calibration"] = calibration
        fields["max_false_matches_per_million"] = None
    if "max_false_matches_per_million" in given:
        fields["threshold"] = fields["calibration"] = None
    try:
        bank = Bank(**fields | dict(given))
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error)) from None
    if problem := bank.refusal(old):
        raise typer.BadParameter(problem)
    return bank


def _warnings(old: Bank | None, bank: Bank) -> list[str]:
    warnings = []
    if bank.kind == "block" and bank.threshold is bank.max_false_matches_per_million is None:
        warnings.append(f"{bank.name} has neither threshold nor budget: it matches nothing")
    if "plain" not in bank.views:
        warnings.append(f"{bank.name} has no plain view: it hardly matches copies as they are")
    if old is not None and set(bank.views) - set(old.views):
        warnings.append("references added before lack the new views until they are added again")
    return warnings


def _count_or_none(text: str) -> int | None:
    if text in ("none", "0"):
        return None
    if not text.isdecimal():
        raise typer.BadParameter("expected a number, or none", param_hint="--flood-per-hour")
    return int(text)


def _flood(bank: Bank) -> str:
    """When it rings, and what becomes of its matches then."""
    if bank.flood_per_hour is not None:
        limit = f"; flood alarm above {bank.flood_per_hour} an hour"
    elif bank.max_false_matches_per_million is not None:
        limit = "; flood alarm far above its budget"
    else:
        return ""
    return f"{limit}, then review" if bank.flood_demotes else limit


def _needs_calibration(bank: Bank) -> bool:
    return bank.max_false_matches_per_million is not None or bank.calibration is not None


def _rules(store: Store, settings: Settings) -> "Mapping[str, Rule]":
    """The banks' rules as replicas have them; none where the model's file is not here."""
    try:
        with stderr.status("resolving budgets ..."):
            applied = apply_rules(store, settings)
    except ModelError as error:
        stderr.print(f"budgets are not resolved: {error}", style="yellow", markup=False)
        return {}
    return applied.rules if applied else {}


def _resolved(rule: "Rule | None") -> dict[str, Any] | None:
    """A rule as a document."""
    if rule is None:
        return None
    supported = None if rule.null is None else 1e6 * rule.null.supported_rate
    return {
        "state": rule.state,
        "why": rule.why,
        "threshold": rule.threshold,
        "enforced": rule.is_enforced,
        "groups_needed": rule.needed,
        "lowest_supported_per_million": supported,
    }


def _unenforced(rule: "Rule") -> str:
    effect = "matches nothing" if rule.threshold is None else "only matches in shadow"
    return f"{effect}: {rule.why}"


def _rule(bank: Bank, rule: "Rule | None") -> str:
    if bank.threshold is not None:
        at = f"score {bank.threshold:g}"
    elif bank.max_false_matches_per_million is not None:
        at = f"{bank.max_false_matches_per_million:g} false matches per million"
        if rule is not None and rule.threshold is not None:
            at = f"score {rule.threshold:.4f}: {at}"
    else:
        return "" if bank.kind == "allow" else "nothing: no threshold, no budget"
    if rule is None or rule.is_enforced:
        return at
    return f"nothing: {at}" if rule.threshold is None else f"in shadow only, {at}"
