"""`itoolctl logs`: what a stage wrote, while it runs and afterwards."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Queue
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.options import BackendOption, ConfigOption, Output, OutputOption, RootOption, RunOption, existing_config, note
from itool.commands import itoolctl
from itool.errors import ItoolError
from itool.visible import visible

if TYPE_CHECKING:
    from itool.artifacts.store import Store
    from itool.config import RunConfig
    from itool.operations.attempt_logs import AttemptKey, AttemptLog, Wanted
    from itool.operations.live_logs import ClusterLogs, PodText

MOST_FOLLOWED = 32
LOOK_AGAIN_SECONDS = 1.0


def logs(
    *,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of a stage, as in `score` or `i2/score`.")],
    iteration: Annotated[
        int | None, typer.Option("--iteration", "-k", min=0, help="Iteration; the last one that ran when left out.")
    ] = None,
    shard: Annotated[int | None, typer.Option("--shard", min=0, help="Only this shard.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="This attempt instead of the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run stops.")] = False,
    run: RunOption = None,
    config: ConfigOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Print the log of a stage's newest attempt. Live, and from the store after its pods are gone. --output json: an object per line."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.errors import InputError  # noqa: PLC0415
    from itool.operations.attempt_logs import Wanted  # noqa: PLC0415

    name, wanted_iteration = parse_stage(stage, iteration)
    settings = existing_config(run, root, config, backend=backend, known_keys_only=True)
    store, wanted = open_store(settings.root, settings.store), Wanted(name, wanted_iteration, shard, attempt)
    printer = Printer(name, as_json=output is Output.json)
    show = _show_cluster if settings.runtime.backend == "kubernetes" else _show_local
    if not show(settings, store, wanted, printer, follow=follow):
        asked = {"iteration": wanted_iteration, "shard": shard, "attempt": attempt}
        which = "".join(f", {what} {number}" for what, number in asked.items() if number is not None)
        remedy = f"{itoolctl(f'status {settings.run}', settings.root)} says what has run"
        raise InputError(f"run {settings.run} has no log of {name}{which}", remedy=remedy)


def parse_stage(stage: str, iteration: int | None) -> tuple[str, int | None]:
    """`i2/score` or `score` -> name and iteration. Raises ConfigError for a name that is no stage."""
    from itool.errors import ConfigError  # noqa: PLC0415
    from itool.stages import STAGES  # noqa: PLC0415

    prefix, slash, name = stage.rpartition("/")
    if slash and prefix.startswith("i") and prefix[1:].isdigit():
        if iteration not in (None, int(prefix[1:])):
            raise ConfigError(f"{stage} and --iteration {iteration} are two iterations", remedy="Give one of them")
        iteration = int(prefix[1:])
    elif slash:
        name = stage
    if name not in STAGES:
        raise ConfigError(f"{stage!r} is no stage", remedy=f"Stages are {', '.join(STAGES)}, optionally as i2/score")
    return name, iteration


@dataclass
class Printer:
    """Whole lines to standard output; where several sources take turns, a heading on standard error says whose turn it is."""

    stage: str
    as_json: bool
    _last: str = ""
    _many: bool = False
    _rest: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def announce(self, sources: int) -> None:
        """How many sources come now."""
        self._many = self._many or sources > 1 or bool(self._last)

    def write(self, source: str, key: AttemptKey, data: bytes, *, last: bool = False) -> None:
        """A piece of a source's text; half a line waits for its other half, or for the last piece."""
        with self._lock:
            text = self._rest.pop(source, b"") + data
            if last and text and not text.endswith(b"\n"):
                text += b"\n"
            whole = text.rfind(b"\n") + 1
            self._rest[source] = text[whole:]
            if not text[:whole]:
                return
            if self._many and source != self._last and not self.as_json:
                sys.stdout.flush()
                note(f"== {source}")
            self._last = source
            sys.stdout.buffer.write(self._as_json(source, key, text[:whole]) if self.as_json else text[:whole])
            sys.stdout.flush()

    def _as_json(self, source: str, key: AttemptKey, text: bytes) -> bytes:
        iteration, shard, attempt = key
        head = {"stage": self.stage, "iteration": iteration, "shard": shard, "attempt": attempt, "source": source}
        lines = text.decode(errors="replace").splitlines()
        return "".join(f"{visible(json.dumps(head | {'line': line}, ensure_ascii=False))}\n" for line in lines).encode()


def _show_local(settings: RunConfig, store: Store, wanted: Wanted, printer: Printer, *, follow: bool) -> bool:
    """Files of this machine or the store, read on from where they were; False when there is none."""
    from itool.operations.attempt_logs import find_logs  # noqa: PLC0415

    offsets: dict[AttemptKey, int] = {}
    open_logs: list[AttemptLog] = []
    while True:
        active = follow and _is_held(settings, store)
        found = find_logs(settings, store, wanted)
        printer.announce(len(found))
        for log in open_logs:
            if log not in found:  # a newer attempt has taken its place
                printer.write(str(log.name), log.key, b"", last=True)
        open_logs = found
        for log in found:
            data = log.read(store, settings.run, offsets.get(log.key, 0))
            offsets[log.key] = offsets.get(log.key, 0) + len(data)
            printer.write(str(log.name), log.key, data, last=not active)
        if not active:
            return bool(found)
        time.sleep(LOOK_AGAIN_SECONDS / 5)


def _show_cluster(settings: RunConfig, store: Store, wanted: Wanted, printer: Printer, *, follow: bool) -> bool:
    """Pods that are there and logs of those that are gone; False when there is none."""
    from itool.cluster.client import open_cluster  # noqa: PLC0415
    from itool.operations.live_logs import ClusterLogs  # noqa: PLC0415

    logs = ClusterLogs(settings, store, open_cluster(settings.kubernetes.namespace), wanted)
    found = False
    while True:
        active = follow and (_is_held(settings, store) or logs.has_open_jobs())
        texts = logs.new_texts()
        found = found or bool(texts)
        printer.announce(len(texts))
        if active:
            _follow_all(logs, texts, printer)
        else:
            for text in texts:
                _copy(logs, text, printer, follow=False)
            return found
        time.sleep(LOOK_AGAIN_SECONDS)


def _follow_all(logs: ClusterLogs, texts: Sequence[PodText], printer: Printer) -> None:
    """Side by side until all have ended. Threads of their own, so that Ctrl-C need not wait for them."""
    places, errors = threading.BoundedSemaphore(MOST_FOLLOWED), Queue[Exception]()

    def work(text: PodText) -> None:
        with places:
            try:
                _copy(logs, text, printer, follow=True)
            except (ItoolError, OSError) as error:  # a closed pipe ends the command from the main thread alone
                errors.put(error)

    if len(texts) > MOST_FOLLOWED:
        note(f"{len(texts)} pods, {MOST_FOLLOWED} at a time; --shard picks one")
    threads = [threading.Thread(target=work, args=(text,), daemon=True) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not errors.empty():
        raise errors.get()


def _copy(logs: ClusterLogs, text: PodText, printer: Printer, *, follow: bool) -> None:
    for chunk in logs.read(text, follow=follow):
        printer.write(text.pod, text.key, chunk)
    printer.write(text.pod, text.key, b"", last=True)


def _is_held(settings: RunConfig, store: Store) -> bool:
    from itool.cluster.session import open_lease  # noqa: PLC0415

    return open_lease(store, settings.run).holder() is not None
