"""The logs of a stage in a cluster, pod by pod: from the store where a pod's log is kept (`pod_logs.py`), else from the pod itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from itool.artifacts.store import Store
from itool.cluster.api_answers import ClusterDown
from itool.cluster.job_facts import is_over
from itool.cluster.log_names import LogName, log_key
from itool.cluster.manifests import STAGE_CONTAINER
from itool.cluster.objects import ATTEMPT_LABEL, COMPONENT_LABEL, ITERATION_LABEL, RUN_LABEL, STAGE_LABEL, Object
from itool.cluster.pod_logs import HEADING
from itool.cluster.pod_states import pod_state
from itool.cluster.timed_lines import TimedLines
from itool.config import RunConfig
from itool.operations.attempt_logs import AttemptKey, AttemptLog, Wanted, stored_logs

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class PodText:
    """What one pod has written: `stored`, or to be read from the pod while it is there."""

    key: AttemptKey
    pod: str
    stored: bytes | None = None


@dataclass
class ClusterLogs:
    """The logs that are asked for, each pod's once however often one looks."""

    config: RunConfig
    store: Store
    cluster: Cluster
    wanted: Wanted
    sleep: Callable[[float], None] = time.sleep
    _given: set[str] = field(default_factory=set)
    _files: dict[LogName, tuple[int, list[PodText]]] = field(default_factory=dict)

    def new_texts(self) -> list[PodText]:
        """Texts of pods that have started since the last look, by shard and then oldest first."""
        pods = self._pods()
        files = {log.key: log for log in stored_logs(self.config, self.store) if log.name.stage == self.wanted.stage}
        texts = []
        for key in self.wanted.choose([*files, *(text.key for text in pods)]):
            stored = self._stored(files[key]) if key in files else []
            kept = {text.pod for text in stored}
            texts += [*stored, *(text for text in pods if text.key == key and text.pod not in kept)]
        new = [text for text in texts if text.pod not in self._given]
        self._given |= {text.pod for text in new}
        return new

    def read(self, text: PodText, *, follow: bool = False) -> Iterator[bytes]:
        """A pod's text, with what its node has to say about it; with `follow` until the pod ends."""
        if text.stored is not None:
            yield text.stored
        elif follow:
            yield from self._follow(text.pod)
        else:
            yield from self.cluster.pod_log(text.pod, STAGE_CONTAINER)

    def has_open_jobs(self) -> bool:
        """Whether a stage of the run still runs, whoever looks after it."""
        jobs, _ = self.cluster.list("jobs", f"{RUN_LABEL}={self.config.run},{COMPONENT_LABEL}=stage")
        return any(not is_over(job) for job in jobs)

    def _follow(self, pod: str) -> Iterator[bytes]:
        """A pod's text until it ends, over every break of the connection, from where it broke."""
        lines, over = TimedLines(), False
        while True:
            with contextlib.suppress(ClusterDown):
                for chunk in self.cluster.pod_log(pod, STAGE_CONTAINER, follow=True, since=lines.begin(), timestamps=True):
                    yield lines.take(chunk)
            if over:
                yield lines.end()
                return
            over = self._has_ended(pod)  # what it wrote meanwhile is read once more
            if not over:
                self.sleep(LOOK_AGAIN_SECONDS)

    def _has_ended(self, pod: str) -> bool:
        found, _ = self.cluster.list("pods", fields=f"metadata.name={pod}")
        return not found or pod_state(found[0]).phase in ("succeeded", "failed")

    def _pods(self) -> list[PodText]:
        """The stage's pods that have written something, oldest first."""
        pods, _ = self.cluster.list("pods", f"{RUN_LABEL}={self.config.run},{STAGE_LABEL}={self.wanted.stage}")
        started = [(state.created_at, pod, state) for pod in pods if (state := pod_state(pod)).phase != "pending"]
        return [PodText(_key(pod, state.shard), state.name) for _, pod, state in sorted(started, key=lambda item: item[0])]

    def _stored(self, log: AttemptLog) -> list[PodText]:
        """A kept file, cut at its headings; read again only when it has grown."""
        size = self.store.size(log_key(self.config.run, log.name)) or 0
        if self._files.get(log.name, (-1, []))[0] != size:
            data = log.read(self.store, self.config.run)
            starts = [(match.start(), match["pod"].decode()) for match in HEADING.finditer(data)] or [(0, str(log.name))]
            ends = [start for start, _ in starts[1:]] + [len(data)]
            texts = [PodText(log.key, pod, data[start:end]) for (start, pod), end in zip(starts, ends, strict=True)]
            self._files[log.name] = (size, texts)
        return self._files[log.name][1]


def _key(pod: Object, shard: int | None) -> AttemptKey:
    labels = pod["metadata"]["labels"]
    return int(labels[ITERATION_LABEL]), shard or 0, int(labels[ATTEMPT_LABEL])
