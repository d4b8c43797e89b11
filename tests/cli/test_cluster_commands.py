"""The operators' commands for a run in a cluster: what they show, what they stop, and what they refuse before anything is created."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from itool.artifacts import s3
from itool.cli import status
from itool.cluster import client
from itool.cluster.api_answers import ClusterDown
from itool.cluster.controller import StageFailed, store_config
from itool.cluster.job_facts import verdict_on
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.leases import LeaseHeld, StoreLease
from itool.cluster.session import iterate
from itool.cluster.wish import StoredArtifact, write_wish
from itool.config import RunConfig
from itool.errors import DependencyError
from itool.operations.run_status import StatusReader
from tests.cli.cluster_scene import Scene

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def shown(capsys: Capture) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_status_shows_pods_and_reasons_without_a_controller(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["warmup"] = ["unschedulable"]
    scene.work(12)
    assert scene.itoolctl("status", "-o", "json") == 0
    document = shown(capsys)
    rows = {row["stage"]: row for row in document["stages"]}
    assert (document["state"], document["controller"], document["done"], document["total"]) == ("stopped", None, 1, 8)
    assert (rows["i0/prepare"]["state"], rows["i0/prepare"]["reason"]) == ("done", "")
    assert (rows["i0/warmup"]["state"], rows["i0/warmup"]["attempt"]) == ("pending", 1)
    assert rows["i0/warmup"]["reason"] == "unschedulable: 0/1 nodes: too few GPUs"
    assert rows["i0/warmup"]["pod"].startswith("demo-i0-warmup-")
    assert rows["i1/dpo"]["state"] == "waiting"


def test_status_says_why_a_failed_pod_has_no_successor(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["warmup"] = [137, "no pod"]
    scene.work(14)
    assert scene.itoolctl("status", "--output", "json") == 0
    rows = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert (rows["i0/warmup"]["state"], rows["i0/warmup"]["reason"]) == (
        "pending",
        "no pod can be created: pods are forbidden: exceeded quota",
    )


def test_status_says_why_a_training_over_nodes_lacks_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    scene = Scene(tmp_path, monkeypatch, kubernetes={"namespace": "here", "stages": {"warmup": {"nodes": 2}}})
    scene.cluster.script["warmup"] = ["hangs", "no pod"]
    scene.work(12)
    assert scene.itoolctl("status", "--output", "json") == 0
    rows = {row["stage"]: row for row in shown(capsys)["stages"]}
    assert (rows["i0/warmup"]["state"], rows["i0/warmup"]["reason"]) == (
        "running",
        "no pod can be created: pods are forbidden: exceeded quota",
    )


def test_status_is_a_table_with_the_line_that_sums_it_up(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["generate"] = ["hangs"] * 3
    scene.work(40)
    StoreLease(scene.store, "demo", identity={"pid": 7, "host": "there"}).acquire()
    assert scene.itoolctl("status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "state", "time", "attempt", "pod", "age", "progress", "reason"]  # no node: not in memory
    assert any(line.startswith("i1/generate  running") and "0/3 shards" in line for line in lines)
    assert [line.split()[:3] for line in lines if line.startswith("  shard")] == [["shard", str(shard), "running"] for shard in range(3)]
    assert lines[-1] == "run demo: running, 4 of 8 stages done; process 7 on there works on it"


def test_status_is_watched_until_the_run_is_done(scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pod, slept = scene.hanging_pod("warmup"), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        scene.end(pod)
        scene.work(100)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    assert scene.itoolctl("status", "--watch") == 0
    looks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run demo")]
    assert looks == [f"run demo: {state}; nothing works on it" for state in ("running, 1 of 8 stages done", "done, 8 of 8 stages done")]
    assert slept == [status.WATCH_SECONDS]


def test_status_folds_what_is_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    scene = Scene(tmp_path, monkeypatch, iterations=9, search={"shards": 1})
    scene.work(34)
    assert scene.itoolctl("status") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("i")]
    first, last = ["i0/prepare", "i0/warmup", "i0/evaluate"], ["i4/score", "i4/generate", "i4/dpo", "i4/evaluate"]
    assert [line[0] for line in lines] == [*first, "i1", *last, "i5"]
    assert lines[3] == ["i1", "..", "i3", "done", "12", "stages"]
    assert lines[-1] == ["i5", "..", "i9", "waiting", "21", "stages"]


def test_status_names_what_is_damaged_though_the_job_that_made_it_ended_well(scene: Scene, capsys: Capture) -> None:
    scene.work(100)
    lost = next(key for key in scene.store.list("demo/i0/prepare") if not key.endswith("manifest.json"))
    scene.store.delete(lost)
    assert scene.itoolctl("status", "-o", "json") == 0
    row = shown(capsys)["stages"][0]
    assert row["state"] == "damaged"
    assert row["reason"].startswith(f"{lost} is missing; remove it with `itoolctl artifacts rm demo/i0/prepare/")


def test_status_gives_every_look_at_the_store_a_person_s_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, float]] = []

    def open_s3(_root: str, _config: Any, **bounds: float) -> Any:
        opened.append(bounds)
        return scene.store

    monkeypatch.setattr(s3, "S3Store", open_s3)
    scene.store.write("demo/config.yaml", scene.config.as_yaml().encode())
    assert scene.itoolctl_without_file("status", "--root", "s3://bucket/runs") == 0
    assert opened == [{"attempts": 2, "read_seconds": 5.0}] * 3  # which runs there are, the configuration, the artifacts


def test_status_without_the_store_shows_the_jobs_and_ends_with_69(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["prepare"] = ["hangs"]
    scene.work(4)
    scene.store.down = True
    assert scene.itoolctl("status", "-o", "json") == 69
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [(row["stage"], row["state"]) for row in document["stages"]] == [("i0/prepare", "running")]
    assert document["state"] == "unknown"
    assert captured.err == "itoolctl: S3 at http://s3 does not answer after 4 attempts\n"
    assert scene.itoolctl("status") == 69
    assert capsys.readouterr().out.endswith("\nrun demo: only its Jobs can be seen\n")


def test_status_without_the_file_names_all_that_does_not_answer(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["prepare"] = ["hangs"]
    scene.work(4)
    scene.store.down = True
    in_a_cluster = ["status", "demo", "--root", "s3://bucket/runs", "--backend", "kubernetes"]
    assert scene.itoolctl_without_file(*in_a_cluster) == 69
    captured = capsys.readouterr()
    assert "i0/prepare" in captured.out
    assert captured.err == "itoolctl: S3 at http://s3 does not answer after 4 attempts\n"
    scene.cluster.down = True
    assert scene.itoolctl_without_file(*in_a_cluster) == 69
    assert capsys.readouterr().err == "itoolctl: S3 at http://s3 does not answer after 4 attempts; and the API server is down\n"
    assert scene.itoolctl_without_file(*in_a_cluster[:-2]) == 69  # where it runs stands in S3
    assert capsys.readouterr().err == "itoolctl: S3 at http://s3 does not answer after 4 attempts\n"


def test_status_without_the_file_knows_the_run_s_settings_once_the_store_answers(
    scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_config(scene.store, scene.config)
    scene.work(12)
    scene.store.down = True

    def open_reader(settings: RunConfig) -> StatusReader:
        reader = open_before(settings)
        scene.store.down = False
        return reader

    open_before = status.open_reader
    monkeypatch.setattr(status, "open_reader", open_reader)
    assert scene.itoolctl_without_file("status", "demo", "--root", "s3://bucket/runs", "--backend", "kubernetes", "-o", "json") == 0
    assert shown(capsys)["total"] == 8


def test_status_without_the_cluster_shows_the_store_and_ends_with_69(scene: Scene, capsys: Capture) -> None:
    scene.work(100)
    scene.cluster.down = True
    assert scene.itoolctl("status") == 69
    captured = capsys.readouterr()
    assert captured.out.endswith("run demo: done, 8 of 8 stages done; nothing works on it\n")
    assert captured.err == "itoolctl: the API server is down\n"


def test_logs_come_from_the_pods_and_then_from_the_store(scene: Scene, capsys: Capture) -> None:
    scene.work(100)
    assert scene.itoolctl("logs", "generate", "--shard", "1") == 0
    text = capsys.readouterr().out
    assert text.count("started\n") == 1
    scene.cluster.objects["pods"].clear()
    assert scene.itoolctl("logs", "generate", "--shard", "1") == 0
    kept = capsys.readouterr().out
    assert kept.startswith("== pod demo-i1-generate-")
    assert kept.endswith("done\n")
    assert scene.itoolctl("logs", "generate", "-o", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["stage"], line["iteration"], line["shard"], line["attempt"]) for line in lines} == {
        ("generate", 1, n, 1) for n in range(3)
    }


def test_logs_are_followed_until_the_pod_ends_each_line_once_whatever_becomes_of_the_connection(
    scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer begins where the node has begun another file, as it does when a log grows long."""
    pod, asked = scene.hanging_pod("warmup"), []
    one, two, three = (f"2026-01-01T00:00:0{second}.5Z {word}\n".encode() for second, word in enumerate(("one", "two", "three"), start=1))

    def pod_log(name: str, _container: str, *, follow: bool, since: str, timestamps: bool) -> Iterator[bytes]:
        asked.append((name, follow, since, timestamps))
        if len(asked) == 1:
            yield from (one, two[:-2])
            raise ClusterDown("the connection is gone")
        if len(asked) == 2:
            yield from (two[:5], two[5:])
            raise ClusterDown("the connection is gone again, and the pod ends")
        scene.end(pod)
        yield from (two, three)

    monkeypatch.setattr(scene.cluster, "pod_log", pod_log)
    for module in ("cli.logs", "operations.live_logs"):
        monkeypatch.setattr(f"itool.{module}.LOOK_AGAIN_SECONDS", 0.0)
    assert scene.itoolctl("logs", "warmup", "--follow") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    times = ["", "2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z"]
    assert asked == [(pod, True, since, True) for since in times]


def test_logs_of_a_stage_that_never_ran_say_so(scene: Scene, capsys: Capture) -> None:
    assert scene.itoolctl("logs", "dpo") == 65
    assert "run demo has no log of dpo" in capsys.readouterr().err


def test_cancel_suspends_the_controller_ends_the_jobs_and_says_so_once(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["warmup"] = ["hangs"]
    scene.work(12)
    labels = {"itool/run": "demo", "app.kubernetes.io/component": "controller"}
    scene.cluster.objects["jobs"]["chart"] = {"metadata": {"name": "chart", "labels": labels}, "spec": {}, "status": {}}
    assert scene.itoolctl("cancel", "-o", "json") == 0
    assert shown(capsys) == {"run": "demo", "stopped": True}
    jobs = scene.cluster.objects["jobs"]
    assert jobs["chart"]["spec"]["suspend"] is True
    [warmup] = [job for name, job in jobs.items() if "warmup" in name]
    assert verdict_on(warmup) == (75, "cancelled")
    assert scene.itoolctl("cancel") == 0
    assert capsys.readouterr().err == "Nothing works on run demo.\n"


def test_cancel_keeps_the_lease_while_stages_save_their_checkpoints(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.hanging_pod("warmup")
    renewed: list[int | None] = []
    monkeypatch.setattr(StoreLease, "renew", lambda lease: renewed.append(lease._generation))
    assert scene.itoolctl("cancel") == 0
    assert renewed
    assert None not in renewed


def test_cancel_and_status_find_a_vllm_that_the_settings_want_no_more(scene: Scene, capsys: Capture) -> None:
    scene.leave_vllm()
    assert scene.itoolctl("status", "-o", "json") == 0
    assert [row["pod"] for row in shown(capsys)["serving"]] == ["demo-vllm-a"]
    assert scene.itoolctl("cancel", "-o", "json") == 0
    assert shown(capsys) == {"run": "demo", "stopped": True}
    assert scene.cluster.objects["deployments"]["demo-vllm"]["spec"]["replicas"] == 0
    assert scene.itoolctl("cancel") == 0
    assert capsys.readouterr().err == "Nothing works on run demo.\n"


def test_a_controller_stops_a_vllm_that_the_settings_want_no_more(scene: Scene) -> None:
    scene.leave_vllm()
    scene.cluster.script["prepare"] = [65]
    assert scene.itoolctl("iterate", "--n", "1") == 65
    assert scene.cluster.objects["deployments"]["demo-vllm"]["spec"]["replicas"] == 0


def test_a_controller_that_fails_stores_its_logs_and_stops_watching(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, close = [], KubernetesRunner.close
    monkeypatch.setattr(KubernetesRunner, "close", lambda runner: closed.append(close(runner)))
    scene.cluster.script["prepare"] = [65]
    assert scene.itoolctl("iterate", "--n", "1") == 65
    assert closed == [None]


def test_a_run_that_has_ended_is_free_and_its_stored_settings_name_its_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, kubernetes={})
    assert all(found.done for found in iterate(scene.config).values())
    assert yaml.safe_load(scene.store.read("demo/config.yaml"))["kubernetes"]["namespace"] == scene.cluster.namespace
    StoreLease(scene.store, "demo", identity={"pid": 7, "host": "there"}).acquire()


def finished_with_vllm(scene: Scene) -> None:
    """Every artifact is there, and vLLM runs: the controller died, or was interrupted when it was to go on for longer."""
    scene.work(100)
    scene.leave_vllm()
    asked = StoredArtifact(prefix="demo/i0/prepare/key", digest="0" * 64)
    write_wish(scene.store, "demo", asked, asked)


def replicas(scene: Scene) -> int:
    return int(scene.cluster.objects["deployments"]["demo-vllm"]["spec"]["replicas"])


def test_a_vllm_that_a_finished_run_has_left_is_stopped(scene: Scene) -> None:
    finished_with_vllm(scene)
    jobs = list(scene.cluster.created_jobs)
    assert all(found.done for found in iterate(scene.config).values())
    assert replicas(scene) == 0
    assert scene.cluster.created_jobs == jobs


def test_a_vllm_that_is_left_while_somebody_holds_the_run_is_his(scene: Scene) -> None:
    finished_with_vllm(scene)
    StoreLease(scene.store, "demo", identity={"pid": 7, "host": "there"}).acquire()
    with pytest.raises(LeaseHeld):
        iterate(scene.config)
    assert replicas(scene) == 1


def test_a_finished_run_without_vllm_asks_no_cluster_and_one_with_it_none_that_is_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.work(100)
    calls = scene.cluster.calls
    iterate(scene.config)
    assert scene.cluster.calls == calls
    finished_with_vllm(scene)
    scene.cluster.down = True
    assert all(found.done for found in iterate(scene.config).values())
    monkeypatch.setattr(client, "in_cluster", lambda: True)
    with pytest.raises(DependencyError, match="the API server is down"):  # the pod is started again
        iterate(scene.config)


def test_runs_lists_state_iterations_and_who_works(scene: Scene, capsys: Capture) -> None:
    scene.work(100)
    scene.store.write("demo/config.yaml", scene.config.as_yaml().encode())
    assert scene.itoolctl_without_file("runs", "--root", "s3://bucket/runs", "-o", "json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["run"], row["state"], row["iterations_done"], row["backend"], row["controller"]) == ("demo", "done", 1, "kubernetes", None)


def test_runs_asks_the_cluster_about_a_run_that_nobody_works_on(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["prepare"] = [65]
    with pytest.raises(StageFailed):
        scene.work(100)
    scene.store.write("demo/config.yaml", scene.config.as_yaml().encode())
    listing = ("runs", "--root", "s3://bucket/runs", "-o", "json")
    assert scene.itoolctl("status", "-o", "json") == 0
    assert shown(capsys)["state"] == "failed"
    assert scene.itoolctl_without_file(*listing) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["state"], row["problem"]) == ("failed", None)
    scene.cluster.down = True
    assert scene.itoolctl_without_file(*listing) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["state"], row["problem"]) == ("stopped", "the API server is down")
