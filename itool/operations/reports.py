"""Finds the report of a run in its store: of the run as it is configured now, or the newest older one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from itool.artifacts.commit import read_file
from itool.artifacts.manifest import Manifest
from itool.artifacts.resolve import observe, resolve_observed
from itool.artifacts.store import Store, open_store
from itool.commands import itoolctl, removal, resume
from itool.config import RunConfig
from itool.errors import ArtifactError, InputError
from itool.evaluate.report_schema import Report


@dataclass(frozen=True)
class FoundReport:
    """A stored report: the document as it was written, parsed, and where the page lies. `current` is False when the run has moved on."""

    text: str
    report: Report
    html: str
    current: bool


def find_report(config: RunConfig) -> FoundReport:
    """The run's report, or the newest older one.

    Raises InputError when it has none yet, or one that this version cannot read, and ArtifactError when it was damaged.
    """
    store = open_store(config.root, config.store)
    observed = observe(store, config)
    resolution = list(resolve_observed(config, observed).values())[-1]
    if resolution.state == "damaged":
        raise ArtifactError(resolution.reason)
    prefix, manifest = resolution.prefix, resolution.manifest
    if not resolution.done or prefix is None or manifest is None:
        prefix, manifest = _newest_report(config.run, observed.manifests)
    if prefix is None or manifest is None:
        raise InputError(
            f"run {config.run} has no report yet",
            remedy=f"{itoolctl(f'status {config.run}', config.root)} says how far it is; {resume(config.run, config.root)} finishes it",
        )
    text = read_file(store, prefix, manifest, "report.json").decode()
    try:
        parsed = Report.model_validate_json(text)
    except ValidationError:
        first = f"{removal(prefix, config.root)}, then " if resolution.done else ""
        remedy = f"{first}{resume(config.run, config.root)} makes it again"
        key = manifest.file_key(prefix, "report.json")
        raise InputError(f"{store.root}/{key} is of another version of itool", remedy=remedy) from None
    return FoundReport(text, parsed, _checked_page(store, prefix, manifest), resolution.done)


def _checked_page(store: Store, prefix: str, manifest: Manifest) -> str:
    """Where report.html lies. One on this machine is what the manifest says; one elsewhere is only pointed at, not read."""
    key = manifest.file_key(prefix, "report.html")
    local = store.local_path(key)
    if local is None:
        return f"{store.root}/{key}"
    read_file(store, prefix, manifest, "report.html")
    return str(local)


def _newest_report(run: str, manifests: Mapping[str, Manifest]) -> tuple[str | None, Manifest | None]:
    own = [(prefix, found) for prefix, found in manifests.items() if found.stage == "report" and prefix.startswith(f"{run}/")]
    return max(own, key=lambda item: item[1].ended) if own else (None, None)
