"""The client's side of trouble: what a server's silence and its refusals become, and adapters under new names."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from itool.config import PolicyConfig
from itool.errors import ConfigError, DependencyError, InputError, Interrupted, ItoolError, NumericalError
from itool.policy import vllm
from itool.policy.model_folder import adapter_digest, read_model_folder
from itool.policy.opening import open_policy
from itool.policy.protocol import Policy, Sample
from itool.policy.server import LocalVllmServer
from tests.fakes.vllm_server import FakeVllm
from tests.policy.conftest import CONTEXT, MODEL, Folders, start_server
from tests.policy.test_contract import OTHER, PROMPT, ask, draw
from tests.policy.vllm_scenes import MODELS, answered_by, enter, statuses


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "FIRST_PAUSE_SECONDS", 0.0)


def test_a_server_too_old_to_know_what_is_asked_for_is_one_clear_line(folders: Folders) -> None:
    """It ignores the field and reports the most likely token instead."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = statuses([])(request).json()
        for choice in body.get("choices", []):
            del choice["logprobs"]["top_logprobs"][0]["token_id:0"]
        return httpx.Response(200, json=body)

    with pytest.raises(DependencyError, match=r"does not give .*\(logprob_token_ids\).*Use vLLM 0\.26 or newer"):
        enter(folders, answer)


def test_float32_on_a_gpu_is_refused_before_a_server_starts(folders: Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("itool.policy.server.has_gpu", lambda: True)
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)
    with pytest.raises(ConfigError, match=r"model\.dtype = 'float32'.*Set model\.dtype=bfloat16"):
        LocalVllmServer(folder, tmp_path / "log", model=MODEL, policy=PolicyConfig())


@pytest.mark.parametrize("others_are_faster", [True, False])
def test_another_shard_that_loads_or_unloads_an_adapter_first_is_no_error(folders: Folders, others_are_faster: bool) -> None:
    """Both looked before either acted; vLLM refuses what is done already."""
    name, old = vllm.adapter_name(folders.adapter), "adapter-old"
    listed = {old}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [*MODELS["data"], *({"id": one, "parent": "base"} for one in listed)]})
        if request.url.path.endswith("_lora_adapter"):
            if others_are_faster:
                listed.add(name) if "unload" not in request.url.path else listed.discard(old)
            code, message = (404, "does not exist") if "unload" in request.url.path else (400, "has already been loaded")
            return httpx.Response(code, json={"error": {"message": message}})
        return statuses([])(request)

    if others_are_faster:
        enter(folders, answer, folders.adapter)
        assert listed == {name}
    else:
        with pytest.raises(InputError, match="already been loaded"):
            enter(folders, answer, folders.adapter)


def test_a_server_in_trouble_is_asked_again(folders: Folders) -> None:
    troubles = iter([503, 500, 429, 408])
    enter(folders, statuses(troubles))
    assert list(troubles) == []


def test_an_answer_that_the_server_broke_off_is_asked_for_again(folders: Folders) -> None:
    """A vLLM that is told to end answers its open requests with status 200 and what it has so far."""
    server = FakeVllm().start()
    server.ends = ["abort", "error"]

    async def conversation() -> list[Sample]:
        folder = read_model_folder(folders.model, context_tokens=CONTEXT)
        async with vllm.VllmPolicy(server.url, folder, None, policy=PolicyConfig()) as policy:
            server.ends = ["abort"]
            return await draw(policy, PROMPT, count=1, tokens=1)

    assert [sample.token_ids for sample in asyncio.run(conversation())] == [(3,)]
    assert len(server.log) == 5
    server.stop()


GOOD_CHOICE = {"index": 0, "finish_reason": "stop", "token_ids": [3], "logprobs": {"token_logprobs": [-0.5]}}
MALFORMED = {
    "truncated": httpx.Response(200, headers={"content-type": "application/json"}, content=b'{"choices": [{"ind'),
    "a page": httpx.Response(200, headers={"content-type": "text/html"}, content=b"<html>\ngateway is starting</html>"),
    "not an object": httpx.Response(200, json=[]),
    "too few choices": httpx.Response(200, json={"choices": [GOOD_CHOICE]}),
    "no token": httpx.Response(200, json={"choices": [{**GOOD_CHOICE, "index": index, "token_ids": []} for index in range(2)]}),
    "no log-probability": httpx.Response(200, json={"choices": [{**GOOD_CHOICE, "logprobs": {"token_logprobs": []}}] * 2}),
    "no choices' logprobs": httpx.Response(200, json={"choices": [{**GOOD_CHOICE, "logprobs": None}] * 2}),
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=list(MALFORMED))
@pytest.mark.parametrize("recovers", [True, False])
def test_an_answer_that_cannot_be_read_is_asked_for_again(folders: Folders, answer: httpx.Response, recovers: bool) -> None:
    """As a proxy gives it, or a server that ends in the middle of it."""
    good = httpx.Response(200, json={"choices": [{**GOOD_CHOICE, "index": index} for index in range(2)]})
    answers: list[httpx.Response] = []

    def serve(request: httpx.Request) -> httpx.Response:
        return answers.pop(0) if answers else statuses([])(request)

    async def question(policy: Policy) -> list[Sample]:
        answers.extend([answer] * (4 if recovers else 5) + [good])
        return await draw(policy, count=2, tokens=1)

    opened = answered_by(folders, serve)
    if recovers:
        assert [sample.token_ids for sample in ask(opened, None, question)] == [(3,), (3,)]
    else:
        with pytest.raises(DependencyError, match=r"http://server failed 5 times: its answer cannot be read \(.*\)") as caught:
            ask(opened, None, question)
        assert "\n" not in str(caught.value)
        assert len(answers) == 1


def test_a_page_in_place_of_the_list_of_models_is_a_dependency_error(folders: Folders) -> None:
    with pytest.raises(DependencyError, match="its answer cannot be read"):
        enter(folders, lambda _request: httpx.Response(200, html="<html>starting</html>"))


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        (500, DependencyError, "failed 5 times: status 500: engine is busy. Start again"),
        (401, ConfigError, "refuses the key: engine is busy. Set VLLM_API_KEY"),
        (404, DependencyError, "knows no base"),
        (400, InputError, r"refuses the request \(status 400\): engine is busy"),
    ],
)
def test_each_refusal_has_its_exit_code(folders: Folders, code: int, expected: type[ItoolError], message: str) -> None:
    with pytest.raises(expected, match=message) as caught:
        enter(folders, statuses([code] * 5))
    assert "\n" not in str(caught.value)


def test_only_earlier_adapters_of_ours_are_unloaded_and_only_after_the_new_one_is_proved(folders: Folders) -> None:
    server = FakeVllm(adapters=("adapter-before", "of-somebody-else")).start()

    async def conversation() -> None:
        folder = read_model_folder(folders.model, context_tokens=CONTEXT)
        async with vllm.VllmPolicy(server.url, folder, folders.adapter, policy=PolicyConfig()):
            pass

    asyncio.run(conversation())
    server.stop()
    name = vllm.adapter_name(folders.adapter)
    assert server.log == [("load", name), ("complete", name), ("unload", "adapter-before")]


@pytest.mark.parametrize(
    ("code", "words", "expected", "message"),
    [
        (
            404,
            "Not Found",
            DependencyError,
            r"cannot load adapter-\w+: Not Found\. Start it with VLLM_ALLOW_RUNTIME_LORA.* sees /",
        ),
        (400, "bad adapter", InputError, r"refuses adapter-\w+: bad adapter"),
        (500, "LoRA rank 64 is greater than 16", InputError, r"refuses adapter-\w+: status 500: LoRA rank 64 is greater than 16"),
        (500, "Server shutting down", DependencyError, r"failed 5 times: status 500: Server shutting down"),
        (503, "starting", DependencyError, r"failed 5 times: status 503: starting"),
    ],
)
def test_an_adapter_that_a_server_does_not_load_says_why(
    folders: Folders, code: int, words: str, expected: type[ItoolError], message: str
) -> None:
    """vLLM 0.32 answers 500 to an adapter that does not fit, and 404 where it may load none or does not see the folder."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/load_lora_adapter":
            return httpx.Response(code, json={"error": {"message": words}})
        return statuses([])(request)

    with pytest.raises(expected, match=message):
        enter(folders, answer, folders.adapter)


def test_logits_that_are_not_finite_are_no_fault_of_the_example(folders: Folders) -> None:
    """vLLM cannot write NaN as JSON and answers 400: the search would drop every example one by one."""
    words = "Out of range float values are not JSON compliant"

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": words}}) if request.method == "POST" else statuses([])(request)

    with pytest.raises(NumericalError, match=r"logits of base at http://server are not finite"):
        enter(folders, answer)


@pytest.mark.parametrize(
    ("answer", "expected", "message"),
    [
        (
            httpx.Response(308, headers={"location": "https://server/v1/models"}),
            ConfigError,
            r"redirects to https://server/v1/models\. Set",
        ),
        (httpx.Response(404, text="nothing here"), DependencyError, r"knows no /v1/models: nothing here\. Check policy\.url"),
    ],
    ids=["a gateway that wants TLS", "something else"],
)
def test_an_address_that_is_not_the_servers_says_so(
    folders: Folders, answer: httpx.Response, expected: type[ItoolError], message: str
) -> None:
    with pytest.raises(expected, match=message):
        enter(folders, lambda _request: answer)


def test_an_answer_that_takes_too_long_names_the_setting(folders: Folders) -> None:
    async def conversation(port: int) -> None:
        folder = read_model_folder(folders.model, context_tokens=CONTEXT)
        async with vllm.VllmPolicy(f"http://127.0.0.1:{port}", folder, None, policy=PolicyConfig(timeout_seconds=0.2)):
            pass

    words = r"failed 5 times: no answer within 0\.2 s \(policy\.timeout_seconds\)"
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent, pytest.raises(DependencyError, match=words):
        asyncio.run(conversation(silent.getsockname()[1]))


def test_a_server_that_refuses_connections_is_a_dependency_error(folders: Folders) -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("All connection attempts failed")

    with pytest.raises(DependencyError, match=r"http://server failed 5 times: ConnectError All connection attempts failed"):
        enter(folders, refuse)


def test_an_answer_that_a_proxy_broke_is_a_dependency_error(folders: Folders) -> None:
    def garble(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))

    with pytest.raises(DependencyError, match=r"http://server failed 5 times: DecodingError"):
        enter(folders, garble)


def test_a_stage_that_is_to_stop_asks_a_server_in_trouble_no_more(folders: Folders) -> None:
    asked = []

    def hang(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadTimeout("")

    with pytest.raises(Interrupted, match="stopped while the vLLM server at http://server was in trouble"):
        enter(folders, hang, should_stop=lambda: len(asked) == 2)
    assert len(asked) == 2


def test_a_local_server_that_is_gone_is_not_asked_again(folders: Folders) -> None:
    asked = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadError("")

    with pytest.raises(DependencyError, match="was killed by signal 9: out of memory"):
        enter(folders, refuse, failure=lambda: "the local vLLM server was killed by signal 9: out of memory")
    assert len(asked) == 1


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_new_adapter_is_served_under_its_digest_and_the_old_one_unloaded(folders: Folders, vllm_url: str) -> None:
    config = PolicyConfig(backend="vllm", url=vllm_url)

    async def served(adapter: Path | None) -> set[str]:
        async with open_policy(folders.model, adapter, MODEL, config), httpx.AsyncClient(base_url=vllm_url) as client:
            return {model["id"] for model in (await client.get("/v1/models")).json()["data"]}

    for adapter in (folders.adapter, folders.other_adapter, folders.other_adapter):
        assert asyncio.run(served(adapter)) == {"base", f"adapter-{adapter_digest(adapter)[:12]}"}

    async def shards(adapter: Path) -> list[set[str]]:
        return await asyncio.gather(*(served(adapter) for _ in range(4)))

    assert f"adapter-{adapter_digest(folders.adapter)[:12]}" in set.intersection(*asyncio.run(shards(folders.adapter)))
    assert asyncio.run(served(folders.adapter)) == {"base", f"adapter-{adapter_digest(folders.adapter)[:12]}"}


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_server_that_is_killed_mid_request_is_one_clear_line(folders: Folders, tmp_path: Path) -> None:
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)
    log_path = tmp_path / "server.log"

    async def conversation() -> None:
        async with start_server(folders, log_path) as server:
            policy = vllm.VllmPolicy(server.url, folder, folders.adapter, policy=PolicyConfig(), failure=server.failure)
            async with policy:
                requests = asyncio.gather(*(_many(policy, seed) for seed in range(8)))
                await asyncio.sleep(0.3)
                assert server._process is not None
                os.killpg(server._process.pid, signal.SIGKILL)
                await requests

    with pytest.raises(DependencyError, match="the local vLLM server was killed by signal 9") as caught:
        asyncio.run(conversation())
    assert "\n" not in str(caught.value)
    assert log_path.exists()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_server_that_cannot_start_says_why(folders: Folders, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in folders.model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DependencyError, match=r"the local vLLM server ended with exit code 1: .*Error"):
        asyncio.run(_start(Folders(broken, folders.adapter, folders.other_adapter), tmp_path / "server.log"))


async def _start(folders: Folders, log_path: Path) -> None:
    async with start_server(folders, log_path):
        pytest.fail("the server started")


async def _many(policy: Policy, seed: int) -> None:
    for number in range(50):
        await draw(policy, OTHER * 3 + PROMPT, count=16, tokens=150, seed=1000 * seed + number)
