"""The policy behind OpenAI-compatible vLLM servers: token ids in, token ids out, many requests in flight.

The adapter is loaded at run time under a name that is its content digest: a name that was used before would serve stale prefix-cache
blocks. Every request asks for the adapter by that name. With `policy.adapters: load` there is one server and this client loads the
adapter; with `wait` the servers behind the URL fetch adapters themselves, and only those are asked that list it.

Log-probabilities are vLLM's raw ones (`--logprobs-mode raw_logprobs`, its default): of the distribution at temperature 1, before any
filter.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import tenacity

from itool.config import PolicyConfig
from itool.errors import ConfigError, DependencyError, InputError, Interrupted, ItoolError, NumericalError
from itool.logs import get_logger
from itool.policy.model_folder import ModelFolder, adapter_digest
from itool.policy.protocol import Sample
from itool.policy.replicas import Conversations, Replicas, Resolve, Unavailable
from itool.policy.server import BASE_MODEL, KEY_VARIABLE

ADAPTER_PREFIX = "adapter-"
LOAD_PATH = "/v1/load_lora_adapter"
MOST_SAMPLES = 64
"""Most samples in one request; vLLM gives sample i the seed `seed + i`, so a later part starts at a later seed."""

RETRIES = 5
FIRST_PAUSE_SECONDS = 0.5
LOOK_SECONDS = 10.0
"""Longest answer to the question which adapters a server lists; a busy CPU build takes seconds."""

OLDEST_VLLM = "0.26"
"""The first whose completions know `logprob_token_ids`; before it the field is ignored without a word."""

SHUTTING_DOWN = "shutting down"

NOT_FINITE = "Out of range float values"
"""vLLM cannot write NaN into its answer, and says so as if the request were wrong (status 400)."""

PLAIN_SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""No filter between the model and the draw, whatever the server's own defaults are."""

Answer = TypeVar("Answer")

_log = get_logger(__name__)


class VllmPolicy:
    """See protocol.Policy. `failure` tells why a local server is gone (None: it runs), which ends the retries at once.

    Entering it proves the adapter, and loads it before unless the servers do. Raises DependencyError when no server answers within the
    retries, or within `policy.startup_seconds` where servers come back by themselves; Interrupted when `should_stop` while it waits.
    """

    def __init__(
        self,
        url: str,
        folder: ModelFolder,
        adapter_dir: Path | None,
        *,
        policy: PolicyConfig,
        key: str | None = None,
        failure: Callable[[], str | None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._folder = folder
        self._adapter_dir = adapter_dir
        self._failure = failure
        self._should_stop = should_stop
        settings = client_settings(url, policy, key)
        self._url: str = settings["base_url"]
        self._slots = asyncio.Semaphore(policy.max_requests)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(policy.timeout_seconds, connect=min(10.0, policy.timeout_seconds)),
            limits=httpx.Limits(max_connections=policy.max_requests + 2, max_keepalive_connections=policy.max_requests + 2),
            transport=transport,
            **settings,
        )
        self._conversations = Conversations()
        self._replicas: Replicas | None = None
        if policy.adapters == "wait":
            self._replicas = Replicas(
                self._url,
                self._trouble,
                patience_seconds=policy.startup_seconds,
                should_stop=should_stop,
                resolve=resolve,
                clock=clock,
                sleep=sleep,
            )
        self.served_name = ""

    async def __aenter__(self) -> Self:
        try:
            await (self._load_adapter() if self._replicas is None else self._await_adapter())
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    def forget(self) -> None:
        """See protocol.Policy.forget. Nothing to do: a server shares its cache with others and repeats up to rounding only."""

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        """See protocol.Policy.sample."""
        self._folder.check_request(prompt_ids, max_tokens)
        self._folder.check_ids(prompt_ids)
        distinct = min(count, 1) if temperature == 0 else count
        first_seed = derived_seed(seed)
        fields = {"max_tokens": max_tokens, "temperature": temperature, "logprobs": 0, "stop_token_ids": list(self._folder.stop_ids)}
        parts = [(start, min(MOST_SAMPLES, distinct - start)) for start in range(0, distinct, MOST_SAMPLES)]
        conversation = self._conversation(prompt_ids)
        try:
            async with asyncio.TaskGroup() as group:
                answers = [
                    group.create_task(
                        self._complete(prompt_ids, self._read_sample, conversation, n=size, seed=first_seed + start, **fields)
                    )
                    for start, size in parts
                ]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        samples = [sample for answer in answers for sample in answer.result()]
        return samples * count if distinct < count else samples

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See protocol.Policy.logprobs. The last token's is asked for by id, which leaves room for it in a full context."""
        if not continuation_ids:
            return []
        self._folder.check_request(prompt_ids, len(continuation_ids))
        self._folder.check_ids((*prompt_ids, *continuation_ids))
        known = [*prompt_ids, *continuation_ids[:-1]]
        fields: dict[str, Any] = {"prompt_logprobs": 0} if len(continuation_ids) > 1 else {}

        def read(choice: dict[str, Any]) -> list[float]:
            rows = choice.get("prompt_logprobs") or []
            inner = [row[str(token)]["logprob"] for token, row in zip(known[len(prompt_ids) :], rows[len(prompt_ids) :], strict=True)]
            return [*inner, *self._next_logprobs(choice, continuation_ids[-1:])]

        asked = fields | _asked_for([continuation_ids[-1]])
        return (await self._complete(known, read, self._conversation(prompt_ids), max_tokens=1, **asked))[0]

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        """See protocol.Policy.option_probabilities."""
        self._folder.check_request(prompt_ids, 1)
        self._folder.check_ids((*prompt_ids, *option_ids))

        def read(choice: dict[str, Any]) -> list[float]:
            return self._next_logprobs(choice, option_ids)

        conversation = self._conversation(prompt_ids)
        (logps,) = await self._complete(prompt_ids, read, conversation, max_tokens=1, **_asked_for(option_ids))
        weights = [math.exp(logp - max(logps)) for logp in logps]
        return [weight / sum(weights) for weight in weights]

    def _next_logprobs(self, choice: dict[str, Any], token_ids: Sequence[int]) -> list[float]:
        """Log-probability of each of these ids at the first new position. Servers that do not know what was asked for leave it out."""
        found = {int(name.removeprefix("token_id:")): value for name, value in choice["logprobs"]["top_logprobs"][0].items()}
        if not found.keys() >= set(token_ids):
            raise DependencyError(
                f"the vLLM server at {self._url} does not give the log-probabilities of chosen tokens (logprob_token_ids)",
                remedy=f"Use vLLM {OLDEST_VLLM} or newer",
            )
        return [found[token] for token in token_ids]

    def _read_sample(self, choice: dict[str, Any]) -> Sample:
        """Raises ValueError when there is not a log-probability for each token, or no token: a stop id is one, too."""
        token_ids, logprobs = tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
        if not 0 < len(token_ids) == len(logprobs):
            raise ValueError(f"{len(logprobs)} log-probabilities of {len(token_ids)} tokens")
        return Sample(token_ids, logprobs, token_ids[-1] in self._folder.stop_ids)

    # The adapter

    async def _load_adapter(self) -> None:
        """Load the adapter on the one server, prove it, and only then unload the others."""
        base, adapters = await self._served_models()
        self.served_name = base
        if self._adapter_dir is not None:
            await self._use_adapter(self._adapter_dir, adapters)
        await self._canary()
        if self._adapter_dir is not None:
            await self._unload([name for name in adapters if name.startswith(ADAPTER_PREFIX) and name != self.served_name])

    async def _await_adapter(self) -> None:
        """Wait until a server lists the adapter; others join as they do."""
        self.served_name = adapter_name(self._adapter_dir) if self._adapter_dir is not None else BASE_MODEL
        await self._canary()

    async def _trouble(self, server: str) -> str | None:
        """Why a server cannot be asked for the adapter; None when it can."""
        try:
            models = await self._ask_once(server, "GET", "/v1/models", None, _read_models, seconds=LOOK_SECONDS)
        except Unavailable as trouble:
            return str(trouble)
        return None if self.served_name in models else f"does not list {self.served_name} yet"

    async def _served_models(self) -> tuple[str, list[str]]:
        """The base model's name and the names of the adapters that are loaded."""
        models = await self._request("GET", "/v1/models", None, _read_models)
        bases = [name for name, parent in models.items() if parent is None]
        if not bases:
            raise DependencyError(f"the vLLM server at {self._url} serves no base model", remedy="Start it with the run's base model")
        return bases[0], [name for name, parent in models.items() if parent is not None]

    async def _use_adapter(self, adapter_dir: Path, loaded: Sequence[str]) -> None:
        self.served_name = adapter_name(adapter_dir)
        if self.served_name in loaded:
            return
        body = {"lora_name": self.served_name, "lora_path": str(adapter_dir.absolute())}
        refused = await self._change_adapters(LOAD_PATH, body)
        if self.served_name not in (await self._served_models())[1]:
            problem = f"the vLLM server at {self._url} does not list adapter {self.served_name} after loading it"
            raise refused or DependencyError(problem, remedy="Read the server's log")
        _log.info("adapter loaded", adapter=self.served_name)

    async def _canary(self) -> None:
        """One token before any use: it proves the adapter's weights and compiles what the first request would wait for."""
        known, asked = self._folder.stop_ids[:1], [0, 1]
        await self._complete(known, lambda choice: self._next_logprobs(choice, asked), b"", max_tokens=1, **_asked_for(asked))

    async def _unload(self, names: Sequence[str]) -> None:
        for name in names:
            refused = await self._change_adapters("/v1/unload_lora_adapter", {"lora_name": name})
            if refused and name in (await self._served_models())[1]:
                raise refused

    async def _change_adapters(self, path: str, body: dict[str, Any]) -> ItoolError | None:
        """Load or unload one; returns a refusal, which may only mean that another shard was faster: the list of adapters tells."""
        try:
            await self._request("POST", path, body, lambda _response: None)
        except ItoolError as refused:
            return refused
        return None

    # HTTP

    async def _complete(
        self, prompt_ids: Sequence[int], read: Callable[[dict[str, Any]], Answer], conversation: bytes, **fields: Any
    ) -> list[Answer]:
        """What `read` makes of each choice of one completion, in order. An answer that it cannot read is asked for again.

        `seed` stands in the fields only where something is drawn: the CPU build dies of seeds too often.
        """
        body = {"model": self.served_name, "prompt": list(prompt_ids), "return_token_ids": True, **PLAIN_SAMPLING, **fields}

        def read_all(response: httpx.Response) -> list[Answer]:
            return [read(choice) for choice in _read_choices(response, fields.get("n", 1))]

        async with self._slots:
            return await self._request("POST", "/v1/completions", body, read_all, key=conversation)

    def _conversation(self, prompt_ids: Sequence[int]) -> bytes:
        """What decides which of several servers is asked."""
        return b"" if self._replicas is None else self._conversations.key(prompt_ids)

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, read: Callable[[httpx.Response], Answer], *, key: bytes = b""
    ) -> Answer:
        """Ask one of the servers, or the only one again and again with growing pauses; then DependencyError."""
        if self._replicas is not None:
            return await self._replicas.ask(key, lambda server: self._ask_once(server, method, path, body, read))
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=self._is_hopeless,
            wait=tenacity.wait_exponential(multiplier=FIRST_PAUSE_SECONDS),
            reraise=True,
        )
        try:
            return await retrying(self._ask_once, self._url, method, path, body, read)
        except Unavailable as trouble:
            # A server whose engine died is gone by now, and one that drains says so.
            if path == LOAD_PATH and trouble.status == httpx.codes.INTERNAL_SERVER_ERROR and SHUTTING_DOWN not in str(trouble):
                raise self._load_refusal(trouble.status, str(trouble)) from None
            if self._should_stop():
                what = f"stopped while the vLLM server at {self._url} was in trouble"
                raise Interrupted(what, remedy="Run the same command again to resume") from None
            reason = self._failure() or f"the vLLM server at {self._url} failed {RETRIES} times: {trouble}"
            raise DependencyError(reason, remedy="Start again: finished work is kept") from None

    def _is_hopeless(self, state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= RETRIES or self._failure() is not None or self._should_stop()

    async def _ask_once(
        self,
        server: str,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[httpx.Response], Answer],
        *,
        seconds: float | None = None,
    ) -> Answer:
        timeout = httpx.USE_CLIENT_DEFAULT if seconds is None else seconds
        try:
            response = await self._client.request(method, f"{server}{path}", json=body, timeout=timeout)
        except httpx.ReadTimeout:
            longest = self._client.timeout.read if seconds is None else seconds
            raise Unavailable(f"no answer within {longest:g} s{' (policy.timeout_seconds)' if seconds is None else ''}") from None
        except httpx.RequestError as error:
            raise Unavailable(f"{type(error).__name__} {error}".strip()) from None
        if response.is_success:
            try:
                return read(response)
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # cut off, or a proxy's page
                reason = f"{type(error).__name__} {error}"
                raise Unavailable(f"its answer cannot be read ({reason}): {response.text[:100]}") from None
        message = _error_message(response)
        forgot = response.status_code == httpx.codes.NOT_FOUND and self._replicas is not None  # it restarted; its adapter comes back
        if response.status_code >= 500 or response.status_code in {408, 429} or forgot:
            raise Unavailable(f"status {response.status_code}: {message}", response.status_code)
        raise self._refusal(path, response.status_code, message)

    def _refusal(self, path: str, status: int, message: str) -> Exception:
        """What a request means that the server understood and refused."""
        if status < 400:
            return ConfigError(f"the vLLM server at {self._url} {message}", remedy="Set policy.url to where it leads")
        if status in {401, 403}:
            return ConfigError(f"the vLLM server at {self._url} refuses the key: {message}", remedy="Set VLLM_API_KEY")
        if path == LOAD_PATH:
            return self._load_refusal(status, message)
        if NOT_FINITE in message:
            remedy = "Use an earlier adapter or a smaller learning rate"
            return NumericalError(f"the logits of {self.served_name} at {self._url} are not finite: {message}", remedy=remedy)
        if status == 404:
            remedy = "It may have restarted" if self.served_name else "Check policy.url"
            return DependencyError(f"the vLLM server at {self._url} knows no {self.served_name or path}: {message}", remedy=remedy)
        return InputError(f"the vLLM server at {self._url} refuses the request (status {status}): {message}")

    def _load_refusal(self, status: int, message: str) -> ItoolError:
        """404: the server may load nothing while it runs, or does not see the folder."""
        if status == 404:
            remedy = f"Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora, where it sees {self._adapter_dir}"
            return DependencyError(f"the vLLM server at {self._url} cannot load {self.served_name}: {message}", remedy=remedy)
        return InputError(f"the vLLM server at {self._url} refuses {self.served_name}: {message}")


def client_settings(url: str, policy: PolicyConfig, key: str | None = None) -> dict[str, Any]:
    """How a client of httpx reaches a server: its root, the key, and no proxy before one on this machine or in the same cluster.

    `key` is that of a server of one's own; one elsewhere has it from the environment.
    """
    root, key = url.rstrip("/").removesuffix("/v1"), key or os.environ.get(KEY_VARIABLE)
    return {
        "base_url": root,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "trust_env": policy.adapters == "load" and not root.startswith("http://127.0.0.1:"),
    }


def adapter_name(adapter_dir: Path) -> str:
    """The name of an adapter on every server: its content, so that no cache can mix two up."""
    return ADAPTER_PREFIX + adapter_digest(adapter_dir)[:12]


def derived_seed(seed: int) -> int:
    """A seed of 62 bits for an engine that counts up from it, one per sample: the ranges of two seeds then hardly ever overlap."""
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "big") >> 2


def _asked_for(token_ids: Sequence[int]) -> dict[str, Any]:
    """Fields that make vLLM report the next-token log-probabilities of these ids."""
    return {
        "temperature": 0.0,
        "logprobs": 1,
        "logprob_token_ids": sorted(set(token_ids)),
        "return_tokens_as_token_ids": True,
    }


def _read_choices(response: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The choices of a completion, in order. Raises ValueError, LookupError or TypeError when they are not `count` choices."""
    choices: list[dict[str, Any]] = sorted(response.json()["choices"], key=lambda choice: int(choice["index"]))
    if len(choices) != count:
        raise ValueError(f"{len(choices)} choices instead of {count}")
    ends = {choice["finish_reason"] for choice in choices}
    if not ends <= {"stop", "length"}:
        raise Unavailable(f"the server broke off an answer ({', '.join(map(str, ends))})")  # as vLLM does when it is told to end
    return choices


def _read_models(response: httpx.Response) -> dict[str, str | None]:
    """The base that each served name belongs to; None for a base itself."""
    return {model["id"]: model.get("parent") for model in response.json()["data"]}


def _error_message(response: httpx.Response) -> str:
    if response.has_redirect_location:
        return f"redirects to {response.headers['location']}"
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
