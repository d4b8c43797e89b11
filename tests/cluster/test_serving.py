"""vLLM in the cluster as the controller sees and steers it: pods as plain objects, a cluster in memory, a store in a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.store import FolderStore, delete_tree
from itool.cluster.decide_serving import Serve, ServingPod, StopServing
from itool.cluster.objects import Object
from itool.cluster.serving import KubernetesServing
from itool.cluster.serving_reader import serving_pod
from itool.cluster.wish import Proof, StoredArtifact, Wish, read_proof, read_wish, write_proof
from itool.config import RunConfig
from itool.errors import ArtifactError
from tests.cluster.in_memory_cluster import Killed, merged
from tests.cluster.serving_scenes import MODEL_CONFIG, store_adapter, store_model

RUN = "demo"
OWNER: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "itool-run-demo", "uid": "1-2"}}
TEMPLATE = "0123456789"
NOW = 1_000_000.0


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def vllm_pod(
    name: str = "demo-vllm-a", *, ready: bool = False, fetcher: dict[str, Any] | None = None, template: str = TEMPLATE, **status: Any
) -> dict[str, Any]:
    """A pod whose base model is being fetched since NOW - 50, unless told otherwise."""
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(NOW - 60)},
        {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": at(NOW - 60)},
    ]
    started = {"name": "fetch-model", "state": {"running": {"startedAt": at(NOW - 50)}}} if fetcher is None else fetcher
    labels = {"app.kubernetes.io/component": "serving", "itool/run": RUN, "itool/template": template}
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": at(NOW - 100)},
        "spec": {},
        "status": {"phase": "Running", "conditions": conditions, "initContainerStatuses": [started], **status},
    }


ADAPTER = StoredArtifact(prefix="demo/i0/warmup/key", digest="b" * 64)
WISH = Wish(model=StoredArtifact(prefix="demo/i0/prepare/key", digest="a" * 64), adapter=ADAPTER, generation=3, at=NOW - 40)
GOOD = Proof(generation=3, adapter="adapter-1", at=NOW)


def test_a_ready_pod_serves_when_it_has_proved_this_wish() -> None:
    assert serving_pod(vllm_pod(ready=True), TEMPLATE, WISH, GOOD) == ServingPod("demo-vllm-a", "serving")


@pytest.mark.parametrize("proof", [None, Proof(generation=2, adapter="adapter-0")], ids=["no proof", "proof of the last wish"])
def test_a_ready_pod_without_this_proof_is_starting_since_the_wish(proof: Proof | None) -> None:
    found = serving_pod(vllm_pod(ready=True), TEMPLATE, WISH, proof)
    assert found == ServingPod("demo-vllm-a", "starting", NOW - 40, "has not proved the adapter yet")


def test_a_pod_whose_vllm_restarts_is_starting_since_then_whatever_it_proved() -> None:
    fetched = {"terminated": {"exitCode": 0, "startedAt": at(NOW - 90)}}
    pod = vllm_pod(fetcher={"name": "fetch-model", "state": fetched, "ready": True})
    pod["status"]["conditions"][1]["lastTransitionTime"] = at(NOW - 7)
    pod["status"]["containerStatuses"] = [{"name": "vllm", "state": {"running": {}}, "ready": False}]
    assert serving_pod(pod, TEMPLATE, WISH, GOOD) == ServingPod("demo-vllm-a", "starting", NOW - 7, "not ready: vllm")


def test_a_pod_without_a_node_is_pending_since_it_was_made() -> None:
    pod = vllm_pod(fetcher={"name": "fetch-model", "state": {}}, phase="Pending")
    pod["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: 1 Insufficient nvidia.com/gpu."}
    ]
    found = serving_pod(pod, TEMPLATE, WISH, None)
    assert (found.phase, found.since) == ("pending", NOW - 100)
    assert found.reason == "unschedulable: 0/1 nodes: 1 Insufficient nvidia.com/gpu."


def test_an_image_that_cannot_be_pulled_is_pending_with_the_reason() -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    found = serving_pod(vllm_pod(fetcher={"name": "fetch-model", "state": waiting}, phase="Pending"), TEMPLATE, WISH, None)
    assert found == ServingPod("demo-vllm-a", "pending", NOW - 60, "ErrImagePull: no such image")
    later = serving_pod(vllm_pod(containerStatuses=[{"name": "vllm", "state": waiting, "ready": False}]), TEMPLATE, WISH, None)
    assert later == ServingPod("demo-vllm-a", "pending", NOW - 60, "ErrImagePull: no such image")


def test_a_vllm_that_crashes_is_starting() -> None:
    crashing = {"name": "vllm", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1}}}
    found = serving_pod(vllm_pod(containerStatuses=[crashing]), TEMPLATE, WISH, None)
    assert (found.phase, found.reason) == ("starting", "vllm is started again after exit code 1")


def test_a_fetcher_that_crashes_does_not_begin_the_pods_time_anew() -> None:
    early = WISH.model_copy(update={"at": NOW - 90})
    waiting = [{"name": "vllm", "state": {"waiting": {"reason": "PodInitializing"}}, "ready": False}]
    began = serving_pod(vllm_pod(containerStatuses=waiting), TEMPLATE, early, None)
    assert (began.phase, began.since) == ("starting", NOW - 50)
    words = "error: cannot use /models: No space left on device\n"
    ended = {"terminated": {"exitCode": 74, "message": words, "startedAt": at(NOW - 5)}}
    for state in ({"waiting": {"reason": "CrashLoopBackOff"}}, {"running": {"startedAt": at(NOW - 1)}}):
        crashed = {"name": "fetch-model", "state": state, "lastState": ended}
        found = serving_pod(vllm_pod(fetcher=crashed, phase="Pending"), TEMPLATE, early, None)
        assert (found.phase, found.since) == ("starting", NOW - 60)


def test_a_pod_that_leaves_or_has_an_older_template_is_stopping() -> None:
    leaving = vllm_pod(ready=True)
    leaving["metadata"]["deletionTimestamp"] = at(NOW)
    for pod in (leaving, vllm_pod(ready=True, template="9876543210")):
        assert serving_pod(pod, TEMPLATE, WISH, GOOD) == ServingPod("demo-vllm-a", "stopping")


def test_a_refused_adapter_and_a_base_model_that_was_altered_are_refusals() -> None:
    refusal = Proof(generation=3, problem="adapter_model.safetensors was altered", exit_code=65)
    found = serving_pod(vllm_pod(), TEMPLATE, WISH, refusal)
    assert found == ServingPod("demo-vllm-a", "refused", reason="adapter_model.safetensors was altered", exit_code=65)
    ended = {
        "terminated": {"exitCode": 65, "message": '{"event": "..."}\nerror: model.safetensors was altered\n', "startedAt": at(NOW - 5)}
    }
    crashed = {"name": "fetch-model", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended}
    found = serving_pod(vllm_pod(fetcher=crashed, phase="Pending"), TEMPLATE, WISH, None)
    assert (found.phase, found.exit_code, found.reason) == ("refused", 65, "model.safetensors was altered")


def test_a_refusal_of_the_last_wish_does_not_count() -> None:
    found = serving_pod(vllm_pod(), TEMPLATE, WISH, Proof(generation=2, problem="altered", exit_code=65))
    assert found.phase == "starting"


@dataclass
class MemoryCluster:
    """Deployments and Services by name; `calls` counts requests by verb."""

    namespace: str = "training"
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def get(self, resource: str, name: str) -> dict[str, Any] | None:
        self.calls.append(f"get {resource}")
        return copy.deepcopy(self.objects.get((resource, name)))

    def create(self, resource: str, body: dict[str, Any]) -> dict[str, Any] | None:
        self.calls.append(f"create {resource}")
        key = (resource, body["metadata"]["name"])
        if key in self.objects:
            return None
        self.objects[key] = copy.deepcopy(body)
        return copy.deepcopy(body)

    def patch(self, resource: str, name: str, change: dict[str, Any]) -> dict[str, Any] | None:
        self.calls.append(f"patch {resource}")
        if (resource, name) not in self.objects:
            return None
        self.objects[resource, name] = merged(self.objects[resource, name], change)
        return copy.deepcopy(self.objects[resource, name])


@dataclass
class Scene:
    """A cluster, a store, and as many controllers, one after the other, as a test wants."""

    store: FolderStore
    cluster: MemoryCluster
    serve: Serve
    pods: list[dict[str, Any]] = field(default_factory=list)
    now: float = NOW

    def controller(self, *, kubernetes: dict[str, Any] | None = None, **serving: Any) -> KubernetesServing:
        document = {
            "root": "s3://bucket/runs", "runtime": {"backend": "kubernetes"}, "policy": {"backend": "vllm"},
            "kubernetes": {"serving": serving, **(kubernetes or {})},
        }  # fmt: skip
        config = RunConfig.model_validate(document)

        def keep_service(_name: str, make: Callable[[RunConfig, Object], Object]) -> None:
            """The runner's, without a watch (test_services.py has it whole)."""
            made.cluster.create("services", make(config, made.owner()))

        made = KubernetesServing(
            config, self.store, self.cluster, lambda: self.pods, clock=lambda: self.now, owner=lambda: OWNER, keep_service=keep_service
        )
        return made

    @property
    def deployment(self) -> dict[str, Any]:
        return self.cluster.objects["deployments", "demo-vllm"]

    def pod(self, name: str, *, ready: bool = True) -> dict[str, Any]:
        return vllm_pod(name, ready=ready, template=self.deployment["metadata"]["labels"]["itool/template"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    store = FolderStore(tmp_path / "store")
    serve = Serve(store_model(store, tmp_path), store_adapter(store, tmp_path, "one"), "asked")
    return Scene(store, MemoryCluster(), serve)


def test_nothing_is_there_before_it_is_asked_for(scene: Scene) -> None:
    state = scene.controller().state()
    assert (state.wish, state.replicas, state.pods) == (None, 0, ())
    assert scene.cluster.objects == {}


def test_serving_writes_the_wish_and_makes_service_and_deployment(scene: Scene) -> None:
    made = scene.controller(replicas=2)
    made.serve(scene.serve)
    wish = read_wish(scene.store, RUN)
    assert wish is not None
    assert wish.asks(scene.serve.model, scene.serve.adapter)
    assert set(scene.cluster.objects) == {("deployments", "demo-vllm"), ("services", "demo-vllm")}
    command = scene.deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--max-model-len") + 1] == "256"  # the model's own limit, from its config.json
    state = made.state()
    assert (state.wish, state.replicas, state.current) == (wish, 2, True)
    assert scene.controller(replicas=2).state() == state  # so do a successor and `itoolctl status`


def test_an_altered_base_model_is_not_served(scene: Scene) -> None:
    [file] = Path(scene.store.root).rglob("model/config.json")
    file.write_bytes(file.read_bytes().replace(b"256", b"512"))
    with pytest.raises(ArtifactError, match=r"config\.json was altered: .* Remove it with `itoolctl artifacts rm demo/i0/prepare/"):
        scene.controller().serve(scene.serve)


def test_applied_again_after_any_step_it_ends_the_same(scene: Scene) -> None:
    """A controller that was killed after the wish, after the Service or after the Deployment: its successor applies the action again."""
    undisturbed = MemoryCluster()
    cluster, scene.cluster = scene.cluster, undisturbed
    scene.controller().serve(scene.serve)
    scene.cluster = cluster
    for verb in ("create services", "create deployments"):
        dying = scene.controller()
        dying.cluster = Dying(scene.cluster, verb)
        with pytest.raises(Killed):
            dying.serve(scene.serve)
        assert not scene.controller().state().replicas
    scene.controller().serve(scene.serve)
    scene.controller().serve(scene.serve)
    assert scene.cluster.objects == undisturbed.objects
    wish = read_wish(scene.store, RUN)
    assert wish is not None
    assert wish.generation == 1


class Dying(MemoryCluster):
    """Dies at a request."""

    def __init__(self, cluster: MemoryCluster, verb: str) -> None:
        super().__init__(objects=cluster.objects)
        self.verb = verb

    def create(self, resource: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if f"create {resource}" == self.verb:
            raise Killed
        return super().create(resource, body)


def test_another_adapter_changes_the_wish_and_no_pod(scene: Scene, tmp_path: Path) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    before = copy.deepcopy(scene.cluster.objects)
    made.serve(Serve(scene.serve.model, store_adapter(scene.store, tmp_path, "two"), "asked"))
    assert scene.cluster.objects == before
    wish = made.state().wish
    assert wish is not None
    assert wish.generation == 2


def test_another_base_model_or_setting_is_seen_and_changes_the_template(scene: Scene, tmp_path: Path) -> None:
    scene.controller(node_selector={"gpu": "h200"}).serve(scene.serve)
    made = scene.controller(arguments=["--seed", "1"])
    assert made.state().current is False
    made.serve(scene.serve)
    assert made.state().current is True
    spec = scene.deployment["spec"]["template"]["spec"]
    assert spec["containers"][0]["command"][-2:] == ["--seed", "1"]
    assert "nodeSelector" not in spec
    made.serve(Serve(store_model(scene.store, tmp_path, "other-base"), scene.serve.adapter, "asked"))
    assert scene.deployment["spec"]["template"] != spec
    assert made.state().current is True


def test_another_base_model_is_read_as_far_as_it_can(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    monkeypatch.setitem(MODEL_CONFIG, "max_position_embeddings", 128)
    made.serve(Serve(store_model(scene.store, tmp_path, "short-base"), scene.serve.adapter, "asked"))
    command = scene.deployment["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--max-model-len") + 1] == "128"


def test_a_changed_placement_or_annotation_replaces_the_old_one(scene: Scene) -> None:
    near = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}
    first = scene.controller(node_selector={"gpu": "a100"}, affinity={"podAffinity": near}, kubernetes={"annotations": {"team": "a"}})
    first.serve(scene.serve)
    scene.deployment["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"  # a default of the server's
    second = scene.controller(node_selector={"zone": "b"}, affinity={"podAntiAffinity": near}, kubernetes={"labels": {"cost": "1"}})
    assert second.state().current is False
    second.serve(scene.serve)
    assert second.state().current is True
    template = scene.deployment["spec"]["template"]
    assert (template["spec"]["nodeSelector"], template["spec"]["affinity"]) == ({"zone": "b"}, {"podAntiAffinity": near})
    assert template["metadata"]["annotations"] == {}
    assert template["metadata"]["labels"] == scene.deployment["metadata"]["labels"]
    scene.controller(node_selector={"zone": "b"}, affinity={"podAntiAffinity": near}).serve(scene.serve)
    assert "cost" not in scene.deployment["metadata"]["labels"]


def test_a_wish_for_a_model_that_was_removed_is_no_obstacle_to_another(scene: Scene, tmp_path: Path) -> None:
    scene.controller().serve(scene.serve)
    delete_tree(scene.store, scene.serve.model.prefix)
    successor = scene.controller()
    assert successor.state().current is False
    successor.serve(Serve(store_model(scene.store, tmp_path, "other-base"), scene.serve.adapter, "asked"))
    assert successor.state().current is True


def test_a_new_owner_owns_what_is_made_after_it(scene: Scene) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    scene.cluster.objects.clear()  # collected with the owner
    made.owner = lambda: {**OWNER, "metadata": {"name": "itool-run-demo", "uid": "3-4"}}
    made.serve(scene.serve)
    assert [item["metadata"]["ownerReferences"][0]["uid"] for item in scene.cluster.objects.values()] == ["3-4", "3-4"]


def test_stopping_scales_to_0_and_forgets_what_pods_have_proved(scene: Scene) -> None:
    made = scene.controller(replicas=2)
    made.serve(scene.serve)
    write_proof(scene.store, RUN, "demo-vllm-a", GOOD)
    made.stop(StopServing("enough"))
    assert scene.deployment["spec"]["replicas"] == 0
    assert made.state().replicas == 0
    assert read_proof(scene.store, RUN, "demo-vllm-a") is None
    made.serve(scene.serve)
    assert made.state().replicas == 2


def test_a_deployment_that_somebody_removed_or_scaled_is_noticed(scene: Scene) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    scene.deployment["spec"]["replicas"] = 5
    scene.now += 16
    assert made.state().replicas == 5
    del scene.cluster.objects["deployments", "demo-vllm"]
    scene.now += 16
    assert made.state().replicas == 0


def test_proofs_are_read_until_they_are_there_and_then_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    made.keep_service = lambda _name, _make: None
    scene.pods = [scene.pod("demo-vllm-a")]
    reads = count_reads(scene.store, monkeypatch)
    for _ in range(5):
        assert [pod.phase for pod in made.state().pods] == ["starting"]
    assert len(reads) == 1
    write_proof(scene.store, RUN, "demo-vllm-a", Proof(generation=1, adapter="adapter-1"))
    scene.now += 1
    assert [pod.phase for pod in made.state().pods] == ["serving"]
    reads.clear()
    scene.cluster.calls.clear()
    for _ in range(100):
        scene.now += 0.1
        assert [pod.phase for pod in made.state().pods] == ["serving"]
    assert reads == []
    assert scene.cluster.calls == []


def test_the_proof_of_a_new_wish_is_waited_for_and_the_standing_one_is_not_forgotten(scene: Scene, tmp_path: Path) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    scene.pods = [scene.pod("demo-vllm-a")]
    for generation, key in ((1, "one"), (2, "two")):
        wanted = Serve(scene.serve.model, store_adapter(scene.store, tmp_path, key), "asked")
        made.serve(wanted)
        scene.now += 1
        assert [pod.phase for pod in made.state().pods] == ["starting"]
        write_proof(scene.store, RUN, "demo-vllm-a", Proof(generation=generation, adapter=f"adapter-{generation}"))
        made.serve(wanted)  # with other replicas, say: its pods write no proof again
        scene.now += 1
        assert [pod.phase for pod in made.state().pods] == ["serving"]


def count_reads(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    read: Callable[[str], bytes] = store.read

    def counting(key: str) -> bytes:
        reads.append(key)
        return read(key)

    monkeypatch.setattr(store, "read", counting)
    return reads


def test_failed_pods_and_pods_of_stages_hold_nothing(scene: Scene) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    evicted = scene.pod("demo-vllm-b") | {"status": {"phase": "Failed", "reason": "Evicted"}}
    stage = scene.pod("demo-i1-score")
    stage["metadata"]["labels"]["app.kubernetes.io/component"] = "stage"
    scene.pods = [evicted, stage]
    assert made.state().pods == ()


def test_pods_that_fill_their_disk_again_and_again_are_told(scene: Scene) -> None:
    made = scene.controller()
    made.serve(scene.serve)
    words = 'Usage of EmptyDir volume "models" exceeds the limit "10Gi".'
    evicted = {"status": {"phase": "Failed", "reason": "Evicted", "message": words}}
    by_the_node = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}}
    scene.pods = [scene.pod("a") | evicted, scene.pod("b") | by_the_node, vllm_pod("c", template="of-less-scratch") | evicted]
    assert made.state().overfilled == ""
    scene.pods.append(scene.pod("d") | evicted)
    assert made.state().overfilled == f"Evicted: {words}"
    scene.deployment["spec"]["replicas"] = 2
    assert scene.controller().state().overfilled == ""


def test_why_no_pod_can_be_created_is_told(scene: Scene) -> None:
    scene.controller().serve(scene.serve)
    scene.deployment["status"] = {
        "conditions": [
            {"type": "Available", "status": "False", "lastTransitionTime": at(NOW - 30)},
            {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus", "lastTransitionTime": at(NOW - 20)},
        ]
    }
    state = scene.controller().state()
    assert (state.since, state.reason) == (NOW - 20, "no pod can be created: exceeded quota: gpus")
    scene.deployment["status"]["conditions"][1]["status"] = "False"
    state = scene.controller().state()
    assert (state.since, state.reason) == (NOW - 30, "")
    scene.deployment["status"]["conditions"][0]["status"] = "True"
    assert scene.controller().state().since is None
