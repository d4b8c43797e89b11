"""What pods write is kept, whatever becomes of the pod, the connection or the store."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from itool.cluster import pod_logs
from itool.cluster.api_answers import ClusterDown
from itool.cluster.pod_logs import PodLogs, log_name
from itool.cluster.progress import Progress, last_progress
from itool.cluster.timed_lines import comparable
from itool.errors import ConfigError
from tests.fakes.memory_store import MemoryStore
from tests.fakes.waiting import wait_until

JOB = {"metadata": {"name": "job"}, "spec": {"parallelism": 1}}
MANY = {"metadata": {"name": "job"}, "spec": {"parallelism": 100}}
KEY = "demo/logs/i1-score-2.log"
FIRST, SECOND = b"2026-01-01T00:00:00.1Z one\n", b"2026-01-01T00:00:00.12Z two\n"


def pod(name: str = "p", phase: str = "Running", code: int | None = None, **metadata: Any) -> dict[str, Any]:
    labels = {"itool/iteration": "1", "itool/stage": "score", "itool/attempt": "2"}
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": "error: bad"}} if code is not None else {"running": {}}
    status = {"phase": phase, "containerStatuses": [{"name": "stage", "state": state}]}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, **metadata}, "spec": {"nodeName": "n1"}, "status": status}


class Logs:
    """A cluster that only has logs: what each call gives, one after the other; the last one for ever."""

    def __init__(self, *answers: Any, listed: list[dict[str, Any]] | None = None) -> None:
        self.answers = list(answers)
        self.listed = listed or []
        self.asked: list[tuple[str, str]] = []
        self.lists = 0

    def pod_log(self, name: str, container: str, *, since: str = "", **_: Any) -> Iterator[bytes]:
        self.asked.append((name, since))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        for chunk in answer:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def list(self, resource: str, labels: str = "", fields: str = "", *, trim: Any) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return [trim(one) for one in self.listed], "1"


def made(*answers: Any, listed: list[dict[str, Any]] | None = None) -> tuple[PodLogs, MemoryStore, Logs]:
    store, cluster = MemoryStore(), Logs(*answers, listed=listed)
    return PodLogs(cluster, store, "demo"), store, cluster


def wait_until_kept(logs: PodLogs, job: dict[str, Any]) -> None:
    wait_until(lambda: logs.are_kept(job))


def test_a_running_pods_log_can_be_read_while_it_grows_and_is_kept_at_its_end() -> None:
    logs, store, _ = made([FIRST], [FIRST, SECOND])
    logs.look(JOB, [pod()])
    wait_until(lambda: logs.text("job") == b"one\ntwo\n")
    assert logs.text("job", 4) == b"two\n"
    assert KEY not in store.objects
    logs.look(JOB, [pod(phase="Failed", code=65)])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY] == b"== pod p on n1, exit code 65: bad\none\ntwo\n"
    logs.close(0.0)


@pytest.mark.parametrize(("zone", "hour"), [("Z", "00"), ("+08:00", "08"), ("-05:00", "19")])
def test_lines_that_come_again_after_a_cut_are_written_once(zone: str, hour: str) -> None:
    """The API is asked in UTC, wherever the node's clock stands: one east of it would else be asked for what it will write."""
    day = "2025-12-31" if hour == "19" else "2026-01-01"
    first, second = (f"{day}T{hour}:00:00.{fraction}{zone} {word}\n".encode() for fraction, word in (("1", "one"), ("12", "two")))
    logs, store, cluster = made([first, second[:-2], ClusterDown("cut")], [first, second])
    logs.look(JOB, [pod()])
    logs.look(JOB, [])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY].splitlines()[1:] == [b"one", b"two"]
    assert {since for _, since in cluster.asked} == {"", "2026-01-01T00:00:00Z"}
    logs.close(0.0)


def test_lines_that_share_a_time_are_all_written_also_after_a_cut() -> None:
    """CRI-O gives one time to all lines that it reads at once, as those of a traceback."""
    time_of = b"2026-01-01T00:00:00.5Z "
    lines = [time_of + word + b"\n" for word in (b"Traceback", b"  File", b"error: bad")]
    logs, store, _ = made([lines[0], lines[1], ClusterDown("cut")], lines)
    logs.look(JOB, [pod()])
    logs.look(JOB, [])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY].splitlines()[1:] == [b"Traceback", b"  File", b"error: bad"]
    logs.close(0.0)


@pytest.mark.parametrize("half", [b"2026-01-01T00:00:00.12Z tw", b"2026-01-01T00:00:00.1Z tw"])
def test_half_a_line_of_a_pod_that_is_gone_is_kept(half: bytes) -> None:
    """Also where it shares the time of the line before, as under CRI-O."""
    logs, store, _ = made([FIRST, half, ClusterDown("cut")], [])
    logs.look(JOB, [pod()])
    wait_until(lambda: logs.text("job") == b"one\n")
    logs.look(JOB, [])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY].splitlines()[1:] == [b"one", b"tw"]
    logs.close(0.0)


def test_a_line_that_breaks_off_while_its_pod_ends_is_read_again_whole() -> None:
    def answer() -> Iterator[bytes]:
        yield FIRST
        yield SECOND[:-2]
        logs.look(JOB, [pod(phase="Failed", code=65)])  # and the server hangs up

    logs, store, _ = made(answer(), [FIRST, SECOND])
    logs.look(JOB, [pod()])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY].endswith(b"\none\ntwo\n")
    logs.close(0.0)


def test_a_line_without_a_time_does_not_hide_those_after_it() -> None:
    logs, store, _ = made([FIRST, b"unable to retrieve container logs\n", ClusterDown("cut")], [FIRST, SECOND])
    logs.look(JOB, [pod()])
    logs.look(JOB, [])
    wait_until_kept(logs, JOB)
    assert store.objects[KEY].splitlines()[1:] == [b"one", b"two"]
    logs.close(0.0)


def test_a_pod_that_is_tried_again_is_appended_once_even_by_another_controller() -> None:
    failed, again = pod("first", "Failed", 1), pod("second", "Succeeded", 0)
    logs, store, _ = made([FIRST], listed=[failed, again])
    wait_until_kept(logs, JOB)
    text = store.objects[KEY]
    assert [line.split(b" on ")[0] for line in text.splitlines()] == [b"== pod first", b"one", b"== pod second", b"one"]
    other = PodLogs(Logs([FIRST], listed=[failed, again]), store, "demo")
    wait_until_kept(other, JOB)
    assert store.objects[KEY] == text
    for opened in (logs, other):
        opened.close(0.0)


def test_a_log_that_is_read_sooner_still_stands_behind_the_one_of_the_pod_before() -> None:
    answers: list[bytes] = []

    def answer(name: str) -> bytes:
        if name == "first" and not answers:
            raise ClusterDown("no route to host")
        return FIRST

    store = MemoryStore()
    logs = PodLogs(LogsByPod(answer, [pod("first", "Failed", 1), pod("second", "Succeeded", 0)]), store, "demo")
    assert not logs.are_kept(JOB)
    wait_until(lambda: logs._jobs["job"].logs["uid-second"].complete)
    time.sleep(5 * pod_logs.PAUSE_SECONDS)
    answers.append(FIRST)
    wait_until_kept(logs, JOB)
    assert [line.split(b" on ")[0] for line in store.objects[KEY].splitlines()[::2]] == [b"== pod first", b"== pod second"]
    logs.close(0.0)


def test_the_progress_of_a_training_over_nodes_is_that_of_its_first_pod_whatever_the_others_write() -> None:
    written = {"a": b"", "b": b"".join(b"2026-01-01T00:00:%02dZ a warning of every rank\n" % second for second in range(40))}
    logs = PodLogs(LogsByPod(written.__getitem__, []), MemoryStore(), "demo")
    nodes = [pod("a"), pod("b")]
    for index, one in enumerate(nodes):
        one["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    logs.look({**JOB, "spec": {"parallelism": 2}}, nodes)
    wait_until(lambda: logs._jobs["job"].logs["uid-b"].size() > 0)
    seen = 0
    for done in (1, 2, 3):
        written["a"] += b'2026-01-01T00:00:0%dZ {"event": "progress", "done": %d, "total": 3}\n' % (done, done)
        wait_until(lambda: logs.text("job").count(b"progress") == done)  # noqa: B023 - asked within the loop
        text = logs.text("job", seen)
        assert last_progress(text) == Progress(done, 3, "")
        seen += len(text)
    logs.close(0.0)


@pytest.mark.parametrize("done", [b"1" * 400, b"[" * 9000, b"null", b'"x"'])
def test_a_line_that_only_looks_like_progress_is_none(done: bytes) -> None:
    assert last_progress(
        b'{"event": "progress", "done": 1, "total": 3}\n{"event": "progress", "total": 3, "done": ' + done + b"}\n"
    ) == Progress(1, 3, "")


def test_of_many_pods_only_those_that_end_are_read() -> None:
    logs, store, cluster = made([FIRST])
    running, other = pod("a"), pod("b")
    for one, index in ((running, "0"), (other, "7")):
        one["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
    logs.look(MANY, [running, other])
    assert cluster.asked == []
    logs.look(MANY, [running])
    wait_until(lambda: "demo/logs/i1-score-7-2.log" in store.objects)
    assert {name for name, _ in cluster.asked} == {"b"}
    assert logs.text("job") == b""
    logs.close(0.0)


def test_a_pod_that_is_being_deleted_is_read_to_its_end() -> None:
    logs, _, cluster = made([FIRST])
    logs.look(MANY, [pod(deletionTimestamp="2026-01-01T00:00:00Z")])
    wait_until(lambda: len(cluster.asked) >= 2)
    assert not logs.are_kept(MANY)
    logs.look(MANY, [])
    wait_until_kept(logs, MANY)
    logs.close(0.0)


def test_what_a_removed_jobs_pod_has_written_is_kept() -> None:
    logs, store, cluster = made([FIRST], [])
    logs.look(JOB, [pod()])
    wait_until(lambda: logs.text("job") == b"one\n")

    def is_forgotten() -> bool:
        logs.lose(set())
        return not logs._jobs

    wait_until(is_forgotten)
    assert store.objects[KEY].endswith(b"\none\n")
    asked = len(cluster.asked)
    time.sleep(0.05)
    assert len(cluster.asked) == asked
    logs.close(0.0)


def test_a_store_that_is_down_delays_the_log() -> None:
    logs, store, _ = made([FIRST])
    store.down = True
    logs.look(JOB, [pod(phase="Failed", code=1)])
    time.sleep(0.05)
    assert not logs.are_kept(JOB)
    store.down = False
    wait_until_kept(logs, JOB)
    logs.close(0.0)


def test_a_refusal_gives_a_log_up() -> None:
    logs, _, cluster = made([ConfigError("not allowed to get pods/log")])
    with capture_logs() as said:
        logs.look(JOB, [pod(phase="Failed", code=1)])
        wait_until(lambda: bool(said))
    assert [(line["event"], line["error"]) for line in said] == [("log cannot be kept", "not allowed to get pods/log")]
    time.sleep(5 * pod_logs.PAUSE_SECONDS)
    assert len(cluster.asked) == 1
    assert not logs.are_kept(JOB)
    begun = time.monotonic()
    logs.close(60.0)
    assert time.monotonic() - begun < 30.0


def test_a_pod_that_left_nothing_leaves_no_file() -> None:
    logs, store, _ = made([])
    logs.look(JOB, [pod(phase="Pending")])
    logs.look(JOB, [])
    wait_until_kept(logs, JOB)
    assert store.objects == {}
    logs.close(0.0)


def test_no_reader_holds_the_logs_of_a_job_that_is_forgotten() -> None:
    logs, _, _ = made([FIRST])
    logs.look(JOB, [pod(phase="Failed", code=1)])
    wait_until_kept(logs, JOB)
    found = weakref.ref(logs._jobs["job"])
    logs.forget("job")
    wait_until(lambda: found() is None)
    logs.close(0.0)


def shard_pods(count: int) -> list[dict[str, Any]]:
    pods = [pod(f"p{index}", "Succeeded", 0) for index in range(count)]
    for index, one in enumerate(pods):
        one["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return pods


class LogsByPod(Logs):
    """Logs whose answer depends on the pod: `answer(name)` may wait, or raise."""

    def __init__(self, answer: Callable[[str], bytes], listed: list[dict[str, Any]]) -> None:
        super().__init__([], listed=listed)
        self.answer = answer

    def pod_log(self, name: str, container: str, *, since: str = "", **_: Any) -> Iterator[bytes]:
        self.asked.append((name, since))
        yield self.answer(name)


def given_when(released: threading.Event) -> Callable[[str], bytes]:
    def answer(_name: str) -> bytes:
        assert released.wait(60)
        return FIRST

    return answer


def test_of_thousands_of_pods_only_what_is_needed_is_held() -> None:
    released = threading.Event()
    over = pod(phase="Succeeded", code=0, managedFields=[{"manager": "kubelet"}])
    logs = PodLogs(LogsByPod(given_when(released), [over]), MemoryStore(), "demo")
    assert not logs.are_kept(JOB)
    (reading,) = logs._jobs["job"].logs.values()
    assert "managedFields" not in reading.latest["metadata"]
    released.set()
    wait_until_kept(logs, JOB)
    logs.close(0.0)


def test_a_job_of_many_pods_that_are_over_opens_few_files_and_threads() -> None:
    released = threading.Event()
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    store, cluster = MemoryStore(), LogsByPod(given_when(released), shard_pods(300))
    logs = PodLogs(cluster, store, "demo")
    assert not logs.are_kept(MANY)
    wait_until(lambda: len(cluster.asked) >= pod_logs.READERS)
    assert len(list(Path("/proc/self/fd").iterdir())) - files < pod_logs.READERS
    assert threading.active_count() - threads <= pod_logs.READERS
    assert len(cluster.asked) == pod_logs.READERS
    released.set()
    wait_until_kept(logs, MANY)
    assert len(store.objects) == 300
    assert cluster.lists == 1
    logs.close(0.0)


def test_a_controller_that_stops_asks_for_no_further_log() -> None:
    released = threading.Event()
    cluster = LogsByPod(given_when(released), shard_pods(100))
    logs = PodLogs(cluster, MemoryStore(), "demo")
    logs.are_kept(MANY)
    wait_until(lambda: len(cluster.asked) >= pod_logs.READERS)
    logs.close(0.0)
    released.set()
    for reader in logs._readers:
        reader.join(60)
    assert len(cluster.asked) == pod_logs.READERS


def test_pods_whose_node_is_lost_do_not_hold_up_the_logs_of_others() -> None:
    lost = {f"p{index}" for index in range(pod_logs.READERS)}

    def answer(name: str) -> bytes:
        if name in lost:
            raise ClusterDown("no route to host")
        return FIRST

    store = MemoryStore()
    logs = PodLogs(LogsByPod(answer, shard_pods(pod_logs.READERS + 5)), store, "demo")
    wait_until(lambda: logs.are_kept(MANY) or len(store.objects) >= 5)
    lost.clear()
    wait_until_kept(logs, MANY)
    logs.close(0.0)


def test_names_and_times() -> None:
    assert str(log_name(pod())) == "i1-score-2.log"
    assert comparable("2026-01-01T00:00:00.12Z") < comparable("2026-01-01T00:00:00.123Z") < comparable("2026-01-01T00:00:01Z")
    assert comparable("2026-01-01T05:45:00.123456789+05:45") == "2026-01-01T00:00:00.123456789"
    assert comparable("2025-10-26T02:59:59+02:00") < comparable("2025-10-26T02:00:00+01:00")  # the clocks are put back
