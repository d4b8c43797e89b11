"""A local server that does not come up: whoever asks the stage to stop does not wait for it, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import httpx
import pytest

from itool.config import PolicyConfig
from itool.errors import DependencyError, Interrupted
from itool.policy import server
from itool.policy.model_folder import read_model_folder
from itool.policy.opening import open_policy
from itool.policy.vllm import VllmPolicy
from tests.fakes.waiting import lives, wait_until
from tests.policy.conftest import CONTEXT, SERVED, Folders

NEVER_READY = """#!{python} -I
import os, pathlib, signal, socket, sys, time
if sys.argv[1] == "-c":
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
asking, _ = server.accept()
pathlib.Path({asked!r}).write_text(str(os.getpid()))
time.sleep(60)
pathlib.Path({asked!r}).unlink()
"""

DEAD = """#!{python} -I
import sys
if sys.argv[1] != "-c":
    sys.exit("ValueError: no such model")
"""

DEMANDS_ITS_KEY = """#!{python} -I
import http.server, json, os, sys
if sys.argv[1] == "-c":
    sys.exit()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if known or not self.path.startswith("/v1") else 401)
        self.end_headers()
        logprobs = {{"top_logprobs": [{{"token_id:0": -1.0, "token_id:1": -1.0}}]}}
        choice = {{"index": 0, "finish_reason": "length", "logprobs": logprobs}}
        self.wfile.write(json.dumps({{"data": [{{"id": "base"}}], "choices": [choice]}}).encode())

    do_POST = do_GET

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Where the fake server leaves its process id when it was asked whether it is ready."""
    return tmp_path / "asked"


def serve_with(program: str, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a program the Python that has vLLM."""
    python = asked.parent / "python"
    python.write_text(program.format(python=sys.executable, asked=str(asked)))
    python.chmod(0o755)
    monkeypatch.setenv("ITOOL_VLLM_PYTHON", str(python))
    monkeypatch.setattr("itool.policy.opening.gettempdir", lambda: str(asked.parent))


async def open_served(folders: Folders, asked: Path) -> None:
    """Open a policy that starts a server of its own, and ask to stop as soon as that does not answer."""
    async with open_policy(folders.model, None, SERVED, PolicyConfig(backend="vllm"), should_stop=asked.exists):
        pytest.fail("the server answered")


def test_a_stop_while_the_server_starts_ends_both_at_once(folders: Folders, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has accepted the question, answers nothing, and ignores SIGTERM, as vLLM does while it loads."""
    serve_with(NEVER_READY, asked, monkeypatch)
    monkeypatch.setattr(server, "STOP_SECONDS", 600.0)  # whoever waits so long finds that it has ended by itself
    with pytest.raises(Interrupted, match=r"stopped while the local vLLM server was starting\. Run the same command again"):
        asyncio.run(open_served(folders, asked))
    wait_until(lambda: not lives(int(asked.read_text())))


def test_a_server_that_died_while_it_started_is_not_waited_for(folders: Folders, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(DEAD, asked, monkeypatch)
    with pytest.raises(DependencyError, match=r"ended with exit code 1: ValueError: no such model"):
        asyncio.run(open_served(folders, asked))


def test_a_key_in_the_environment_does_not_hide_that_the_server_is_up(
    folders: Folders, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes VLLM_API_KEY for its own, and then answers nobody below /v1 without it."""
    serve_with(DEMANDS_ITS_KEY, asked, monkeypatch)
    monkeypatch.setenv("VLLM_API_KEY", "of a server elsewhere")
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)

    async def start() -> None:
        async with server.LocalVllmServer(folder, asked.parent / "log", model=SERVED, policy=PolicyConfig(startup_seconds=20)):
            pass

    asyncio.run(start())


def test_a_server_of_ones_own_answers_nobody_else_on_this_machine(folders: Folders, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be told to load an adapter, or to forget ours."""
    serve_with(DEMANDS_ITS_KEY, asked, monkeypatch)

    async def ask() -> int:
        async with (
            open_policy(folders.model, None, SERVED, PolicyConfig(backend="vllm", startup_seconds=20)) as policy,
            httpx.AsyncClient(base_url=cast(VllmPolicy, policy)._url, trust_env=False) as somebody,
        ):
            return (await somebody.get("/v1/models")).status_code

    assert asyncio.run(ask()) == 401


def test_the_log_of_a_server_follows_no_link(folders: Folders, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder for all, anybody can have laid one to a file of ours."""
    serve_with(DEAD, asked, monkeypatch)
    (asked.parent / "mine").write_text("dear")
    (asked.parent / "log").symlink_to(asked.parent / "mine")
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)

    async def start() -> None:
        async with server.LocalVllmServer(folder, asked.parent / "log", model=SERVED, policy=PolicyConfig()):
            pytest.fail("the server answered")

    with pytest.raises(FileExistsError):
        asyncio.run(start())
    assert (asked.parent / "mine").read_text() == "dear"
