"""Tells Kubernetes what becomes of a run: an Event on the run's owner object for every stage that starts or ends.

`kubectl describe configmap itool-run-<run>` and whatever collects a cluster's events then show the run's story without our command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from itool.cluster.client import Cluster
from itool.cluster.decide import Action, Fail, Finish, StartStage
from itool.cluster.decide_serving import Serve, StopServing
from itool.cluster.objects import Object
from itool.cluster.pod_states import told_outcome
from itool.cluster.progress import Progress, Watcher
from itool.cluster.runner import Attempt, Task
from itool.errors import ItoolError
from itool.logs import get_logger

log = get_logger(__name__)

COMPONENT = "itool-controller"
LONGEST_MESSAGE = 1000


@dataclass
class RunEvents:
    """A watcher that writes Events and passes everything on to another one. An Event that cannot be written is not worth a run."""

    cluster: Cluster
    owner: Callable[[], Object]
    inner: Watcher
    clock: Callable[[], float] = time.time
    _owner: Object | None = None

    def decided(self, action: Action) -> None:
        """A start, the run's end, or a change of what vLLM serves; waits are no events."""
        self.inner.decided(action)
        match action:
            case StartStage():
                self._write("StageStarted", f"{action.task.stage}, attempt {action.attempt}: {action.reason}")
            case Fail():
                self._write("RunFailed", f"{action.stage}: exit code {action.exit_code}: {action.message}", kind="Warning")
            case Finish():
                self._write("RunFinished", action.reason)
            case Serve():
                self._write("ServingWanted", action.reason)
            case StopServing():
                self._write("ServingStopped", action.reason)

    def ended(self, task: Task, attempt: Attempt) -> None:
        """The end of an attempt."""
        self.inner.ended(task, attempt)
        if attempt.phase == "succeeded":
            self._write("StageSucceeded", f"{task.stage}, attempt {attempt.number}")
        else:
            text = f"{task.stage}, attempt {attempt.number}: {told_outcome(attempt.exit_code, attempt.reason)}"
            self._write("StageFailed", text, kind="Warning")

    def progressed(self, task: Task, progress: Progress) -> None:
        """No event."""
        self.inner.progressed(task, progress)

    def stopping(self) -> None:
        """The controller goes; Jobs go on."""
        self.inner.stopping()
        self._write("ControllerStopping", "Jobs that run go on")

    def _write(self, reason: str, message: str, *, kind: Literal["Normal", "Warning"] = "Normal") -> None:
        try:
            self._owner = self._owner or self.owner()
            self.cluster.create("events", event(self._owner, reason, message, kind=kind, now=self.clock()))
        except ItoolError as error:
            log.warning("event not written", reason=reason, error=str(error))


def event(about: Object, reason: str, message: str, *, kind: Literal["Normal", "Warning"], now: float) -> Object:
    """An Event about an object, as kubectl shows it."""
    metadata, moment = about["metadata"], datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}."},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata.get("namespace"),
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message[:LONGEST_MESSAGE],
        "source": {"component": COMPONENT},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
