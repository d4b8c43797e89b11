"""What a person reads in `itoolctl plan`: which stages are done, which are not, and exactly why."""

from __future__ import annotations

import copy
import gc
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import ANY

import pytest

from itool.artifacts.catalogue import list_artifacts, remove_artifact
from itool.artifacts.local_files import file_fingerprints
from itool.artifacts.manifest import FileEntry, Manifest, artifact_prefix, manifest_key
from itool.artifacts.resolve import Resolution, StoreListing, forget_done, observe, resolve, resolve_observed, resolve_one, shard_prefix
from itool.artifacts.store import FolderStore
from itool.config import RunConfig, parse_config
from itool.names import StageName
from itool.stages import STAGES, StageId, artifact_key, flatten, inputs_of, settings_of, stage_ids
from tests.fakes.counted_store import CountedStore

WHEN = datetime(2026, 11, 21, tzinfo=UTC)
PREPARE, WARMUP = StageId(0, "prepare"), StageId(0, "warmup")


def configured(**changes: object) -> RunConfig:
    return parse_config({"iterations": 1} | changes)


class World:
    """An observed store, filled by pretending that stages ran."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.manifests: dict[str, Manifest] = {}
        self.files: dict[str, str | None] = {}
        self.clock = WHEN

    @property
    def observed(self) -> StoreListing:
        return StoreListing(self.sizes, self.manifests, files=self.files)

    def resolve(self, config: RunConfig) -> dict[StageId, Resolution]:
        return resolve_observed(config, self.observed)

    def finish(self, config: RunConfig, stage: StageId, content: str = "") -> None:
        """Pretend that a stage ran; its content depends on its name only, unless told otherwise."""
        inputs = {role: self.resolve(config)[source].artifact for role, source in inputs_of(config, stage).items()}
        refs = {role: artifact for role, artifact in inputs.items() if artifact is not None}
        files = self.files if stage == PREPARE else {}
        settings = settings_of(config, stage.name) | {name: found for name, found in files.items() if found}
        key = artifact_key(stage, settings, {role: ref.digest for role, ref in refs.items()})
        self.clock += timedelta(seconds=1)
        manifest = Manifest(
            run=config.run,
            iteration=stage.iteration,
            stage=stage.name,
            stage_version=STAGES[stage.name].version,
            key=key,
            inputs=refs,
            settings=settings,
            files={"a.jsonl": FileEntry(size=1, sha256=(f"{stage}{content}".encode().hex() + "0" * 64)[:64])},
            started=self.clock,
            ended=self.clock,
        )
        prefix = artifact_prefix(config.run, stage, key)
        self.manifests[prefix] = manifest
        self.sizes |= {manifest_key(prefix): 100, manifest.file_key(prefix, "a.jsonl"): 1}

    def finish_all(self, config: RunConfig) -> None:
        for stage in stage_ids(config):
            if not self.resolve(config)[stage].done:
                self.finish(config, stage)


def states(resolutions: dict[StageId, Resolution]) -> dict[str, str]:
    return {str(stage): resolution.state for stage, resolution in resolutions.items() if resolution.state != "done"}


def test_nothing_is_done_in_an_empty_store() -> None:
    resolutions = World().resolve(configured())
    assert resolutions[PREPARE].state == "missing"
    assert resolutions[PREPARE].reason == "has not run yet"
    assert resolutions[WARMUP].state == "waiting"
    assert resolutions[WARMUP].reason == "input data (i0/prepare) is not there yet"
    assert resolutions[WARMUP].key is None


def test_a_finished_run_is_done_and_stays_so_when_other_settings_change() -> None:
    world = World()
    world.finish_all(configured())
    assert states(world.resolve(configured())) == {}
    assert states(world.resolve(configured(runtime={"threads": 1}))) == {}


def test_a_changed_setting_reruns_only_what_reads_it_and_says_so() -> None:
    world = World()
    world.finish_all(configured())
    resolutions = world.resolve(configured(dpo={"beta": 0.3}))
    assert states(resolutions) == {"i1/dpo": "stale", "i1/evaluate": "waiting", "i1/report": "waiting"}
    assert resolutions[StageId(1, "dpo")].reason == "dpo.beta 0.1 -> 0.3"
    assert resolutions[StageId(1, "evaluate")].reason == "input adapter (i1/dpo) may change"


OWN_DATA = {"source": "xlam", "path": "mine.jsonl"}


def test_a_corrected_data_file_reruns_what_its_content_changes_and_no_more() -> None:
    config, world = configured(data=OWN_DATA), World()
    world.files = {"data.path (content)": "0001", "model.path (content)": None}
    world.finish_all(config)
    assert states(world.resolve(config)) == {}
    world.files = {"data.path (content)": "0002", "model.path (content)": None}
    prepare = world.resolve(config)[PREPARE]
    assert (prepare.state, prepare.reason) == ("stale", "data.path mine.jsonl has changed since")
    world.finish(config, PREPARE)
    assert states(world.resolve(config)) == {}, "the same bytes came out: nothing else runs"
    world.files["data.path (content)"] = "0001"
    assert world.resolve(config)[PREPARE].done


def test_a_file_that_is_not_here_counts_as_the_one_that_was_read_last() -> None:
    config, world = configured(data=OWN_DATA), World()
    for content in ("0001", "0002"):
        world.files = {"data.path (content)": content}
        world.finish(config, PREPARE)
    newest = world.resolve(config)[PREPARE].key
    world.files = {"data.path (content)": None}
    assert (world.resolve(config)[PREPARE].state, world.resolve(config)[PREPARE].key) == ("done", newest)
    other = world.resolve(configured(data=OWN_DATA | {"path": "other.jsonl"}))[PREPARE]
    assert other.reason == "data.path mine.jsonl -> other.jsonl"


def test_the_report_of_a_run_whose_data_file_changes_meanwhile_is_still_about_that_run(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    config, report = configured(data=OWN_DATA | {"path": str(data)}), StageId(1, "report")
    world, found = World(), {}
    for content in ("one", "two"):
        data.write_text(content)
        world.files = file_fingerprints(config)
        world.finish(config, PREPARE, content)
        for stage in stage_ids(config)[1:-1]:
            world.finish(config, stage, content)
        found[content] = world.resolve(config)
    data.write_text("three")
    store = written(world, tmp_path / "store")
    assert resolve(store, config)[report].state == "waiting"
    for content in ("one", "two"):
        told = resolve_one(store, config, report, str(found[content][report].key))
        assert told is not None
        assert told[report].inputs == found[content][report].inputs


def test_another_path_is_one_change_and_an_artifact_without_fingerprints_is_not_trusted() -> None:
    world = World()
    world.finish_all(configured(data=OWN_DATA))
    world.files = {"data.path (content)": "0001"}
    reason = world.resolve(configured(data=OWN_DATA))[PREPARE].reason
    assert reason == "data.path mine.jsonl may have changed since: nobody looked into it then"
    world.finish_all(configured(data=OWN_DATA))
    world.files = {"data.path (content)": "0002"}
    assert world.resolve(configured(data=OWN_DATA | {"path": "other.jsonl"}))[PREPARE].reason == "data.path mine.jsonl -> other.jsonl"


CONTROL = {"method": "sft_continued"}


@pytest.mark.parametrize(
    ("before", "change", "reread"),
    [
        ({}, "data.max_dropped_fraction=0.9", []),
        ({}, "warmup.checkpoint_seconds=9", []),
        ({}, "dpo.checkpoint_seconds=9", []),
        ({}, "search.best_of=9", []),
        ({"method": "best_of_n"}, "search.best_of=9", ["generate"]),
        ({"method": "best_of_n"}, "search.simulations=9", []),
        ({"method": "best_of_n"}, "search.inject_ground_truth=false", ["generate"]),
        ({"method": "rejection_sampling"}, "search.inject_ground_truth=false", []),
        ({"method": "rejection_sampling"}, "search.min_gap=0.2", []),
        ({"method": "rejection_sampling"}, "dpo.loss=ipo", []),
        ({}, "select.samples=9", []),
        ({}, "policy.backend=vllm", ["generate", "evaluate"]),
        ({}, "search.temperature=0.5", ["generate"]),
        ({"select": {"by": "pass_rate"}}, "select.samples=9", ["score"]),
        ({"select": {"by": "pass_rate"}}, "search.temperature=0.5", ["score", "generate"]),
        ({}, "select.batch_tokens=9", ["score"]),
        (CONTROL, "dpo.beta=0.5", []),
        (CONTROL, "dpo.reference=warmup", []),
        (CONTROL, "dpo.updates=9", ["dpo"]),
        ({}, "dpo.reference=warmup", ["dpo"]),
        ({}, "evaluate.pass_k=[1]", []),
        ({"evaluate": {"pass_examples": 2}}, "evaluate.pass_k=[1]", ["evaluate"]),
        ({"evaluate": {"pass_examples": 2}}, "search.temperature=0.5", ["generate", "evaluate"]),
    ],
)
def test_a_setting_reruns_only_the_stages_that_read_it_under_the_other_settings(
    before: dict[str, object], change: str, reread: list[str]
) -> None:
    config, changed = configured(**before), parse_config({"iterations": 1} | copy.deepcopy(before), [change])
    assert settings_of(config, "report") == settings_of(changed, "report")
    keys = [
        [(stage.name, artifact_key(stage, settings_of(c, stage.name), dict.fromkeys(inputs_of(c, stage), ""))) for stage in stage_ids(c)]
        for c in (config, changed)
    ]
    assert [name for name in STAGES if any(old != new and old[0] == name for old, new in zip(*keys, strict=True))] == reread


def test_another_selection_is_one_change_and_its_own_settings_are_none() -> None:
    world = World()
    world.finish_all(configured())
    world.finish_all(configured(select={"by": "pass_rate", "samples": 4}))
    score = StageId(1, "score")
    assert world.resolve(configured(select={"by": "pass_rate", "samples": 6}))[score].reason == "select.samples 4 -> 6"
    world = World()
    world.finish_all(configured())
    assert world.resolve(configured(select={"by": "pass_rate", "samples": 4}))[score].reason == "select.by perplexity -> pass_rate"


def test_leaving_a_setting_unread_keeps_the_key_of_what_had_its_default() -> None:
    config = configured()
    everything = flatten(config.model_dump(mode="json"))
    settings = {path: value for path, value in everything.items() if path == "seed" or path.startswith(("model.", "warmup."))}
    assert "warmup.checkpoint_seconds" in settings
    assert artifact_key(WARMUP, settings, {}) == artifact_key(WARMUP, settings_of(config, "warmup"), {})


def test_changing_a_setting_back_is_a_hit_again() -> None:
    world = World()
    world.finish_all(configured())
    world.finish_all(configured(dpo={"beta": 0.3}))
    assert states(world.resolve(configured())) == {}
    assert states(world.resolve(configured(dpo={"beta": 0.3}))) == {}


def test_an_upstream_rerun_with_the_same_result_changes_nothing_downstream() -> None:
    world = World()
    world.finish_all(configured())
    changed = configured(warmup={"epochs": 9.0})
    world.finish(changed, WARMUP)
    assert states(world.resolve(changed)) == {}


def test_an_upstream_rerun_with_another_result_is_named() -> None:
    world = World()
    world.finish_all(configured())
    changed = configured(warmup={"epochs": 9.0})
    world.finish(changed, WARMUP, content="other")
    resolution = world.resolve(changed)[StageId(1, "score")]
    assert (resolution.state, resolution.reason) == ("stale", "input adapter (i0/warmup) changed")


def test_a_waiting_stage_names_its_own_changes_first() -> None:
    world = World()
    world.finish_all(configured())
    resolution = world.resolve(configured(seed=5))[WARMUP]
    assert (resolution.state, resolution.reason) == ("waiting", "seed 17 -> 5; input data (i0/prepare) may change")


def test_changes_are_shown_as_the_file_writes_them() -> None:
    world = World()
    world.finish_all(configured())
    reason = world.resolve(configured(data={"count": 5}, search={"inject_ground_truth": False}))[PREPARE].reason
    assert reason == "data.count null -> 5"
    assert world.resolve(configured(search={"inject_ground_truth": False}))[StageId(1, "generate")].reason.endswith("true -> false")


def test_the_nearest_artifact_explains() -> None:
    world = World()
    world.finish_all(configured(dpo={"beta": 0.3, "updates": 7, "loss": "ipo", "nll_weight": 0.0}))
    world.finish_all(configured(dpo={"beta": 0.2}))
    assert world.resolve(configured(dpo={"beta": 0.25}))[StageId(1, "dpo")].reason == "dpo.beta 0.2 -> 0.25"
    many = world.resolve(configured(dpo={"beta": 1.0, "updates": 1, "loss": "orpo", "nll_weight": 1.0, "batch_pairs": 2}))[
        StageId(1, "dpo")
    ]
    assert many.reason.endswith("and 2 more")


def test_more_iterations_add_only_the_new_ones() -> None:
    world = World()
    world.finish_all(configured())
    open_stages = states(world.resolve(configured(iterations=2)))
    assert list(open_stages) == ["i2/score", "i2/generate", "i2/dpo", "i2/evaluate", "i2/report"]


def test_an_equal_artifact_of_another_run_is_reused() -> None:
    world = World()
    world.finish_all(configured(run="old"))
    resolutions = world.resolve(configured(run="new", reuse_from="old"))
    assert states(resolutions) == {"i1/report": "stale"}  # the report carries the run's name
    assert resolutions[PREPARE].reason == "reused from run old"
    assert states(world.resolve(configured(run="new")))["i0/prepare"] == "missing"


@pytest.mark.parametrize("size", [None, 0, 2])
def test_a_missing_or_resized_file_is_damage_and_no_hit(size: int | None) -> None:
    world = World()
    world.finish_all(configured())
    warmup = world.resolve(configured())[WARMUP]
    assert warmup.manifest is not None
    key = warmup.manifest.file_key(str(warmup.prefix), "a.jsonl")
    del world.sizes[key]
    if size is not None:
        world.sizes[key] = size
    resolutions = world.resolve(configured())
    assert resolutions[WARMUP].state == "damaged"
    assert key in resolutions[WARMUP].reason
    assert f"itoolctl artifacts rm {warmup.prefix}" in resolutions[WARMUP].reason
    assert resolutions[StageId(1, "score")].reason == "input i0/warmup is damaged"


def test_a_manifest_that_was_copied_elsewhere_is_damage() -> None:
    world = World()
    world.finish_all(configured())
    resolutions = world.resolve(configured())
    world.manifests[str(resolutions[WARMUP].prefix)] = world.manifests[str(resolutions[PREPARE].prefix)]
    assert world.resolve(configured())[WARMUP].state == "damaged"


def test_shards_that_are_done_are_known() -> None:
    config = configured(search={"shards": 3})
    world = World()
    for stage in (PREPARE, WARMUP, StageId(1, "score")):
        world.finish(config, stage)
    generate = world.resolve(config)[StageId(1, "generate")]
    assert (generate.shards, generate.shards_done) == (3, ())
    for shard in (2, 0):
        world.sizes[manifest_key(shard_prefix(str(generate.prefix), shard, 3))] = 1
    generate = world.resolve(config)[StageId(1, "generate")]
    assert generate.shards_done == (0, 2)
    assert "2 of 3 shards are done" in generate.reason
    world.sizes[manifest_key(shard_prefix(str(generate.prefix), 1, 3))] = 1
    assert world.resolve(config)[StageId(1, "generate")].shards_done == (0, 1, 2)


def written(world: World, folder: Path) -> FolderStore:
    """The world as files."""
    store = FolderStore(folder)
    for prefix, manifest in world.manifests.items():
        store.write(manifest.file_key(prefix, "a.jsonl"), b"x")
        store.write(manifest_key(prefix), manifest.to_json().encode())
    return store


def test_a_finished_run_of_five_iterations_resolves_well_under_a_second(tmp_path: Path) -> None:
    config = configured(iterations=5)
    world = World()
    world.finish_all(config)
    store = written(world, tmp_path)
    began = time.process_time()  # not the wall clock: other tests may share this machine
    resolutions = resolve(store, config)
    assert time.process_time() - began < 0.5
    assert states(resolutions) == {}
    assert len(resolutions) == 24


def test_what_is_done_can_be_forgotten_without_changing_what_follows() -> None:
    config, world = configured(iterations=3), World()
    known, settled = world.observed, world.resolve(config)
    for stage in stage_ids(config):
        world.finish(config, stage)
        new = {key: size for key, size in world.sizes.items() if key.startswith(f"{config.run}/{stage}/")}
        made = {prefix: manifest for prefix, manifest in world.manifests.items() if manifest.id == stage}
        known = StoreListing({**known.sizes, **new}, {**known.manifests, **made})
        known, settled = forget_done(config, known, resolve_observed(config, known, settled=settled))
        for name, found in world.resolve(config).items():
            assert settled[name].state == found.state
            if found.state != "waiting":  # a wait is not explained anew
                assert settled[name] == replace(found, manifest=None, inputs={})
        assert not known.sizes
        assert not known.manifests


def test_of_a_finished_stage_little_is_held() -> None:
    config, world = configured(), World()
    world.finish_all(config)
    tracemalloc.start()
    try:
        held = [forget_done(config, world.observed, world.resolve(config))[1] for _ in range(50)]
        gc.collect()
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken_bytes / sum(len(resolutions) for resolutions in held) < 600  # 470 in Python 3.11


def test_known_manifests_are_not_read_again_and_changes_are_seen(tmp_path: Path) -> None:
    config = configured()
    world = World()
    world.finish_all(config)
    store = written(world, tmp_path)
    known = observe(store, config)
    again = observe(store, config, known=known)
    prefix = artifact_prefix("demo", PREPARE, artifact_key(PREPARE, settings_of(config, "prepare"), {}))
    assert again.manifests[prefix] is known.manifests[prefix]
    remove_artifact(store, prefix)
    assert resolve_observed(config, observe(store, config, known=again))[PREPARE].state == "missing"


def test_an_unreadable_manifest_is_damage(tmp_path: Path) -> None:
    config = configured()
    world = World()
    world.finish_all(config)
    store = written(world, tmp_path)
    prefix = artifact_prefix("demo", PREPARE, artifact_key(PREPARE, settings_of(config, "prepare"), {}))
    data = store.read(manifest_key(prefix))
    store.write(manifest_key(prefix), data[: len(data) // 2])
    resolution = resolve(store, config)[PREPARE]
    assert resolution.state == "damaged"
    assert "not a complete manifest" in resolution.reason


class SlowlyListed(FolderStore):
    """A listing of more than one artifact has passed their data before these were there, and then comes to the manifests."""

    def list(self, folder: str) -> dict[str, int]:
        found = super().list(folder)
        return found if folder.count("/") == 3 else {key: size for key, size in found.items() if key.endswith("/manifest.json")}


def test_an_artifact_that_is_committed_while_it_is_listed_is_not_damaged(tmp_path: Path) -> None:
    config, world = configured(), World()
    world.finish_all(config)
    written(world, tmp_path)
    store = SlowlyListed(tmp_path)
    assert states(resolve(store, config)) == {}
    assert {entry.problem for entry in list_artifacts(store)} == {None}


def begun(config: RunConfig, stage: StageId, folder: Path) -> tuple[CountedStore, Resolution]:
    """A run that has come to a stage, and what a controller knows of that stage."""
    world = World()
    for before in stage_ids(config)[: stage_ids(config).index(stage)]:
        world.finish(config, before)
    written(world, folder)
    return CountedStore(folder), world.resolve(config)[stage]


@pytest.mark.parametrize("name", ["score", "generate", "dpo", "evaluate"])
def test_a_stage_that_knows_its_key_reads_the_manifests_of_its_inputs_alone(name: StageName, tmp_path: Path) -> None:
    stage, config = StageId(9, name), configured(iterations=9)
    store, known = begun(config, stage, tmp_path)
    found = resolve_one(store, config, stage, str(known.key))
    assert found is not None
    whole = resolve(FolderStore(tmp_path), config)
    assert {other: whole[other] for other in found} == {**found, stage: replace(found[stage], state=whole[stage].state, reason=ANY)}
    sources = set(inputs_of(config, stage).values())
    looks = {f"list demo/{source}" for source in sources} | {f"read {manifest_key(str(found[source].prefix))}" for source in sources}
    assert sorted(store.asked) == sorted({f"size {manifest_key(str(known.prefix))}"} | looks)


def test_among_several_results_of_an_input_the_key_tells_which_one_is_meant(tmp_path: Path) -> None:
    old, new = configured(warmup={"epochs": 1}), configured(warmup={"epochs": 2})
    score = StageId(1, "score")
    world = World()
    for config, content in ((old, "one"), (new, "two")):
        for stage in (PREPARE, WARMUP):
            if not world.resolve(config)[stage].done:
                world.finish(config, stage, content)
    store = written(world, tmp_path)
    for config in (old, new):
        known = world.resolve(config)
        found = resolve_one(store, config, score, str(known[score].key))
        assert found is not None
        assert found[WARMUP].prefix == known[WARMUP].prefix


def test_an_input_of_the_run_that_is_reused_is_found(tmp_path: Path) -> None:
    first, second = configured(run="first"), configured(run="second", reuse_from="first")
    world = World()
    world.finish(first, PREPARE)
    known = world.resolve(second)[WARMUP]
    found = resolve_one(written(world, tmp_path), second, WARMUP, str(known.key))
    assert found is not None
    assert str(found[PREPARE].prefix).startswith("first/")
    assert str(found[WARMUP].prefix).startswith("second/")


def test_a_key_that_nothing_gives_and_one_that_is_made_already_are_for_the_whole_to_explain(tmp_path: Path) -> None:
    config = configured()
    store, known = begun(config, StageId(1, "score"), tmp_path)
    assert resolve_one(store, config, StageId(1, "score"), "0" * 16) is None
    warmup = resolve(store, config)[WARMUP]
    assert resolve_one(store, config, WARMUP, str(warmup.key)) is None
    store.delete(next(key for key in store.list(str(warmup.prefix)) if key.endswith("a.jsonl")))
    assert resolve_one(store, config, StageId(1, "score"), str(known.key)) is None
