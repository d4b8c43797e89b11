"""Finds the report of a run in its store: of the run as it is configured now, or the newest older one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from itool.artifacts.manifest import Manifest
from itool.artifacts.resolve import observe, resolve_observed
from itool.artifacts.store import open_store
from itool.commands import itoolctl, removal, resume
from itool.config import RunConfig
from itool.errors import InputError
from itool.evaluate.report_schema import Report


@dataclass(frozen=True)
class FoundReport:
    """A stored report: the document as it was written, parsed, and where the page lies. `current` is False when the run has moved on."""

    text: str
    report: Report
    html: str
    current: bool


def find_report(config: RunConfig) -> FoundReport:
    """The run's report, or the newest older one. Raises InputError when it has none yet, or one that this version cannot read."""
    store = open_store(config.root, config.store)
    observed = observe(store, config)
    resolution = list(resolve_observed(config, observed).values())[-1]
    prefix, manifest = resolution.prefix, resolution.manifest
    if not resolution.done or prefix is None or manifest is None:
        prefix, manifest = _newest_report(config.run, observed.manifests)
    if prefix is None or manifest is None:
        raise InputError(
            f"run {config.run} has no report yet",
            remedy=f"{itoolctl(f'status {config.run}', config.root)} says how far it is; {resume(config.run, config.root)} finishes it",
        )
    key = manifest.file_key(prefix, "report.json")
    text = store.read(key).decode()
    try:
        parsed = Report.model_validate_json(text)
    except ValidationError:
        first = f"{removal(prefix, config.root)}, then " if resolution.done else ""
        remedy = f"{first}{resume(config.run, config.root)} makes it again"
        raise InputError(f"{store.root}/{key} is of another version of itool", remedy=remedy) from None
    html_key = manifest.file_key(prefix, "report.html")
    html = str(store.local_path(html_key) or f"{store.root}/{html_key}")
    return FoundReport(text, parsed, html, resolution.done)


def _newest_report(run: str, manifests: Mapping[str, Manifest]) -> tuple[str | None, Manifest | None]:
    own = [(prefix, found) for prefix, found in manifests.items() if found.stage == "report" and prefix.startswith(f"{run}/")]
    return max(own, key=lambda item: item[1].ended) if own else (None, None)
