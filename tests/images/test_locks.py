"""The locked lists of the images: complete, without a package too many, and the same versions that the tests ran with."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.requirements import Requirement

from tests.images.dockerfile import normalise, pins

IMAGE = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "platform_system": "Linux"}
IMAGE |= {"platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython"}


def needed(package: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The package's dependencies and theirs, as the image's platform needs them."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(normalise(package), extras)]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        name, wanted = current
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            markers = [IMAGE | {"extra": extra} for extra in wanted or {""}]
            if requirement.marker is None or any(requirement.marker.evaluate(marker) for marker in markers):
                waiting.append((normalise(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen} - {normalise(package)}


def test_the_controller_s_list_is_what_the_program_needs() -> None:
    assert set(pins("controller")) == needed("itool")


def test_the_stages_lists_are_what_training_needs() -> None:
    listed = set(pins("controller")) | set(pins("stages")) | set(pins("torch-cpu"))
    # torch's CPU wheel names no CUDA package, so that its installed metadata is what the image needs
    if "+cpu" not in importlib.metadata.version("torch"):
        pytest.skip("this environment has the CUDA build of torch, whose dependencies differ")
    assert listed == needed("itool", frozenset({"train"}))


def test_torch_with_cuda_is_torch_with_more() -> None:
    cpu, cuda = pins("torch-cpu"), pins("torch-cuda")
    assert {name: cuda[name] for name in cpu if name != "torch"} == {name: version for name, version in cpu.items() if name != "torch"}
    assert cpu["torch"] == f"{cuda['torch']}+cpu"


@pytest.mark.parametrize("name", ["controller", "stages", "torch-cpu"])
def test_images_hold_the_versions_of_the_tested_environment(name: str) -> None:
    tested = pins("train")
    assert {package: version.removesuffix("+cpu") for package, version in pins(name).items()} == {p: tested[p] for p in pins(name)}


def test_vllm_finds_in_the_torch_layer_what_its_own_list_pins() -> None:
    vllm, torch = pins("vllm"), pins("torch-cpu")
    shared = (set(vllm) & set(torch)) - {"torch"}
    assert {name: vllm[name] for name in shared} == {name: torch[name] for name in shared}
    assert torch["torch"] == f"{vllm['torch']}+cpu"
