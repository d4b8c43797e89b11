"""Several servers behind one name: which of them serve what we ask for, which one gets a request, and what happens when one dies.

The name is that of a headless Service: it resolves to the addresses of the pods that are ready. Requests are spread by rendezvous hashing
over a key (the conversation), so that one conversation meets one prefix cache, and only the requests of a server that died move.
Which server answers changes no result: seeds are per request.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx

from itool.errors import DependencyError, Interrupted
from itool.logs import get_logger

LOOK_AGAIN_SECONDS = 15.0
"""So often the name is resolved again while all is well: a replica that came back is used again."""

PAUSE_SECONDS = 1.0

Answer = TypeVar("Answer")
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_log = get_logger(__name__)


class Unavailable(Exception):  # noqa: N818 - a state, and never seen outside this package
    """The server did not answer, or answered that it is in trouble: worth a retry. `status` is that of its answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Conversations:
    """Which conversation a request belongs to: the first prompt that was asked for and that it extends.

    A search tree asks for its prompt first and then for states below it, which begin with it. What it does not know: a state whose prompt
    was among the oldest, of which only `most` are kept, begins a conversation of its own; that costs a cached prompt and changes no result.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def key(self, ids: Sequence[int]) -> bytes:
        """The same for every request of a conversation."""
        digest, done = hashlib.blake2b(digest_size=16), 0
        for length in sorted({length for length in self._known.values() if length <= len(ids)} | {len(ids)}):
            digest.update(array("q", ids[done:length]).tobytes())
            done, key = length, digest.digest()
            if key in self._known:
                self._known.move_to_end(key)
                return key
        self._known[key] = len(ids)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        return key


class Replicas:
    """The servers behind `url` for which `trouble` answers None (else: why this server cannot be asked).

    `ask` waits at most `patience_seconds` for a server, then raises DependencyError; it raises Interrupted when `should_stop` says so
    while it waits.
    """

    def __init__(
        self,
        url: str,
        trouble: Callable[[str], Awaitable[str | None]],
        *,
        patience_seconds: float,
        should_stop: Callable[[], bool],
        resolve: Resolve | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._url = httpx.URL(url)
        self._trouble = trouble
        self._patience_seconds = patience_seconds
        self._should_stop = should_stop
        self._resolve = resolve or resolve_addresses
        self._clock = clock
        self._sleep = sleep
        self._looking = asyncio.Lock()
        self._servers: tuple[str, ...] = ()
        self._looked_at = -LOOK_AGAIN_SECONDS
        self._gone_since: float | None = None
        self._reason = ""

    async def ask(self, key: bytes, question: Callable[[str], Awaitable[Answer]]) -> Answer:
        """The answer of the server for this key. One that fails is left alone until it is looked at again, and another one is asked.

        By this question only when every other one has failed it too: what lists its adapter may still answer nothing.
        """
        started: float | None = None
        failed: set[str] = set()
        while True:
            server = await self._choose(key, failed)
            try:
                return await question(server)
            except Unavailable as trouble:
                self._drop(server, str(trouble))
                failed.add(server)
            started = started or self._clock()
            if self._clock() - started >= self._patience_seconds:
                raise self._lost()
            await self._pause()

    async def _choose(self, key: bytes, failed: set[str]) -> str:
        """The server for this key, of those that have not failed it; when all have, each has another chance."""
        if not self._servers or self._clock() - self._looked_at >= LOOK_AGAIN_SECONDS:
            async with self._looking:
                await self._find()
        if failed.issuperset(self._servers):
            failed.clear()
        untried = [server for server in self._servers if server not in failed]
        return max(untried, key=lambda server: hashlib.blake2b(server.encode(), key=hashlib.sha256(key).digest()).digest())

    async def _find(self) -> None:
        """Look until there is a server; once when there is one already."""
        if self._servers and self._clock() - self._looked_at < LOOK_AGAIN_SECONDS:
            return  # another request has looked meanwhile
        self._gone_since = None if self._servers else self._gone_since or self._clock()
        while True:
            await self._look()
            if self._servers:
                self._gone_since = None
                return
            if self._clock() - (self._gone_since or self._clock()) >= self._patience_seconds:
                raise self._lost()
            await self._pause()

    async def _look(self) -> None:
        """Resolve the name again and ask the servers that are not in use whether they can be. One without an address is not asked again."""
        self._looked_at = self._clock()  # first: others need not wait for a slow look while there are servers
        found = await self._addresses() or self._servers  # a name without addresses may also be a DNS server that restarts
        new = [server for server in found if server not in self._servers]
        troubles = dict(zip(new, await asyncio.gather(*(self._trouble(server) for server in new)), strict=True))
        before, waited_for = self._servers, self._reason
        self._servers = tuple(server for server in found if server in before or (server in troubles and troubles[server] is None))
        reasons = [f"{server}: {trouble}" for server, trouble in troubles.items() if trouble]
        self._reason = reasons[0] if reasons else self._reason if found else f"{self._url.host} has no address: no vLLM pod is ready"
        if self._servers != before:
            _log.info("vllm servers", servers=list(self._servers), trouble=reasons)
        elif not self._servers and self._reason != waited_for:
            _log.info("waiting for a vllm server", reason=self._reason)

    async def _addresses(self) -> list[str]:
        """A URL per address of the name; the URL itself under TLS, where the name is what is certified."""
        if self._url.scheme == "https":
            return [str(self._url).rstrip("/")]
        addresses = await self._resolve(self._url.host, self._url.port or 80)
        return [str(self._url.copy_with(host=address)).rstrip("/") for address in sorted(set(addresses))]

    def _drop(self, server: str, reason: str) -> None:
        if server in self._servers:
            _log.warning("vllm server lost", server=server, reason=reason)
            self._servers = tuple(other for other in self._servers if other != server)
            self._looked_at = min(self._looked_at, self._clock() - LOOK_AGAIN_SECONDS + PAUSE_SECONDS)  # it may be back soon
        self._reason = f"{server}: {reason}"

    async def _pause(self) -> None:
        if self._should_stop():
            raise Interrupted("stopped while no vLLM server answered", remedy="Run the same command again to resume")
        await self._sleep(PAUSE_SECONDS)

    def _lost(self) -> DependencyError:
        text = f"no vLLM server behind {self._url} has answered for {self._patience_seconds:.0f} s: {self._reason}"
        return DependencyError(text, remedy="Start again: finished work is kept")


async def resolve_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name now; [] when it has none, as a Service without a ready pod."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return [str(address[0]) for *_, address in found]
