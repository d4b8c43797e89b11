"""`helm install` to `helm uninstall` on a real cluster, in the order of an operator's day: each test builds on the one before it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from itool.cluster.pods import owner_object
from itool.config import ModelConfig, PolicyConfig, parse_config
from itool.demo import base_model_path
from itool.errors import DependencyError
from itool.policy.model_folder import read_model_folder
from itool.policy.server import LocalVllmServer, find_vllm_python
from tests.jobs.conftest import digests_in
from tests.policy.conftest import running
from tests.real_cluster.conftest import REASON_SECONDS, REPOSITORY, SMALL, Site, copy_stages, finish, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

RUN = "served"
IN_TURNS = "in-turns"
WARM = ("i0/prepare", "i0/warmup", "i0/evaluate")
"""What the runs that are compared with RUN begin with; the iteration after it is their own."""
SERVING = {"policy__backend": "vllm", "policy__startup_seconds": 600, "search__trees_in_flight": 1}
"""One tree at a time, so that a search lasts long enough to be disturbed."""
KINDS = "configmaps,services,deployments,jobs,pods,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
ELSEWHERE_PORT = 8080
REACH = "import socket, sys\nsocket.create_connection((sys.argv[1], int(sys.argv[2])), 4).close()"


@dataclass(frozen=True)
class Release:
    """A Helm release of the chart in the site's namespace, and what other runs had left there before it."""

    site: Site
    before: frozenset[str]
    name: str = "itool"

    def helm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """helm in the namespace."""
        command = ["helm", "--namespace", self.site.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def values(self, **changes: Any) -> str:
        """A values file of the run that the chart starts."""
        path = self.site.folder / "values.yaml"
        document = self.site.document(RUN, **SERVING, runtime__overlap_evaluation=True, **changes)
        del document["runtime"]["backend"], document["kubernetes"]["namespace"]  # the chart's own to say
        path.write_text(yaml.safe_dump({"run": document}))
        return str(path)

    def objects(self) -> set[str]:
        """What has come since, as `kind/name`."""
        return objects_of(self.site) - self.before

    def wait(self, revision: int, seconds: float = 1200) -> None:
        """Until the revision's controller has ended well."""
        name = f"{self.name}-controller-{revision}"

        def ended() -> bool:
            conditions = {
                c["type"] for job in self.site.get("jobs") if job["metadata"]["name"] == name for c in job["status"].get("conditions", [])
            }
            if "Failed" in conditions:
                pytest.fail(self.site.kubectl("logs", f"job/{name}", "--tail=40", check=False))
            return "Complete" in conditions

        try:
            wait_until(ended, f"{name} has finished", seconds, 2)
        except pytest.fail.Exception as late:
            pods = self.site.kubectl("get", "pods", "--output", "wide")
            raise AssertionError(f"{late}\n{pods}\n{self.site.kubectl('logs', f'job/{name}', '--tail=40', check=False)}") from None


@pytest.fixture(scope="module")
def release(site: Site) -> Iterator[Release]:
    """The release; whatever the tests leave of it is uninstalled."""
    found = Release(site, frozenset(objects_of(site)))
    yield found
    found.helm("uninstall", found.name, "--ignore-not-found", "--wait", check=False)


def test_an_unknown_value_is_refused_before_anything_is_created(release: Release) -> None:
    refused = release.helm(
        "install", release.name, str(REPOSITORY / "helm/itool"), "--values", release.values(), "--set", "run.dpo.bta=1", check=False
    )
    assert refused.returncode != 0
    assert "bta" in refused.stderr
    assert release.objects() == set()


def test_a_bucket_that_is_not_there_is_one_line_and_nothing_is_created(release: Release) -> None:
    name, wrong = "no-bucket", ("--set", "run.root=s3://no-such-bucket/x")
    refused = release.helm("install", name, str(REPOSITORY / "helm/itool"), "--values", release.values(), *wrong, check=False)
    release.helm("uninstall", name, "--ignore-not-found")  # Helm keeps a record of what has failed
    assert refused.returncode != 0
    said = f"{refused.stdout}\n{refused.stderr}"
    [line] = [line for line in said.splitlines() if "no-such-bucket" in line]
    assert "s3://no-such-bucket/x: bucket no-such-bucket does not exist at http" in line, said
    assert "Create it or correct root" in line
    wait_until(lambda: not release.objects(), "the check's own objects have gone", 60)


def test_an_installation_trains_an_iteration_although_its_controller_is_deleted(release: Release, request: pytest.FixtureRequest) -> None:
    laptops = owner_object(parse_config({"run": RUN, "root": release.site.store().root}))  # the run began there: it becomes the release's
    release.site.kubectl("create", "--filename", "-", given=json.dumps(laptops))
    release.helm("install", release.name, str(REPOSITORY / "helm/itool"), "--values", release.values())
    wait_until(lambda: release.site.get("jobs", f"itool/run={RUN},itool/stage=prepare"), "the first Job", 300)
    with no_controller(release, 1):
        wait_until(lambda: "i0/prepare" in digests_in(release.site.store(), RUN), "the first artifact", 300)
        assert not release.site.get("jobs", f"itool/run={RUN},itool/stage=warmup"), "the next stage began before the controller was deleted"
    wait_until(lambda: release.site.get("pods", f"itool/run={RUN},itool/stage=warmup"), "the warm-up's pod", 400)
    controllers = controller_pods(release.site)
    release.site.kubectl("delete", "pod", *(pod["metadata"]["name"] for pod in controllers), "--wait=false")
    undisturbed: dict[str, Any] = request.getfixturevalue("undisturbed")  # made here while the pods of the other are waited for
    release.wait(1)
    made = digests_in(release.site.store(), RUN)
    assert list(made) == ["i0/evaluate", "i0/prepare", "i0/warmup", "i1/dpo", "i1/evaluate", "i1/generate", "i1/score"]
    for stage in ("i0/prepare", "i0/warmup", "i1/score"):  # no sampling by vLLM in them: bit for bit
        assert made[stage] == undisturbed[stage]
    assert manifest_of(release.site, "i1/score")["started"] < manifest_of(release.site, "i0/evaluate")["ended"], "nothing overlapped"


def test_searching_was_shared_by_two_shards(release: Release) -> None:
    job = next(job for job in release.site.get("jobs", f"itool/run={RUN},itool/stage=generate"))
    assert job["spec"]["completions"] == 2
    assert job["status"]["completedIndexes"] == "0,1"
    manifest = manifest_of(release.site, "i1/generate")
    assert manifest["shards"] == 2
    assert manifest["counts"]["kept"] > 0


def test_a_laptop_with_the_same_policy_backend_learns_the_same(release: Release) -> None:
    try:
        find_vllm_python()
    except DependencyError as error:
        pytest.skip(str(error))
    copy_stages(release.site.store(), RUN, "laptop", WARM)
    with a_vllm_here(release.site) as url:
        config = release.site.config("laptop", runtime__backend="local", policy__url=url, **SERVING)
        release.site.itoolctl("iterate", "--config", str(config), timeout_seconds=1200)
    here, there = digests_in(release.site.store(), "laptop"), digests_in(release.site.store(), RUN)
    assert here["i1/dpo"] == there["i1/dpo"]
    assert metrics_of(release.site, "laptop") == metrics_of(release.site, RUN)


def test_one_gpu_that_vllm_and_the_stages_take_in_turns_gives_the_same(release: Release) -> None:
    site, run = release.site, IN_TURNS
    copy_stages(site.store(), RUN, run, WARM)
    wait_until(lambda: not gpu_pods(site, RUN), "the run before has given its GPU back", 120)
    with one_gpu(site):
        process = site.start("iterate", "--config", str(site.config(run, **SERVING, kubernetes__serving__gpu_sharing="timeshare")))
        turns: list[list[str]] = []
        while process.poll() is None:
            if (holders := gpu_pods(site, run)) and holders not in turns[-1:]:
                turns.append(holders)
            time.sleep(0.5)
    finish(process)
    assert turns == [["score"], ["serving"], ["dpo"], ["serving"]]
    here, there = digests_in(site.store(), run), digests_in(site.store(), RUN)
    assert here["i1/dpo"] == there["i1/dpo"]


def test_helm_test_passes(release: Release) -> None:
    done = release.helm("test", release.name, "--timeout", "5m")
    assert "Phase:          Succeeded" in done.stdout


def test_more_iterations_extend_the_run_although_vllm_is_killed(release: Release) -> None:
    before = digests_in(release.site.store(), RUN)
    release.helm("upgrade", release.name, str(REPOSITORY / "helm/itool"), "--values", release.values(iterations=2))

    def searching() -> list[str]:
        pods = release.site.get("pods", f"itool/run={RUN},itool/stage=generate,itool/iteration=2")
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    def underway() -> bool:
        return any('"progress"' in release.site.log(name) for name in searching())

    wait_until(underway, "a tree of the second search", 900, 0.2)
    [server] = [pod["metadata"]["name"] for pod in servers(release.site)]
    release.site.kubectl("delete", "pod", server, "--wait=false", "--grace-period=1")
    assert searching(), "the search was over before vLLM was killed"
    wait_until(lambda: start_of_another(release.site, server), "what the new vLLM waits for in status", REASON_SECONDS)
    with listening_elsewhere(release.site) as elsewhere:
        reach_checks(
            release.site, wait_until(lambda: address_of_another(release.site, server), "another vLLM that is ready", 300), elsewhere
        )
    release.wait(2)
    after = digests_in(release.site.store(), RUN)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"i2/score", "i2/generate", "i2/dpo", "i2/evaluate"}


def test_an_upgrade_to_another_run_is_refused(release: Release) -> None:
    chart = str(REPOSITORY / "helm/itool")
    refused = release.helm("upgrade", release.name, chart, "--values", release.values(), "--set", "run.run=another", check=False)
    assert f'run.run = "another", but release {release.name} is run "{RUN}", which would lose its controller; install' in refused.stderr


def test_a_finished_run_holds_no_gpu(release: Release) -> None:
    assert wait_until(lambda: not servers(release.site), "vLLM has gone", 90)


def test_uninstalling_leaves_nothing_but_the_artifacts(release: Release) -> None:
    release.helm("uninstall", release.name, "--wait")  # with it goes what the run's owner object owns, which the release did not create
    wait_until(lambda: not release.objects(), "nothing is left", 120)
    assert "i2/evaluate" in digests_in(release.site.store(), RUN)


@contextmanager
def a_vllm_here(site: Site) -> Iterator[str]:
    """A vLLM on this machine for both stages that ask one: each would start its own, which takes most of a minute."""
    model = ModelConfig(**SMALL["model"])
    folder = read_model_folder(base_model_path(), context_tokens=model.context_tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        server = LocalVllmServer(folder, site.folder / "vllm.log", model=model, policy=PolicyConfig(startup_seconds=600))
    with running(server) as url:
        yield url


def objects_of(site: Site) -> set[str]:
    """Every object of iTool's in the namespace but those of the run that no release started, as `kind/name`."""
    return set(site.kubectl("get", KINDS, "--selector", f"app.kubernetes.io/name=itool,itool/run!={IN_TURNS}", "--output", "name").split())


def servers(site: Site) -> list[dict[str, Any]]:
    """The run's vLLM pods."""
    return site.get("pods", f"itool/run={RUN},app.kubernetes.io/component=serving")


def controller_pods(site: Site) -> list[dict[str, Any]]:
    """The pods of the release's controller that have not ended."""
    found = site.get("pods", "app.kubernetes.io/component=controller")
    return [pod for pod in found if pod["status"]["phase"] in ("Pending", "Running")]


@contextmanager
def no_controller(release: Release, revision: int) -> Iterator[None]:
    """The controller's pod is deleted, and its Job gives it no successor for a while."""
    job = f"{release.name}-controller-{revision}"
    release.site.kubectl("patch", "job", job, "--patch", '{"spec": {"suspend": true}}')
    try:
        wait_until(lambda: not controller_pods(release.site), "the controller's pod has gone", 120)
        yield
    finally:
        release.site.kubectl("patch", "job", job, "--patch", '{"spec": {"suspend": false}}')


@contextmanager
def one_gpu(site: Site) -> Iterator[None]:
    """The namespace may hold a single GPU: a second pod that asks for one is refused, as on a machine that has no other."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "one-gpu"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "1"}},
    }
    site.kubectl("apply", "--filename", "-", given=json.dumps(quota))
    try:
        yield
    finally:
        site.kubectl("delete", "resourcequota", "one-gpu")


def gpu_pods(site: Site, run: str) -> list[str]:
    """What holds a GPU in the run: the stage's name, or `serving`, of every pod that asks for one and has not ended."""
    holders = []
    for pod in site.get("pods", f"itool/run={run}"):
        requests = [c.get("resources", {}).get("requests", {}) for c in pod["spec"]["containers"]]
        if pod["status"]["phase"] not in ("Succeeded", "Failed") and any("nvidia.com/gpu" in request for request in requests):
            labels = pod["metadata"]["labels"]
            holders.append(labels.get("itool/stage", labels["app.kubernetes.io/component"]))
    return holders


def start_of_another(site: Site, gone: str) -> str | None:
    """Why a vLLM pod other than `gone` does not serve yet, as status tells it."""
    config = site.config(RUN, **SERVING, runtime__overlap_evaluation=True, iterations=2)
    rows = site.status(config)["serving"]
    return next((row["reason"] for row in rows if row["pod"] != gone and row["state"] in ("pending", "starting")), None)


def address_of_another(site: Site, gone: str) -> str | None:
    """Where a vLLM pod other than `gone` is ready to serve."""
    for pod in servers(site):
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions", []))
        if ready and pod["metadata"]["name"] != gone:
            return str(pod["status"]["podIP"])
    return None


@contextmanager
def listening_elsewhere(site: Site) -> Iterator[str]:
    """The address of a pod in another namespace that accepts connections at ELSEWHERE_PORT."""
    namespace = ("--namespace", f"{site.namespace}-elsewhere")
    site.kubectl("create", "namespace", namespace[1])
    try:
        pod = small_pod(site, "listener", {"app": "listener"}, ["python", "-m", "http.server", str(ELSEWHERE_PORT)])
        site.kubectl("create", *namespace, "--filename", "-", given=json.dumps(pod))
        site.kubectl("wait", *namespace, "--for=condition=Ready", "--timeout=60s", "pod/listener")
        yield site.kubectl("get", *namespace, "pod", "listener", "--output", "jsonpath={.status.podIP}")
    finally:
        site.kubectl("delete", "namespace", namespace[1], "--wait=false")


def reach_checks(site: Site, serving: str, elsewhere: str) -> None:
    """What the network policies let through to and past a vLLM at the address `serving`, and what not. All at once: it will not stay.

    `elsewhere` is the address of a pod in another namespace, which listens.
    """
    api = json.loads(site.kubectl("get", "endpoints", "kubernetes", "--namespace", "default", "--output", "json"))["subsets"][0]
    labels = {"app.kubernetes.io/name": "itool", "app.kubernetes.io/instance": "itool", "itool/run": RUN}
    stage, stranger = {**labels, "app.kubernetes.io/component": "stage"}, {"app": "stranger"}
    pods = [
        probe(site, "stage-to-vllm", stage, serving, 8000),
        probe(site, "stage-to-api", stage, api["addresses"][0]["ip"], api["ports"][0]["port"]),
        probe(site, "stage-to-service", stage, "kubernetes.default.svc.cluster.local", 443),
        probe(site, "stage-to-elsewhere", stage, elsewhere, ELSEWHERE_PORT),
        probe(site, "stranger-to-elsewhere", stranger, elsewhere, ELSEWHERE_PORT),
        probe(site, "stranger-to-vllm", stranger, serving, 8000),
        probe(site, "stranger-to-keeper", stranger, serving, 8001),
    ]
    probes = [pod["metadata"]["name"] for pod in pods]
    site.kubectl("apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))

    def phases() -> dict[str, str] | None:
        found = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in site.get("pods") if pod["metadata"]["name"] in probes}
        return found if set(found.values()) <= {"Succeeded", "Failed"} else None

    ended = wait_until(phases, "the probes have ended", 90)
    said = {name: site.log(name) for name in probes}
    site.kubectl("delete", "pods", *probes, "--wait=false")
    let_through = {"stage-to-vllm", "stranger-to-elsewhere"}
    assert {name for name, phase in ended.items() if phase == "Succeeded"} == let_through, said
    denied = ("timed out", "refused", "unreachable")
    assert all(any(word in said[name] for word in denied) for name in probes if name not in let_through), said


def probe(site: Site, name: str, labels: dict[str, str], address: str, port: int) -> dict[str, Any]:
    """A pod that succeeds when it can open a connection."""
    command = ["sh", "-c", 'sleep 12; exec python -c "$0" "$@"', REACH, address, str(port)]  # policies need a moment
    return small_pod(site, name, labels, command)


def small_pod(site: Site, name: str, labels: dict[str, str], command: list[str]) -> dict[str, Any]:
    """A pod that runs a command."""
    container = {
        "name": "try",
        "image": f"{site.repository}/controller:{site.tag}",
        "command": command,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def manifest_of(site: Site, stage: str, run: str = RUN) -> dict[str, Any]:
    """The manifest of a stage's artifact."""
    store = site.store()
    found = [key for key in store.list(f"{run}/{stage}") if key.endswith("/manifest.json") and key.count("/") == 4]
    document: dict[str, Any] = json.loads(store.read(found[0]))
    return document


def metrics_of(site: Site, run: str) -> list[dict[str, Any]]:
    """The evaluations of a run's report."""
    done = site.itoolctl("report", run, "--root", site.store().root, "--output", "json")
    evaluations: list[dict[str, Any]] = json.loads(done.stdout)["evaluations"]
    return evaluations
