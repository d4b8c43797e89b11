"""Several servers behind one name: who is asked, and what a search sees when one of them dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from itool.config import PolicyConfig
from itool.errors import DependencyError, Interrupted
from itool.policy import replicas
from itool.policy.model_folder import ModelFolder
from itool.policy.protocol import Policy
from itool.policy.replicas import LOOK_AGAIN_SECONDS, PAUSE_SECONDS, Conversations
from itool.policy.vllm import VllmPolicy, adapter_name
from tests.fakes.vllm_server import FakeVllm

Result = TypeVar("Result")
STOP = 2
FOLDER = ModelFolder(Path("/models/base"), context_tokens=64, vocabulary=90, stop_ids=(STOP,))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


class Time:
    """Seconds that pass when somebody sleeps, or, `by_hand`, only when the test says so."""

    def __init__(self, *, by_hand: bool = False) -> None:
        self.now = 100.0
        self._by_hand = by_hand
        self._asleep: list[asyncio.Future[None]] = []
        self._one_more = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if not self._by_hand:
            end = self.now + seconds
            await asyncio.sleep(0)
            self.now = max(self.now, end)
            return
        awake = asyncio.get_running_loop().create_future()
        self._asleep.append(awake)
        self._one_more.set()
        await awake

    async def until_asleep(self, count: int) -> None:
        """Go on when so many wait for the next pause to end."""
        while len(self._asleep) < count:
            self._one_more.clear()
            await self._one_more.wait()

    def end_pause(self) -> None:
        self.now += PAUSE_SECONDS
        asleep, self._asleep = self._asleep, []
        for awake in asleep:
            awake.set_result(None)


class Name:
    """A name in DNS whose addresses a test can change."""

    def __init__(self, *servers: FakeVllm) -> None:
        self.addresses = [server.host for server in servers]
        self.port = servers[0].port

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert host == "demo-vllm"
        return self.addresses


def ask(
    name: Name,
    adapter: Path,
    question: Callable[[Policy], Awaitable[Result]],
    *,
    patience: float = 10.0,
    stop: Callable[[], bool] = bool,
    time: Time | None = None,
) -> Result:
    time = time or Time()
    config = PolicyConfig(adapters="wait", startup_seconds=patience, timeout_seconds=5)

    async def conversation() -> Result:
        url = f"http://demo-vllm:{name.port}"
        seams = {"resolve": name, "should_stop": stop, "clock": time.clock, "sleep": time.sleep}
        async with VllmPolicy(url, FOLDER, adapter, policy=config, **seams) as policy:
            return await question(policy)

    return asyncio.run(conversation())


def prompts(count: int) -> list[list[int]]:
    return [[10 + number % 70, 11 + number // 70, STOP, 5] for number in range(count)]


async def draw(policy: Policy, prompt: list[int]) -> None:
    assert len(await policy.sample(prompt, count=1, max_tokens=1, temperature=1.0, seed=1)) == 1


async def draw_all(policy: Policy) -> None:
    await asyncio.gather(*(draw(policy, prompt) for prompt in prompts(40)))


def asked(server: FakeVllm) -> int:
    return sum(what == "complete" for what, _ in server.log)


@pytest.fixture
def pair(adapter: Path) -> Iterator[tuple[FakeVllm, FakeVllm]]:
    """Two servers with the adapter, on one port of two addresses."""
    names = (adapter_name(adapter),)
    first = FakeVllm("127.0.0.2", adapters=names).start()
    second = FakeVllm("127.0.0.3", first.port, adapters=names).start()
    yield first, second
    first.stop()
    second.stop()


def test_all_servers_share_the_conversations(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    first, second = pair
    ask(Name(first, second), adapter, draw_all)
    assert asked(first) + asked(second) == 41  # and the canary
    assert min(asked(first), asked(second)) > 5


def test_a_conversation_stays_with_its_server_as_it_grows(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    first, second = pair

    async def question(policy: Policy) -> None:
        for prompt in prompts(12):
            before = asked(first)
            for steps in range(5):
                await draw(policy, [*prompt, *range(30, 30 + steps)])
            assert asked(first) - before in (0, 5)

    ask(Name(first, second), adapter, question)


def test_a_conversation_without_an_end_of_turn_stays_with_its_server_too(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    """The prompts of a single turn hold none."""
    first, second = pair

    async def question(policy: Policy) -> None:
        for prompt in ([10 + number, 5, 6] for number in range(12)):
            before = asked(first)
            for steps in range(5):
                await draw(policy, [*prompt, *range(30, 30 + steps)])
            await policy.logprobs(prompt, [30, 31, 32])
            assert asked(first) - before in (0, 6)

    ask(Name(first, second), adapter, question)


def test_the_oldest_conversations_are_forgotten() -> None:
    conversations = Conversations(most=2)
    first, second = conversations.key([1, 2]), conversations.key([3])
    assert len({first, second}) == 2
    assert conversations.key([1, 2, 9]) == first
    third = conversations.key([4])
    assert (conversations.key([1, 2, 8]), conversations.key([4, 4])) == (first, third)
    assert conversations.key([3, 3]) != second


def test_only_servers_that_list_the_adapter_are_asked_and_the_others_join_later(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    first, second = pair
    second.adapters = ["adapter-of-before"]
    time = Time()

    async def question(policy: Policy) -> None:
        await draw_all(policy)
        assert asked(second) == 0
        second.adapters = [adapter_name(adapter)]
        time.now += LOOK_AGAIN_SECONDS
        await draw(policy, prompts(1)[0])  # one request looks again; others would not wait for it
        await draw_all(policy)
        assert asked(second) > 5

    ask(Name(first, second), adapter, question, time=time)
    assert not [entry for entry in second.log if entry[0] in ("load", "unload")]


def test_the_requests_of_a_server_that_died_go_to_the_others(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    first, second = pair

    async def question(policy: Policy) -> None:
        await draw_all(policy)
        second.stop()
        await draw_all(policy)

    ask(Name(first, second), adapter, question)
    assert asked(first) + asked(second) >= 81


def test_a_server_in_trouble_is_left_alone_for_a_while(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    first, second = pair
    second.fail_with = 500

    async def question(policy: Policy) -> None:
        await draw_all(policy)

    ask(Name(first, second), adapter, question)
    assert asked(first) >= 41


def test_a_server_that_lists_the_adapter_and_fails_every_question_costs_no_search(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    """Its API answers, its engine does not: a GPU that hangs, or a replica that is far too slow."""
    first, second = pair
    second.post = lambda path, body: (500, {"error": {"message": "no answer"}})
    ask(Name(first, second), adapter, draw_all, patience=10.0)
    assert asked(first) == 41


def test_a_question_that_every_server_has_failed_goes_round(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    failures = {server.host: 3 for server in pair}

    def fail_at_first(server: FakeVllm) -> None:
        answer = server.post

        def post(path: str, body: dict[str, object]) -> tuple[int, object]:
            failures[server.host] -= 1
            return (500, {"error": {"message": "no answer"}}) if failures[server.host] >= 0 else answer(path, body)

        server.post = post

    async def question(policy: Policy) -> None:
        for server in pair:
            fail_at_first(server)
        await draw(policy, prompts(1)[0])

    ask(Name(*pair), adapter, question, patience=60.0)
    assert sorted(failures.values()) == [-1, 0]


def test_a_name_that_does_not_resolve_for_a_moment_stops_no_search(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    name, time = Name(*pair), Time()

    async def question(policy: Policy) -> None:
        await draw_all(policy)
        name.addresses = []
        time.now += LOOK_AGAIN_SECONDS
        before = sum(asked(server) for server in pair)
        await draw_all(policy)
        assert sum(asked(server) for server in pair) - before == 40

    ask(name, adapter, question, patience=0.1, time=time)


def test_a_lone_server_that_dies_is_waited_for_at_its_new_address(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    """The pod is killed during a search: requests wait for its successor, which has the adapter only after a while."""
    first, second = pair
    second.adapters = []
    name, time = Name(first), Time(by_hand=True)

    async def question(policy: Policy) -> None:
        await draw(policy, prompts(1)[0])
        first.stop()
        search = asyncio.create_task(draw_all(policy))
        await time.until_asleep(40)
        name.addresses = []
        time.end_pause()
        await time.until_asleep(1)  # one looks for all
        name.addresses = [second.host]
        time.end_pause()
        await time.until_asleep(1)
        assert asked(second) == 0
        assert not search.done()
        second.adapters = [adapter_name(adapter)]
        time.end_pause()
        await search

    ask(name, adapter, question, time=time)
    assert asked(second) == 40


def test_a_server_that_forgot_its_adapter_is_waited_for(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    """The vLLM process restarted inside its pod: same address, no adapter, until its keeper has loaded it again."""
    server, _ = pair
    time = Time(by_hand=True)

    async def question(policy: Policy) -> None:
        server.adapters = []
        search = asyncio.create_task(draw_all(policy))
        await time.until_asleep(40)
        time.end_pause()
        await time.until_asleep(1)
        assert not search.done()
        server.adapters = [adapter_name(adapter)]
        time.end_pause()
        await search

    ask(Name(server), adapter, question, time=time)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.4"]], ids=["no pod is ready", "nothing listens"])
def test_patience_ends_in_one_line(adapter: Path, addresses: list[str]) -> None:
    name = Name(FakeVllm(port=9))
    name.addresses = addresses
    with pytest.raises(
        DependencyError, match=r"no vLLM server behind http://demo-vllm:9 has answered for 0 s: (demo-vllm has no|http)"
    ) as e:
        ask(name, adapter, draw_all, patience=0.2)
    assert "\n" not in str(e.value)


def test_a_server_that_lists_the_adapter_but_never_answers_ends_the_patience_too(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    server, _ = pair

    async def question(policy: Policy) -> None:
        server.post = lambda path, body: (503, {"error": {"message": "engine is dead"}})
        await draw(policy, prompts(1)[0])

    with pytest.raises(DependencyError, match="status 503: engine is dead"):
        ask(Name(server), adapter, question, patience=0.3)


def test_a_stage_that_waits_for_a_server_can_be_stopped(pair: tuple[FakeVllm, FakeVllm], adapter: Path) -> None:
    server, _ = pair
    stop: list[bool] = []
    time = Time(by_hand=True)

    async def question(policy: Policy) -> None:
        server.stop()
        search = asyncio.create_task(draw_all(policy))
        await time.until_asleep(40)
        stop.append(True)
        time.end_pause()
        await search

    with pytest.raises(Interrupted, match="stopped while no vLLM server answered"):
        ask(Name(server), adapter, question, stop=lambda: bool(stop), time=time)


def test_no_proxy_stands_between_a_stage_and_the_servers_of_its_run(
    pair: tuple[FakeVllm, FakeVllm], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods that leave the cluster through a proxy: it knows no pod addresses."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    ask(Name(*pair), adapter, draw_all)


def test_a_name_resolves_to_the_addresses_of_this_machine() -> None:
    assert "127.0.0.1" in asyncio.run(replicas.resolve_addresses("localhost", 80))
    assert asyncio.run(replicas.resolve_addresses("no-such-service.invalid", 80)) == []
