"""`itoolctl doctor` on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.command import Itoolctl, Within
from tests.fakes.vllm_server import FakeVllm


def test_doctor_names_a_remedy_for_what_is_missing(itoolctl: Itoolctl) -> None:
    done = itoolctl("doctor", "--set", "model.path=./no-such-model", "-o", "json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["base model"]["state"] == "missing"
    expected = "model.path ./no-such-model is neither a folder, a .gguf file nor a hub id. Give one of these (owner/name), or demo"
    assert checks["base model"]["finding"] == expected
    assert (checks["store"]["state"], checks["store"]["exit_code"]) == ("ok", 0)
    assert not (itoolctl.folder / "runs").exists()


@pytest.mark.parametrize("path", ["models/smolm", "smolm", "models/file"])
def test_doctor_misses_a_base_model_that_prepare_would_refuse(within: Within, path: str) -> None:
    Path("models").mkdir()
    Path("models/file").write_text("no model")
    code, output, _ = within("doctor", "-o", "json", "--set", f"model.path={path}")
    checks = {check["name"]: check for check in json.loads(output)}
    assert (code, checks["base model"]["state"]) == (1, "missing")
    assert checks["base model"]["finding"].startswith(f"model.path {path} is n")


def test_doctor_asks_the_server_and_looks_at_the_data(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data.jsonl").write_text("{}")
    url = ("--set", "policy.backend=vllm", "--set", "policy.url=http://127.0.0.1:9")
    code, output, _ = within("doctor", "-o", "json", *url, "--set", "data.source=openai", "--set", "data.path=data.jsonl")
    checks = {check["name"]: check for check in json.loads(output)}
    assert (code, checks["vllm"]["state"], checks["data"]["state"]) == (69, "missing", "ok")
    assert checks["vllm"]["finding"].startswith("policy.url = http://127.0.0.1:9 does not answer: ")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    code, output, _ = within("doctor", "-o", "json", "--set", "data.source=openai", "--set", "data.path=~/data.jsonl")
    assert (code, json.loads(output)[-1]["finding"]) == (0, str(Path("data.jsonl").absolute()))
    code, output, _ = within("doctor", "-o", "json", "--set", "data.source=openai", "--set", "data.path=gone.jsonl")
    assert (code, json.loads(output)[-1]["finding"]) == (1, f"data.path = gone.jsonl: {Path('gone.jsonl').absolute()} does not exist")
    hub = ("--set", "data.source=xlam", "--set", "data.path=owner/name", "--set", "data.held_out_path=data.jsonl")
    code, output, _ = within("doctor", "-o", "json", *hub)
    assert (code, json.loads(output)[-1]["state"]) == (0, "note")


def test_doctor_asks_a_server_of_the_cluster_without_a_proxy_as_the_policy_does(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    server = FakeVllm().start()
    url = ("--set", "policy.backend=vllm", "--set", f"policy.url=http://localhost:{server.port}/v1")
    _, found, _ = within("doctor", "-o", "json", *url, "--set", "policy.adapters=wait")
    _, proxied, _ = within("doctor", "-o", "json", *url)
    server.stop()
    states = [next(check["state"] for check in json.loads(output) if check["name"] == "vllm") for output in (found, proxied)]
    assert states == ["ok", "missing"]


def test_the_disk_of_a_root_in_the_home_folder_is_looked_at(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Path] = []
    usage = shutil.disk_usage

    def look(folder: Path) -> object:
        looked_at.append(folder)
        return usage(folder)

    monkeypatch.setattr(shutil, "disk_usage", look)
    Path("home").mkdir()
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    within("doctor", "--root", "~/runs")
    assert looked_at == [Path("home").absolute()]
