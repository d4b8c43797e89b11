"""`make images`: whichever builder answers is asked for every target, and a command of one's own takes its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.images.dockerfile import REPOSITORY, TARGETS


def program(folder: Path, name: str, *, answers: bool = True) -> Path:
    """A builder that writes down how it was called; one that does not answer fails at all."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{folder}/calls"\nexit {0 if answers else 1}\n')
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`make images` with only the builders of `folder`; what they were asked."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("sh", "git", "sed"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    environment = os.environ | {"PATH": f"{folder}:{tools}"}
    done = subprocess.run(
        [shutil.which("make") or "make", "images", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_a_builder_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path, "docker", answers=False)
    program(tmp_path, "buildah")
    done, calls = make(tmp_path, "IMAGE_TAG=test")
    assert done.returncode == 0, done.stderr
    builds = [call for call in calls if call.startswith("buildah build")]
    assert [build.split()[2:6] for build in builds] == [
        ["--target", target, "--tag", f"localhost/itool/{target}:test"] for target in TARGETS
    ]
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert all(f" --build-arg VERSION={version} " in build and " --build-arg REVISION=" in build for build in builds)
    assert all("BASE_IMAGE" not in build for build in builds)  # the Dockerfile's own, pinned by digest


def test_a_failed_build_fails_make(tmp_path: Path) -> None:
    (tmp_path / "podman").write_text('#!/bin/sh\n[ "$1" = info ]\n')
    (tmp_path / "podman").chmod(0o755)
    done, _ = make(tmp_path)
    assert done.returncode != 0


def test_a_command_of_one_s_own_gets_context_target_and_image(tmp_path: Path) -> None:
    command = program(tmp_path, "mine")
    done, calls = make(tmp_path, f"BUILD_IMAGE={command}", "IMAGE_REPOSITORY=example.test/x", "IMAGES=controller warmup")
    assert done.returncode == 0, done.stderr
    assert [call.split()[1:4] for call in calls] == [
        [".", "controller", "example.test/x/controller:dev"],
        [".", "warmup", "example.test/x/warmup:dev"],
    ]


def test_cuda_reaches_the_stages_and_never_the_cpu_server(tmp_path: Path) -> None:
    program(tmp_path, "podman")
    _, calls = make(tmp_path, "TORCH=cuda", "IMAGES=dpo vllm-cpu", "BASE_IMAGE=example.test/python:3.12")
    dpo, server = [call for call in calls if " build " in call]
    assert "--build-arg TORCH=cuda" in dpo
    assert "--build-arg BASE_IMAGE=example.test/python:3.12" in dpo
    assert "--build-arg TORCH=cpu" in server


@pytest.mark.parametrize("builders", [[], ["docker"]])
def test_without_a_builder_the_error_says_what_to_do(tmp_path: Path, builders: list[str]) -> None:
    for name in builders:
        program(tmp_path, name, answers=False)
    done, _ = make(tmp_path, "IMAGES=controller")
    assert done.returncode != 0
    assert "no builder answers: start docker, install podman or buildah, or name your own with BUILD_IMAGE=COMMAND" in done.stderr
