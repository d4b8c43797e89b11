"""A vLLM server on this machine, started for one stage and gone with it.

vLLM pins other versions than training does, so it usually lives in a virtual environment of its own; the server is a child process with
its own Python. It dies with its parent, whatever kills that (guard.py), and its log stays for whoever must find out why it did not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from itool.config import ModelConfig, PolicyConfig
from itool.errors import ConfigError, DependencyError, Interrupted
from itool.logs import get_logger
from itool.policy import guard as guard_program
from itool.policy.model_folder import LINEAR_LAYERS, ModelFolder

BASE_MODEL = "base"
"""Name under which the base model is served."""

KEY_VARIABLE = "VLLM_API_KEY"
"""From which vLLM takes the key that it demands, and a client the one that it gives."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that --max-lora-rank takes."""

SERVER_SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads would fight with the search for the same cores
}
"""Environment of every server, here and in a pod."""

MOST_BATCHED_TOKENS = 8192
STOP_SECONDS = 10.0
STARTING_STOP_SECONDS = 1.0
"""As long, of a server that has no request to finish: while it loads, vLLM ignores SIGTERM."""

_LOG_PREFIX = re.compile(r"^\([^)]*\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] )?")
POLL_SECONDS = 0.25

_log = get_logger(__name__)


class LocalVllmServer:
    """`async with LocalVllmServer(...) as server:` - then `server.url` answers. Raises DependencyError when it does not come up.

    `key` is what it demands of who asks it. Raises Interrupted when `should_stop` says so while it starts, and ConfigError for float32 on a
    GPU: vLLM's kernels for LoRA there know half precision only.
    """

    def __init__(
        self,
        folder: ModelFolder,
        log_path: Path,
        *,
        model: ModelConfig,
        policy: PolicyConfig,
        key: str | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if has_gpu() and model.dtype == "float32":
            raise ConfigError(
                "model.dtype = 'float32': vLLM computes adapters on a GPU in bfloat16 only",
                remedy="Set model.dtype=bfloat16, or hide the GPU from vLLM's CPU build with CUDA_VISIBLE_DEVICES=",
            )
        self._python = find_vllm_python()
        self._startup_seconds = policy.startup_seconds
        self._should_stop = should_stop
        self._log_path = log_path
        self._environment = server_environment(dict(os.environ), python=self._python) | ({KEY_VARIABLE: key} if key else {})
        self._process: subprocess.Popen[bytes] | None = None
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        context = folder.context_tokens
        self.arguments = server_arguments(
            folder.path.absolute(), context, model, port=port, max_requests=policy.max_requests, gpu=has_gpu()
        )

    async def __aenter__(self) -> Self:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", guard_program.__file__, str(os.getpid())]
        command = [*guard, str(self._python), "-m", "vllm.entrypoints.openai.api_server", *self.arguments]
        with self._log_path.open("xb") as log:  # in a folder for all, somebody else's file or link of this name is not followed
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        started = time.monotonic()
        try:
            await self._wait_until_ready(started + self._startup_seconds)
        except BaseException:
            await self._stop(STARTING_STOP_SECONDS)
            raise
        _log.info("vllm server ready", url=self.url, seconds=round(time.monotonic() - started, 1), log=str(self._log_path))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stop(STOP_SECONDS)
        if error is None:
            self._log_path.unlink(missing_ok=True)  # after a failure it is what one wants to read

    def failure(self) -> str | None:
        """Why the server is gone, in one line; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the local vLLM server {how}: {last_meaningful_line(self._log_path)} (log: {self._log_path})"

    async def _wait_until_ready(self, deadline: float) -> None:
        """Looks at what may end the wait beside the asking, which a server may let hang."""
        ready = asyncio.create_task(self._answers())
        try:
            while not ready.done():
                if self._should_stop():
                    raise Interrupted("stopped while the local vLLM server was starting", remedy="Run the same command again to resume")
                if failure := self.failure():
                    raise DependencyError(failure, remedy="Run `itoolctl doctor`")
                if time.monotonic() >= deadline:
                    raise DependencyError(
                        f"the local vLLM server was not ready after {self._startup_seconds:.0f} s: {last_meaningful_line(self._log_path)}",
                        remedy=f"Read {self._log_path} or raise policy.startup_seconds",
                    )
                await asyncio.wait([ready], timeout=POLL_SECONDS)
            await ready
        finally:
            ready.cancel()

    async def _answers(self) -> None:
        """Return when the server is up. Asked where it demands no key, which it does below /v1."""
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get("/health")).status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(POLL_SECONDS)

    async def _stop(self, patience_seconds: float) -> None:
        """SIGTERM, then SIGKILL, to the server and the processes it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second also for what the server left behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            deadline = time.monotonic() + patience_seconds
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.05)


def find_vllm_python() -> Path:
    """The Python that runs vLLM: ITOOL_VLLM_PYTHON, this one, or the one of a `.venv-vllm` beside this environment or in this folder.

    Raises DependencyError when none has vllm.
    """
    candidates = list(dict.fromkeys(_candidate_pythons()))
    for python in candidates:
        if _has_vllm(python):
            return python
    tried = ", ".join(str(python) for python in candidates)
    raise DependencyError(
        f"no Python with vllm found (tried {tried})", remedy="Install it with `make install-vllm`, set ITOOL_VLLM_PYTHON, or set policy.url"
    )


def server_arguments(
    path: Path, context_tokens: int, model: ModelConfig, *, port: int, max_requests: int, gpu: bool, host: str = "127.0.0.1"
) -> list[str]:
    """The server's flags, here and in a pod. Adapters are always possible; two slots, so that a new one is proven before the old one goes.

    `context_tokens` is what the model folder allows, `gpu` says which build of vLLM runs.
    """
    arguments = ["--model", str(path), "--served-model-name", BASE_MODEL, "--host", host, "--port", str(port)]
    arguments += ["--dtype", model.dtype, "--max-model-len", str(context_tokens), "--generation-config", "vllm"]
    arguments += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(_lora_rank_limit(model.lora_rank))]
    arguments += ["--lora-target-modules", *LINEAR_LAYERS]
    if not gpu:
        # A seeded request whose prompt is computed in pieces kills the engine of the CPU build ("CPU Generator does not use offset").
        tokens = max(MOST_BATCHED_TOKENS, model.context_tokens)
        arguments += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(tokens)]
        # Samples of one prompt share its whole blocks; of the default, 128 tokens long, a short prompt has one or none.
        arguments += ["--max-num-seqs", str(max(max_requests, 128)), "--block-size", "32"]
    return arguments


def server_environment(environment: dict[str, str], *, python: Path) -> dict[str, str]:
    """The server's environment: the caller's, without its Python paths, with what vLLM needs."""
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    return environment | SERVER_SETTINGS | {"PATH": f"{python.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"}


def last_meaningful_line(log_path: Path) -> str:
    """The last line of a server's log that names an error; else its last line; without the logger's prefix."""
    try:
        lines = [line.strip() for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return "it left no log"
    errors = [line for line in lines if re.search(r"\w*(Error|error|Exception): ", line) and " WARNING " not in line]
    causes = [line for line in errors if "stack trace" not in line and "Engine core initialization failed" not in line]
    return _LOG_PREFIX.sub("", (causes or errors or lines or ["its log is empty"])[-1])


def has_gpu() -> bool:
    """Whether an NVIDIA device is visible to this process."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _candidate_pythons() -> Iterator[Path]:
    if named := os.environ.get("ITOOL_VLLM_PYTHON"):
        yield Path(shutil.which(named) or named)
        return
    yield Path(sys.executable)
    for folder in (Path(sys.prefix).parent, Path.cwd()):
        yield folder / ".venv-vllm" / "bin" / "python"


def _has_vllm(python: Path) -> bool:
    """Looks for the package without importing it, which would take many seconds."""
    if not python.is_file():
        return False
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return subprocess.run([str(python), "-c", question], capture_output=True, check=False, env=environment, cwd="/").returncode == 0


def _lora_rank_limit(rank: int) -> int:
    return next(limit for limit in LORA_RANKS if limit >= rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
