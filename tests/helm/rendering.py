"""The chart, rendered by the real `helm`, as objects by template."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "helm" / "itool"
SOURCE = "# Source: itool/templates/"
POD_MONITOR = "monitoring.coreos.com/v1/PodMonitor"
SMALLEST: dict[str, Any] = {"run": {"root": "s3://bucket/prefix", "store": {"endpoint_url": "http://s3.example:9000"}}}
"""What a user must say at least: where artifacts lie, and how S3 is reached."""

Manifests = dict[str, dict[str, Any]]


def deep_merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with the changes; dictionaries are merged, all else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = deep_merge(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def helm_template(values: dict[str, Any], *arguments: str, release: str = "demo") -> subprocess.CompletedProcess[str]:
    """`helm template` with exactly these values."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(values, file)
        file.flush()
        command = [
            "helm",
            "template",
            release,
            str(CHART),
            "--namespace",
            "training",
            "--kube-version",
            "1.34",
            "-f",
            file.name,
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@functools.cache
def _rendered(values: str, arguments: tuple[str, ...], release: str) -> str:
    done = helm_template(json.loads(values), *arguments, release=release)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(changes: dict[str, Any] | None = None, *arguments: str, release: str = "demo") -> Manifests:
    """The objects by template, for the smallest values with these changes. Two objects in one template fail."""
    found: Manifests = {}
    for part in _rendered(json.dumps(deep_merge(SMALLEST, changes or {})), arguments, release).split("---\n"):
        template = part.removeprefix(SOURCE).partition("\n")[0]
        document = yaml.safe_load(part)
        if document:
            assert template not in found, f"{template} renders two objects"
            found[template] = document
    return found


def refusal(changes: dict[str, Any], *arguments: str) -> str:
    """The line with which the chart refuses these values."""
    done = helm_template(deep_merge(SMALLEST, changes), *arguments)
    assert done.returncode != 0, "these values are accepted"
    return next(line for line in done.stderr.splitlines() if "at '" in line or "execution error" in line)


def selects(selector: dict[str, Any], found: dict[str, str]) -> bool:
    """Whether a LabelSelector of the chart (equality, and `In`) selects these labels."""
    return all(found.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        found.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def pod_specs(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """Every pod of the chart, by template."""
    return {
        template: manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]
        for template, manifest in manifests.items()
        if manifest["kind"] in ("Pod", "Job")
    }
