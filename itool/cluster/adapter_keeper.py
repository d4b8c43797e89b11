"""Keeps the wished adapter loaded in the vLLM server beside it, in the same pod. No torch, no Kubernetes API.

    python -m itool.cluster.adapter_keeper fetch --settings JSON      init container: the base model from the store to /models/base
    python -m itool.cluster.adapter_keeper keep --settings JSON       sidecar, as long as the pod lives

`keep` follows the wish in the store. It copies the adapter, every file checked against its manifest, loads it under the name of its
content, proves it with one token, unloads the others, and writes the proof. GET /ready answers 200 only while the running vLLM process
lists the wished adapter; a server that restarted gets it back first. While the store is down the last wish stands. An adapter that was
altered, or that vLLM refuses, is never served: the pod stays unready and says why.
"""

from __future__ import annotations

import signal

from itool.artifacts.process import end_at_once, exit_code_of

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_at_once)  # process 1 of both containers: before the imports below, which take half a second

import argparse
import asyncio
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from itool.artifacts.commit import fetch, read_manifest
from itool.artifacts.store import Store, open_store
from itool.cluster.objects import VLLM_PORT
from itool.cluster.wish import Proof, StoredArtifact, Wish, read_wish, write_proof
from itool.config import PolicyConfig, StoreConfig
from itool.errors import ArtifactError, DependencyError, InputError, ItoolError, NumericalError
from itool.logs import configure_logging, get_logger
from itool.policy.model_folder import read_model_folder
from itool.policy.vllm import VllmPolicy

MODEL_FOLDER = Path("/models/base")
ADAPTERS_FOLDER = Path("/adapters")
READY_PORT = 8001
POD_VARIABLE = "ITOOL_POD"

POLL_SECONDS = 1.0
RETRY_SECONDS = 5.0
REFUSED_SECONDS = 20.0
"""A refused adapter is tried again so often, in case the store had a bad moment."""

LIST_SECONDS = 10.0

_log = get_logger("adapter_keeper")


class KeeperSettings(BaseModel):
    """What a pod is made for, as the controller wrote it into the pod. Other settings of the run do not restart vLLM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    run: str
    store: StoreConfig
    model: StoredArtifact
    context_tokens: int
    timeout_seconds: float = 120.0


class AdapterKeeper:
    """One pod's keeper. `reason` says why the pod is not ready; None when it is."""

    def __init__(self, settings: KeeperSettings, store: Store, pod: str, *, vllm_url: str, model: Path, adapters: Path) -> None:
        self._settings = settings
        self._store = store
        self._pod = pod
        self._url = vllm_url
        self._folder = read_model_folder(model, context_tokens=settings.context_tokens)
        self._policy = PolicyConfig(backend="vllm", timeout_seconds=settings.timeout_seconds)
        self._adapters = adapters
        self._wish: Wish | None = None
        self._served: tuple[StoredArtifact, str] | None = None
        self._refused: Proof | None = None
        self._written: tuple[int, str, str] | None = None
        self.reason: str | None = "the keeper has just started"

    async def run(self) -> None:
        """Work until cancelled."""
        await asyncio.gather(self._follow_wish(), self._tend())

    async def _follow_wish(self) -> None:
        """Read the wish once a second. In a task of its own: a store that is down must not keep vLLM from getting its adapter back."""
        trouble = ""
        while True:
            try:
                self._wish = await asyncio.to_thread(read_wish, self._store, self._settings.run)
                trouble = ""
            except ItoolError as error:
                if str(error) != trouble:
                    _log.warning("wish cannot be read", error=str(error))
                trouble = str(error)
            await asyncio.sleep(POLL_SECONDS)

    async def _tend(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=LIST_SECONDS, trust_env=False) as client:
            while True:
                try:
                    await self._look(client)
                    pause = POLL_SECONDS
                except ItoolError as error:
                    self._is_unready(str(error))
                    pause = RETRY_SECONDS
                await asyncio.sleep(pause)

    async def _look(self, client: httpx.AsyncClient) -> None:
        """One round: is the wished adapter in the running server? If not, bring it there; then say so."""
        wish = self._wish
        if wish is None:
            return self._is_unready("no adapter is wished for yet")
        if wish.model != self._settings.model:
            return self._is_unready("another base model is wished for: this pod will be replaced")
        if self._refused and self._refused.generation == wish.generation and time.time() - self._refused.at < REFUSED_SECONDS:
            return await self._write(self._refused)
        loaded = await self._loaded(client)
        if loaded is None:
            return None
        if self._served is None or self._served[0] != wish.adapter or self._served[1] not in loaded:
            await self._load(wish)
        if self._served is not None:
            self._is_ready(self._served[1])
            await self._write(Proof(generation=wish.generation, adapter=self._served[1]))
        return None

    async def _loaded(self, client: httpx.AsyncClient) -> set[str] | None:
        """The names that the server lists; None when it cannot say. A busy one keeps its state: its own probe judges its silence."""
        try:
            response = await client.get("/v1/models")
            response.raise_for_status()
        except httpx.TimeoutException as error:
            _log.warning("vllm is slow", error=type(error).__name__)
            return None
        except httpx.HTTPError as error:
            self._is_unready(f"vLLM does not answer: {type(error).__name__}")
            return None
        return {model["id"] for model in response.json()["data"]}

    async def _load(self, wish: Wish) -> None:
        """Copy, check, load, prove, unload the others. What is wrong with the adapter itself is remembered as a refusal."""
        self._served = None
        self._is_unready(f"adapter {wish.adapter.digest[:12]} is being loaded")
        target = self._adapters / wish.adapter.digest[:12]
        try:
            await asyncio.to_thread(fetch_folder, self._store, wish.adapter, "adapter/", target)
            async with VllmPolicy(self._url, self._folder, target, policy=self._policy) as policy:
                self._served = (wish.adapter, policy.served_name)
        except (InputError, NumericalError) as error:
            _log.error("adapter refused", adapter=wish.adapter.prefix, error=str(error))
            self._refused = Proof(generation=wish.generation, problem=str(error), exit_code=error.exit_code)
            self._is_unready(str(error))
            await self._write(self._refused)
            return
        for other in self._adapters.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    async def _write(self, proof: Proof) -> None:
        """Write the proof once; again in the next round while the store is down."""
        content = (proof.generation, proof.adapter, proof.problem)
        if content == self._written:
            return
        try:
            await asyncio.to_thread(write_proof, self._store, self._settings.run, self._pod, proof)
        except ItoolError as error:
            _log.warning("proof cannot be written", error=str(error))
            return
        self._written = content
        _log.info("proof written", generation=proof.generation, adapter=proof.adapter, problem=proof.problem)

    def _is_ready(self, name: str) -> None:
        if self.reason is not None:
            _log.info("ready", adapter=name)
        self.reason = None

    def _is_unready(self, reason: str) -> None:
        if self.reason != reason:
            _log.info("not ready", reason=reason)
        self.reason = reason


def fetch_folder(store: Store, artifact: StoredArtifact, part: str, target: Path) -> None:
    """Copy a folder of an artifact, every file checked; `target` appears whole or not at all. Raises ArtifactError, DependencyError."""
    if target.is_dir():
        return
    manifest = read_manifest(store, artifact.prefix)
    if manifest is None:
        raise ArtifactError(f"{store.root}/{artifact.prefix} does not exist", remedy="Run the stage that makes it again")
    if manifest.digest != artifact.digest:
        raise ArtifactError(f"{store.root}/{artifact.prefix} has digest {manifest.digest[:12]}, wished for is {artifact.digest[:12]}")
    unfinished = target.with_name(f"{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path, entry in manifest.files.items():
        if path.startswith(part):
            fetch(store, manifest.file_key(artifact.prefix, path), entry.sha256, unfinished / path.removeprefix(part))
    unfinished.rename(target)


def fetch_model(settings: KeeperSettings, store: Store, target: Path) -> None:
    """Copy the base model; wait while the store is down."""
    started = time.monotonic()
    while True:
        try:
            fetch_folder(store, settings.model, "model/", target)
        except DependencyError as error:
            _log.warning("model cannot be fetched yet", error=str(error))
            time.sleep(RETRY_SECONDS)
        else:
            _log.info("model fetched", model=settings.model.prefix, seconds=round(time.monotonic() - started, 1))
            return


def serve_readiness(keeper: AdapterKeeper, port: int) -> ThreadingHTTPServer:
    """Answer GET /ready from a thread of its own until `shutdown`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reason = keeper.reason if self.path == "/ready" else "ask for /ready"
            body = (reason or "ready").encode()
            self.send_response(200 if reason is None else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing: the kubelet asks every second or two."""

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


async def keep(settings: KeeperSettings, store: Store) -> None:
    """Be the sidecar until SIGTERM, which as process 1 we must ask for."""
    url = f"http://127.0.0.1:{VLLM_PORT}"
    keeper = AdapterKeeper(settings, store, os.environ[POD_VARIABLE], vllm_url=url, model=MODEL_FOLDER, adapters=ADAPTERS_FOLDER)
    server = serve_readiness(keeper, READY_PORT)
    work = asyncio.create_task(keeper.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()
    finally:
        server.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of both containers; returns the exit code of errors.py."""
    parser = argparse.ArgumentParser(prog="python -m itool.cluster.adapter_keeper", description="Model and adapters for a vLLM pod.")
    parser.add_argument("what", choices=["fetch", "keep"])
    parser.add_argument("--settings", required=True, type=KeeperSettings.model_validate_json)
    arguments = parser.parse_args(argv)
    configure_logging("json")
    try:
        store = open_store(arguments.settings.root, arguments.settings.store)
        if arguments.what == "fetch":
            fetch_model(arguments.settings, store, MODEL_FOLDER)
        else:
            asyncio.run(keep(arguments.settings, store))
    except (ItoolError, OSError) as error:
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
