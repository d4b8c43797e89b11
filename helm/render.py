"""Render the chart into k8s/: a folder per profile, a file per object. `make k8s` runs it; a test fails when k8s/ is stale. Needs helm.

A profile is a configuration file and the values that set it on a kind of cluster, just as a user gives both to `helm install`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = Path("helm/itool")
PROFILES = {"cpu": Path("configs/demo.yaml"), "gpu": Path("configs/paper.yaml")}
NAMESPACE = "itool"
KUBERNETES = "1.34"
SOURCE = "# Source: itool/templates/"


def manifests(profile: str) -> dict[str, str]:
    """The text of every object of a profile by its path below k8s/; hooks, which only Helm runs, are left out."""
    config, values = PROFILES[profile], CHART / "profiles" / f"{profile}.yaml"
    run = yaml.safe_load((REPOSITORY / config).read_text(encoding="utf-8"))
    header = f"# Rendered by `make k8s` from {CHART}, {config} and {values}; never edited by hand.\n"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({"run": run}, file)
        file.flush()
        command = ["helm", "template", run["run"], str(CHART), "--namespace", NAMESPACE, "--no-hooks", "--kube-version", KUBERNETES]
        rendered = subprocess.run(
            [*command, "-f", file.name, "-f", str(values)], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
        )
    documents = [part.removeprefix(SOURCE).partition("\n") for part in rendered.stdout.split("---\n") if part.startswith(SOURCE)]
    return {f"{profile}/{path}": header + body.rstrip() + "\n" for path, _, body in documents if body.strip()}


def main() -> None:
    """Replace k8s/ by what the chart renders now."""
    if shutil.which("helm") is None:
        sys.exit("helm is not on PATH: install Helm 3.18 or newer (https://helm.sh)")
    target = REPOSITORY / "k8s"
    for profile in PROFILES:
        shutil.rmtree(target / profile, ignore_errors=True)
        for path, text in manifests(profile).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
