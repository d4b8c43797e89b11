"""How a run stands: reads store, lease and cluster (or this machine's logs), and keeps what could be read when one of them is away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from itool.artifacts.resolve import Resolution, StoreListing, observe, resolve_observed
from itool.artifacts.store import Store
from itool.cluster.decide import stages_in_turn
from itool.cluster.session import open_lease
from itool.config import RunConfig
from itool.errors import ItoolError
from itool.operations.attempt_logs import last_word
from itool.operations.overview import PodRow, RunObjects, StageRow, component_rows, controller_comes, job_rows, stage_rows
from itool.operations.run_objects import read_objects
from itool.stages import StageId

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

State = Literal["done", "running", "failed", "stopped", "unknown"]
Source = Literal["artifacts", "lock", "cluster"]
T = TypeVar("T")


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment. `controller` is who works on it; `serving` is None where the run wants no vLLM of its own and has none.

    `unread` is what could not be read: without its artifacts the Jobs alone speak, without its lock nobody knows who works on it.
    """

    run: str
    backend: str
    state: State
    controller: dict[str, Any] | None = None
    stages: Sequence[StageRow] = ()
    serving: Sequence[PodRow] | None = None
    controller_pods: Sequence[PodRow] = ()
    unread: Sequence[Source] = ()
    problem: str | None = None

    @property
    def done(self) -> int:
        """How many stages are done."""
        return sum(row.state == "done" for row in self.stages)


@dataclass
class StatusReader:
    """Reads the same run again and again. `cluster` is None for a run on this machine. Manifests are read once.

    `error` and `controller_comes` are of the last look.
    """

    config: RunConfig
    store: Store
    cluster: Cluster | None = None
    error: ItoolError | None = None
    controller_comes: bool = False
    _known: StoreListing | None = None

    def read(self) -> RunStatus:
        """The run as it stands. What could not be read is left out; `error` then says why, and the status names it.

        Cluster and store are asked side by side: where both hang, whoever waits does so once.
        """
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: _tried(self._objects))
            resolutions = _tried(self._resolutions)
            holder = None if isinstance(resolutions, ItoolError) else _tried(open_lease(self.store, self.config.run).holder)
            objects = asked.result()
        answers: dict[Source, object] = {"artifacts": resolutions, "lock": holder, "cluster": objects}
        errors = {source: answer for source, answer in answers.items() if isinstance(answer, ItoolError)}
        self.error = _joined(list(errors.values()))
        if isinstance(objects, ItoolError):
            objects = RunObjects(at=0.0)
        self.controller_comes = controller_comes(objects)
        problem = str(self.error) if self.error else None
        status = RunStatus(self.config.run, self.config.runtime.backend, "unknown", unread=tuple(errors), problem=problem)
        if isinstance(resolutions, ItoolError):
            return replace(status, stages=job_rows(objects))
        active = None if isinstance(holder, ItoolError) else holder is not None
        rows = stage_rows(self.config, resolutions, objects)
        vllm = component_rows("serving", objects)
        if self.cluster is None:
            in_turn = set(map(str, stages_in_turn(self.config, resolutions)))
            rows = [self._with_log(row, active=bool(active)) if row.stage in in_turn else row for row in rows]
        return replace(
            status,
            state=run_state(rows, active=active),
            controller=None if isinstance(holder, ItoolError) else holder,
            stages=rows,
            serving=vllm if vllm or self.config.has_managed_serving else None,
            controller_pods=component_rows("controller", objects),
        )

    def _objects(self) -> RunObjects:
        return read_objects(self.cluster, self.store, self.config) if self.cluster else RunObjects(at=0.0)

    def _resolutions(self) -> Mapping[StageId, Resolution]:
        self._known = observe(self.store, self.config, known=self._known)
        return resolve_observed(self.config, self._known)

    def _with_log(self, row: StageRow, *, active: bool) -> StageRow:
        """On this machine: a stage whose turn it is runs, with the progress of its log, or failed with its log's last word."""
        word = last_word(self.config, self.store, row.name, row.iteration)
        if word is None:
            return row
        if active:
            return replace(row, state="running", attempt=word.attempt, progress=word.progress)
        return replace(row, attempt=word.attempt, reason=f"{row.reason}; last attempt: {word.message}" if word.message else row.reason)


def run_state(rows: Sequence[StageRow], *, active: bool | None) -> State:
    """One word for a run; `active` is None when nobody knows. A Job may run on without a controller; the next one picks its result up."""
    states = {row.state for row in rows}
    if states == {"done"}:
        return "done"
    if active or "running" in states:
        return "running"
    if active is None:
        return "unknown"
    return "failed" if states & {"failed", "damaged"} else "stopped"


def _tried(ask: Callable[[], T]) -> T | ItoolError:
    try:
        return ask()
    except ItoolError as error:
        return error


def _joined(errors: Sequence[ItoolError]) -> ItoolError | None:
    """One error that names them all, of the first one's kind; None of none."""
    if len(errors) < 2:
        return errors[0] if errors else None
    return type(errors[0])("; and ".join(map(str, errors)))
