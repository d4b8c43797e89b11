"""The whole loop with vLLM beside it: no stage meets the wrong adapter or a GPU that is taken, wherever the controller is killed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itool.artifacts.resolve import resolve
from itool.artifacts.store import FolderStore, Store
from itool.cluster.controller import Controller, StageFailed
from itool.cluster.decide_serving import Serve, ServingPod, ServingState, StopServing
from itool.cluster.leases import FolderLease
from itool.cluster.runner import Task
from itool.cluster.wish import StoredArtifact, read_wish, write_wish
from itool.config import RunConfig
from itool.errors import DependencyError
from itool.stages import asks_policy, computes_on_gpu, inputs_of, stage_ids
from tests.cluster.in_memory_cluster import Killed
from tests.cluster.in_memory_runner import InMemoryRunner
from tests.cluster.test_controller import MEMORY, Clock


def configured(gpu_sharing: str) -> RunConfig:
    document = {
        "iterations": 2, "root": "s3://bucket/runs", "runtime": {"backend": "kubernetes"}, "policy": {"backend": "vllm"},
        "kubernetes": {"serving": {"gpu_sharing": gpu_sharing, "replicas": 2, "gpus": 1}},
    }  # fmt: skip
    return RunConfig.model_validate(document)


@dataclass
class Servers:
    """The cluster's side of vLLM, which outlives every controller: a pod proves a new wish at the second look, and goes at the second."""

    store: Store
    run: str
    replicas: int = 0
    proved: dict[str, tuple[int, int]] = field(default_factory=dict)
    leaving: int = 0
    down_after: int | None = None

    def state(self) -> ServingState:
        if self.down_after is not None:
            self.down_after -= 1
            if self.down_after < 0:
                self.down_after = None
                raise DependencyError("the cluster does not answer")
        wish = read_wish(self.store, self.run)
        generation = wish.generation if wish else 0
        for name, (known, looks) in self.proved.items():
            self.proved[name] = (known, looks - 1) if known == generation else (generation, 2)
        self.leaving = max(0, self.leaving - 1)
        pods = [ServingPod(name, "serving" if looks <= 0 else "starting") for name, (_, looks) in self.proved.items()]
        return ServingState(wish, self.replicas, (*pods, *(ServingPod(f"old-{i}", "stopping") for i in range(self.leaving))))

    def serve(self, action: Serve) -> None:
        write_wish(self.store, self.run, action.model, action.adapter)
        self.replicas = 2
        self.proved |= {name: (0, 2) for name in ("a", "b") if name not in self.proved}

    def stop(self, action: StopServing) -> None:
        self.replicas, self.leaving, self.proved = 0, len(self.proved), {}


@dataclass
class CarefulRunner(InMemoryRunner):
    """Checks what a stage meets when it starts."""

    servers: Servers | None = None

    def start(self, task: Task, attempt: int) -> None:
        servers, stage = self.servers, task.stage
        assert servers is not None
        if asks_policy(self.config, stage.name):
            wanted = resolve(self.store, self.config)[inputs_of(self.config, stage)["adapter"]]
            assert wanted.manifest is not None
            wish = read_wish(self.store, self.config.run)
            assert wish is not None
            assert wish.adapter == StoredArtifact(prefix=str(wanted.prefix), digest=wanted.manifest.digest)
            assert [looks <= 0 for _, looks in servers.proved.values()] == [True, True]
        elif computes_on_gpu(self.config, stage.name) and self.config.kubernetes.serving.gpu_sharing == "timeshare":
            assert (servers.replicas, servers.leaving, servers.proved) == (0, 0, {})
        super().start(task, attempt)


def controller(folder: Path, config: RunConfig, servers: Servers, **runner_settings: object) -> Controller:
    store, clock = FolderStore(folder), Clock()
    runner = CarefulRunner(store, config, servers=servers, **runner_settings)
    made = Controller(config, store, runner, FolderLease(folder / "lock"), clock=clock, awake=clock, sleep=clock.sleep)
    made.serving = servers
    return made


@pytest.mark.parametrize("gpu_sharing", ["exclusive", "timeshare"])
def test_every_stage_meets_its_adapter_and_in_the_end_nothing_serves(tmp_path: Path, gpu_sharing: str) -> None:
    config = configured(gpu_sharing)
    servers = Servers(FolderStore(tmp_path), config.run)
    made = controller(tmp_path, config, servers)
    assert all(found.done for found in made.run().values())
    assert isinstance(made.runner, CarefulRunner)
    assert [stage for stage, _, _ in made.runner.started] == stage_ids(config)
    assert servers.replicas == 0
    wish = read_wish(servers.store, config.run)
    assert wish is not None
    assert wish.generation == 3  # adapters 0, 1 and 2, each wished for once


@pytest.mark.slow
@settings(max_examples=10)
@given(
    gpu_sharing=st.sampled_from(["exclusive", "timeshare"]),
    deaths=st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 40)), max_size=5),
)
def test_killed_anywhere_and_restarted_no_stage_meets_another_adapter(gpu_sharing: str, deaths: list[tuple[int, int | None]]) -> None:
    config = configured(gpu_sharing)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        servers = Servers(FolderStore(Path(folder)), config.run)
        for death, outage in deaths:
            servers.down_after = outage
            try:
                controller(Path(folder), config, servers, die_after=death).run()
            except Killed:
                continue
        resolutions = controller(Path(folder), config, servers).run()
        assert all(found.done for found in resolutions.values())
        assert servers.replicas == 0


def test_a_run_that_fails_takes_vllm_down(tmp_path: Path) -> None:
    config = configured("exclusive")
    servers = Servers(FolderStore(tmp_path), config.run)
    with pytest.raises(StageFailed):
        controller(tmp_path, config, servers, failures={"generate": [65]}).run()
    assert servers.replicas == 0
