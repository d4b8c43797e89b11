"""The sidecar that keeps the wished adapter in vLLM: over HTTP with a server that plays vLLM, and with a real one."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from itool.artifacts.store import FolderStore
from itool.cluster import adapter_keeper
from itool.cluster.adapter_keeper import AdapterKeeper, KeeperSettings, fetch_folder, fetch_model, serve_readiness
from itool.cluster.wish import Proof, StoredArtifact, read_proof, write_wish
from itool.config import StoreConfig
from itool.errors import ArtifactError, DependencyError, Interrupted
from itool.policy import vllm
from tests.cluster.serving_scenes import store_adapter, store_model
from tests.fakes.slow_import import stop_while_importing
from tests.fakes.vllm_server import FakeVllm

RUN, POD = "demo", "demo-vllm-7d9-x"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_keeper, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(adapter_keeper, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(adapter_keeper, "REFUSED_SECONDS", 0.3)
    monkeypatch.setattr(vllm, "FIRST_PAUSE_SECONDS", 0.0)


class Bucket(FolderStore):
    """A store that can go away, and that tells what was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.down = False

    def read(self, key: str) -> bytes:
        self._reach()
        return super().read(key)

    def write(self, key: str, data: bytes) -> None:
        self._reach()
        super().write(key, data)

    def download(self, key: str, target: Path) -> None:
        self._reach()
        super().download(key, target)

    def _reach(self) -> None:
        if self.down:
            raise DependencyError("S3 does not answer")


@dataclass
class Pod:
    """A pod with its two processes: the keeper and what plays vLLM."""

    store: Bucket
    server: FakeVllm
    scratch: Path
    model: StoredArtifact
    keeper: AdapterKeeper

    def adapter(self, key: str) -> StoredArtifact:
        return store_adapter(self.store, self.scratch, key)

    def wish(self, adapter: StoredArtifact, model: StoredArtifact | None = None) -> int:
        return write_wish(self.store, RUN, model or self.model, adapter).generation

    @property
    def proof(self) -> Proof | None:
        return read_proof(self.store, RUN, POD)

    @property
    def adapters_on_disk(self) -> list[str]:
        return sorted(path.name for path in (self.scratch / "adapters").iterdir())


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    store = Bucket(tmp_path / "store")
    model = store_model(store, tmp_path)
    (tmp_path / "adapters").mkdir()
    settings = settings_of(store, model)
    fetch_model(settings, store, tmp_path / "model")
    server = FakeVllm()
    server.start()
    keeper = AdapterKeeper(settings, store, POD, vllm_url=server.url, model=tmp_path / "model", adapters=tmp_path / "adapters")
    yield Pod(store, server, tmp_path, model, keeper)
    server.stop()


def settings_of(store: FolderStore, model: StoredArtifact) -> KeeperSettings:
    return KeeperSettings(root=store.root, run=RUN, store=StoreConfig(), model=model, context_tokens=64, timeout_seconds=5)


@asynccontextmanager
async def running(pod: Pod) -> AsyncIterator[None]:
    work = asyncio.create_task(pod.keeper.run())
    try:
        yield
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


def name_of(key: str) -> str:
    """The adapter's name on a server, by hand: SHA-256 over the SHA-256 of settings and weights."""
    parts = [hashlib.sha256(content).digest() for content in (b'{"peft_type": "LORA"}', key.encode())]
    return f"adapter-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"


def test_the_wished_adapter_is_loaded_proved_and_announced(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            await until(lambda: pod.keeper.reason == "no adapter is wished for yet")
            adapter = pod.adapter("one")
            pod.wish(adapter)
            await until(lambda: pod.proof is not None)
            assert pod.keeper.reason is None
            assert pod.server.log == [("load", name_of("one")), ("complete", name_of("one"))]
            assert pod.adapters_on_disk == [adapter.digest[:12]]
            assert pod.proof is not None
            assert (pod.proof.generation, pod.proof.adapter, pod.proof.problem) == (1, name_of("one"), "")

    asyncio.run(story())


def test_a_new_wish_is_loaded_under_a_new_name_before_the_old_one_goes(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            pod.server.log.clear()
            two = pod.adapter("two")
            assert pod.wish(two) == 2
            await until(lambda: pod.proof is not None and pod.proof.generation == 2)
            assert pod.server.log == [("load", name_of("two")), ("complete", name_of("two")), ("unload", name_of("one"))]
            assert pod.server.adapters == [name_of("two")]
            assert pod.adapters_on_disk == [two.digest[:12]]

    asyncio.run(story())


def test_a_server_that_restarts_gets_its_adapter_back_before_the_pod_is_ready(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.keeper.reason is None)
            pod.server.stop()
            await until(lambda: pod.keeper.reason == "vLLM does not answer: ConnectError")
            pod.server.log.clear()
            pod.server.start()
            await until(lambda: pod.keeper.reason is None)
            assert pod.server.log == [("load", name_of("one")), ("complete", name_of("one"))]

    asyncio.run(story())


def test_a_busy_server_stays_ready_and_one_that_fails_does_not(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_keeper, "LIST_SECONDS", 0.1)
    answer, asked, busy = pod.server.get, threading.Semaphore(0), threading.Event()

    def late(path: str) -> tuple[int, object]:
        asked.release()
        busy.wait(20)
        return answer(path)

    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            pod.server.get = late
            for _ in range(3):  # the third is asked when the second was given up
                await until(lambda: asked.acquire(blocking=False))
            assert pod.keeper.reason is None
            busy.set()
            pod.server.get = answer
            pod.server.fail_with = 500
            await until(lambda: pod.keeper.reason == "vLLM does not answer: HTTPStatusError")
            pod.server.fail_with = None
            await until(lambda: pod.keeper.reason is None)
            assert pod.server.log == [("load", name_of("one")), ("complete", name_of("one"))]

    asyncio.run(story())


def test_the_proxy_of_the_pod_is_not_for_the_server_beside_it(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None and pod.keeper.reason is None)

    asyncio.run(story())


def test_what_stands_is_neither_written_nor_copied_again(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_keeper, "REFUSED_SECONDS", 1e9)
    used: list[str] = []
    for owner, name in ((pod.store, "write"), (pod.store, "download"), (AdapterKeeper, "_look")):
        monkeypatch.setattr(owner, name, noting(used, name, getattr(owner, name)))

    async def story() -> None:
        async with running(pod):
            one, altered = pod.adapter("one"), pod.adapter("two")
            pod.store.path(f"{altered.prefix}/{altered.digest[:12]}/adapter/adapter_model.safetensors").write_bytes(b"owt")
            for generation, adapter in enumerate((one, altered), start=1):
                pod.wish(adapter)
                await until(lambda wanted=generation: pod.proof is not None and pod.proof.generation == wanted)
                await until(lambda: used[-2:] == ["_look", "_look"])
                used.clear()
                await until(lambda: len(used) > 5)
                assert set(used) == {"_look"}

    asyncio.run(story())


def noting(used: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        used.append(name)
        return call(*arguments)

    return noted


def test_a_store_that_is_down_neither_unloads_nor_keeps_a_restarted_server_waiting(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            pod.store.down = True
            await asyncio.sleep(0.1)
            assert pod.keeper.reason is None
            pod.server.stop()
            await until(lambda: pod.keeper.reason is not None)
            pod.server.start()
            await until(lambda: pod.keeper.reason is None)
            assert pod.server.adapters == [name_of("one")]

    asyncio.run(story())


def test_an_adapter_that_was_wished_for_when_the_store_went_down_comes_when_it_is_back(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            two = pod.adapter("two")
            with monkeypatch.context() as patch:
                patch.setattr(pod.store, "download", _unreachable)
                pod.wish(two)
                await until(lambda: pod.keeper.reason == "S3 does not answer")
                assert pod.server.adapters == [name_of("one")]
            await until(lambda: pod.keeper.reason is None and pod.server.adapters == [name_of("two")])

    asyncio.run(story())


def _unreachable(key: str, _other: object) -> None:
    raise DependencyError("S3 does not answer")


def test_a_wish_that_changes_during_a_load_wins_in_the_end(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            one, two = pod.adapter("one"), pod.adapter("two")
            load = pod.server.post

            def load_and_wish_on(path: str, body: dict[str, object]) -> tuple[int, object]:
                if path == "/v1/load_lora_adapter" and body["lora_name"] == name_of("one"):
                    pod.wish(two)
                return load(path, body)

            pod.server.post = load_and_wish_on
            pod.wish(one)
            await until(lambda: pod.proof is not None and pod.proof.generation == 2)
            assert pod.proof is not None
            assert pod.proof.adapter == name_of("two")
            assert pod.server.adapters == [name_of("two")]

    asyncio.run(story())


def test_an_altered_adapter_is_never_loaded_and_the_refusal_is_told(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            adapter = pod.adapter("one")
            weights = pod.store.path(f"{adapter.prefix}/{adapter.digest[:12]}/adapter/adapter_model.safetensors")
            weights.write_bytes(b"eno")
            pod.wish(adapter)
            await until(lambda: pod.proof is not None)
            assert pod.proof is not None
            assert (pod.proof.adapter, pod.proof.exit_code) == ("", 65)
            assert "adapter_model.safetensors was altered" in pod.proof.problem
            assert pod.keeper.reason == pod.proof.problem
            assert pod.server.log == []
            weights.write_bytes(b"one")  # mended: it is tried again
            await until(lambda: pod.keeper.reason is None)
            await until(lambda: pod.proof is not None and pod.proof.adapter == name_of("one"))

    asyncio.run(story())


def test_a_refused_adapter_is_neither_proved_by_the_one_before_nor_in_the_way_of_the_next(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_keeper, "REFUSED_SECONDS", 1e9)

    async def story() -> None:
        async with running(pod):
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            two = pod.adapter("two")
            pod.store.path(f"{two.prefix}/{two.digest[:12]}/adapter/adapter_model.safetensors").write_bytes(b"owt")
            pod.wish(two)
            await until(lambda: pod.proof is not None and pod.proof.generation == 2)
            await asyncio.sleep(0.1)
            assert pod.proof is not None
            assert (pod.proof.adapter, pod.proof.exit_code, pod.keeper.reason) == ("", 65, pod.proof.problem)
            pod.wish(pod.adapter("three"))
            await until(lambda: pod.proof is not None and pod.proof.adapter == name_of("three"))

    asyncio.run(story())


def test_a_proof_that_the_store_did_not_take_is_written_when_it_is_back(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with running(pod):
            with monkeypatch.context() as patch:
                pod.wish(pod.adapter("one"))
                patch.setattr(pod.store, "write", _unreachable)
                await until(lambda: pod.keeper.reason is None)
                await asyncio.sleep(0.1)
                assert (pod.proof, pod.keeper.reason) == (None, None)
            await until(lambda: pod.proof is not None)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("status", "words", "exit_code"),
    [
        (400, "LoRA rank 64 is greater than 16", 65),
        (500, "LoRA rank 64 is greater than 16", 65),
        (400, "Out of range float values are not JSON compliant", 76),
    ],
)
def test_an_adapter_that_vllm_refuses_is_told_with_its_words(pod: Pod, status: int, words: str, exit_code: int) -> None:
    refused = "/v1/completions" if exit_code == 76 else "/v1/load_lora_adapter"
    answer = pod.server.post

    async def story() -> None:
        async with running(pod):
            pod.server.post = lambda path, body: (status, {"error": {"message": words}}) if path == refused else answer(path, body)
            pod.wish(pod.adapter("one"))
            await until(lambda: pod.proof is not None)
            assert pod.proof is not None
            assert pod.proof.exit_code == exit_code
            assert words in pod.proof.problem
            assert pod.keeper.reason is not None

    asyncio.run(story())


def test_a_pod_with_another_base_model_waits_to_be_replaced(pod: Pod) -> None:
    async def story() -> None:
        async with running(pod):
            adapter = pod.adapter("one")
            pod.wish(adapter)
            await until(lambda: pod.proof is not None)
            pod.server.log.clear()
            pod.wish(adapter, model=store_model(pod.store, pod.scratch, "other-base"))
            await until(lambda: pod.keeper.reason == "another base model is wished for: this pod will be replaced")
            assert pod.wish(adapter) == 3  # before anybody replaced it
            await until(lambda: pod.proof is not None and pod.proof.generation == 3)
            assert pod.server.log == []

    asyncio.run(story())


def test_readiness_is_answered_over_http_with_its_reason(pod: Pod) -> None:
    server = serve_readiness(pod.keeper, 0)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    unready = httpx.get(f"{url}/ready", trust_env=False)
    assert (unready.status_code, unready.text) == (503, "the keeper has just started")
    pod.keeper.reason = None
    assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    assert httpx.get(f"{url}/", trust_env=False).status_code == 503
    server.shutdown()
    server.server_close()


def test_only_the_part_that_is_asked_for_is_copied(pod: Pod) -> None:
    assert sorted(path.name for path in (pod.scratch / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_an_artifact_with_another_digest_is_refused(pod: Pod, tmp_path: Path) -> None:
    wanted = StoredArtifact(prefix=pod.model.prefix, digest="0" * 64)
    with pytest.raises(ArtifactError, match="wished for is 000000000000"):
        fetch_folder(pod.store, wanted, "model/", tmp_path / "target")
    with pytest.raises(ArtifactError, match="does not exist"):
        fetch_folder(pod.store, StoredArtifact(prefix="demo/i9/dpo/none", digest="0" * 64), "adapter/", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_model_is_waited_for_while_the_store_is_down(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.store.down = True
    monkeypatch.setattr(adapter_keeper.time, "sleep", lambda _seconds: setattr(pod.store, "down", False))
    fetch_model(settings_of(pod.store, pod.model), pod.store, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == b"base"


def test_bad_input_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    settings = settings_of(FolderStore(tmp_path), StoredArtifact(prefix="demo/i0/prepare/none", digest="0" * 64)).model_dump_json()
    command = [sys.executable, "-m", "itool.cluster.adapter_keeper", "fetch", "--settings", settings]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 65
    assert ended.stderr.count("\n") == 1
    assert "demo/i0/prepare/none does not exist" in ended.stderr


@pytest.mark.slow
def test_a_keeper_that_waits_for_the_store_ends_at_sigterm() -> None:
    store = StoreConfig(endpoint_url="http://127.0.0.1:9", region="nowhere")
    settings = KeeperSettings(
        root="s3://bucket/x", run=RUN, store=store, model=StoredArtifact(prefix="p", digest="0" * 64), context_tokens=64
    )
    command = [sys.executable, "-m", "itool.cluster.adapter_keeper", "fetch", "--settings", settings.model_dump_json()]
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "PATH": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stderr is not None
        assert "model cannot be fetched yet" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == Interrupted.exit_code


def test_a_keeper_hears_a_stop_signal_while_it_still_imports(tmp_path: Path) -> None:
    ended = stop_while_importing("httpx", tmp_path, "-m", "itool.cluster.adapter_keeper", "keep")
    assert ended == (75, "interrupted: stopped by SIGTERM. Run the same command again\n")


@pytest.mark.slow
def test_the_keeper_needs_neither_torch_nor_kubernetes() -> None:
    question = "import sys, itool.cluster.adapter_keeper as k; print(sorted({'torch', 'numpy', 'kubernetes'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True).stdout.strip() == "[]"
