"""Which stages of a run are done, and why the others are not.

`observe` reads the store (one listing, and each manifest once); `resolve_observed` is pure: from a configuration and what was observed it
gives every stage its key, its state and a reason that a person can act on. `resolve` is both. `resolve_one` looks at one stage and its
inputs alone, for a job that was told its key.

    done      an artifact with the stage's key exists and every file that it lists is there with the listed size
    stale     there are artifacts of this stage, but made from other settings or inputs; `reason` says which
    missing   the stage has never finished
    waiting   an input is not done, so the key is not known yet
    damaged   the artifact exists but is incomplete, altered or of a newer version: never used, never silently replaced
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from itool.artifacts.local_files import CONTENT, file_fingerprints
from itool.artifacts.manifest import MANIFEST_NAME, ArtifactRef, Manifest, NewerArtifact, artifact_prefix, manifest_key, parse_manifest
from itool.artifacts.store import Store
from itool.commands import removal
from itool.config import RunConfig, show_value
from itool.errors import ArtifactError, ItoolError
from itool.names import StageName
from itool.stages import STAGES, StageId, artifact_key, inputs_of, settings_of, shards_of, stage_ids

State = Literal["done", "stale", "missing", "waiting", "damaged"]
_SHOWN_CHANGES = 3
_READERS = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is known about one stage. `key`, `prefix` and `inputs` are None or empty while it waits.

    `manifest` and `digest`, of the artifact's content, are there when it is done.
    """

    stage: StageId
    state: State
    reason: str
    key: str | None = None
    prefix: str | None = None
    manifest: Manifest | None = None
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    shards: int = 1
    shards_done: tuple[int, ...] = ()
    digest: str | None = None

    @property
    def done(self) -> bool:
        """Whether the artifact is there: nothing remains to be run."""
        return self.state == "done"

    @property
    def artifact(self) -> ArtifactRef | None:
        """How other manifests name the artifact. Made when it is asked for: as a model it takes more memory than all else together."""
        if self.prefix is None or self.key is None or self.digest is None:
            return None
        run = self.prefix.partition("/")[0]
        return ArtifactRef(run=run, iteration=self.stage.iteration, stage=self.stage.name, key=self.key, digest=self.digest)


@dataclass(frozen=True)
class StoreListing:
    """What lies in the store for a run: object sizes by key, readable manifests by prefix, unreadable ones with reason and remedy.

    `files` are the fingerprints of the local files that `prepare` reads.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)


def resolve(store: Store, config: RunConfig) -> dict[StageId, Resolution]:
    """Every stage of the run, in running order."""
    return resolve_observed(config, observe(store, config))


def resolve_one(store: Store, config: RunConfig, stage: StageId, key: str) -> dict[StageId, Resolution] | None:
    """A stage that is to make the artifact `key`, and its inputs: what was written elsewhere in the run is not looked at.

    None when the artifact is there, or no inputs in the store give this key; `resolve` then says more. Costs one listing and one
    manifest per input, however long the run is: each of thousands of shards asks this. The report reads the whole run.
    """
    prefix = artifact_prefix(config.run, stage, key)
    if store.size(manifest_key(prefix)) is not None:
        return None
    if stage.name == "report":
        return _resolve_begun(config, observe(store, config), stage, key)
    sources = inputs_of(config, stage)
    observed = observe(store, config, known=StoreListing(), stages=set(sources.values()))
    settings = _settings_of(config, stage.name, observed, [])
    for found in itertools.product(*(_on_hand(config, source, observed) for source in sources.values())):
        refs = {role: manifest.ref() for role, (_, manifest) in zip(sources, found, strict=True)}
        if artifact_key(stage, settings, {role: ref.digest for role, ref in refs.items()}) == key:
            own = Resolution(stage, "missing", "has not run yet", key, prefix, inputs=refs, shards=shards_of(config, stage))
            inputs = (_done(m, folder, "up to date", m.inputs) for folder, m in found)
            return {own.stage: own} | {source.stage: source for source in inputs}
    return None


def _resolve_begun(config: RunConfig, observed: StoreListing, stage: StageId, key: str) -> dict[StageId, Resolution] | None:
    """The run in which this stage has this key, also when local files have changed since it was begun."""
    for prepared in [manifest for manifest in observed.manifests.values() if manifest.stage == "prepare"]:
        files = {file: prepared.settings.get(file) for file in observed.files}
        resolutions = resolve_observed(config, replace(observed, files=files))
        if resolutions[stage].key == key:
            return resolutions
    return None


def _on_hand(config: RunConfig, stage: StageId, observed: StoreListing) -> list[tuple[str, Manifest]]:
    """A stage's whole artifacts, whatever they were made from: folder and manifest."""
    return [
        (prefix, manifest)
        for run in _runs(config)
        for prefix, manifest in observed.manifests.items()
        if prefix == artifact_prefix(run, stage, manifest.key) and manifest.id == stage and damage(manifest, prefix, observed.sizes) is None
    ]


def observe(
    store: Store, config: RunConfig, *, known: StoreListing | None = None, stages: Collection[StageId] | None = None
) -> StoreListing:
    """Read what lies in the store for this run and the run that it reuses. Manifests that `known` holds are not read again.

    With `stages` only these are looked at again and all else is taken from `known`: a long run is not listed anew after each of its stages.
    """
    runs = _runs(config)
    if known is None or stages is None:
        sizes = _list(store, [f"{run}/i{iteration}" for run in runs for iteration in range(config.iterations + 1)], {})
    else:
        sizes = _list(store, [f"{run}/{stage}" for run in runs for stage in stages], known.sizes)
    manifests: dict[str, Manifest] = {}
    unread: list[str] = []
    for prefix in manifest_prefixes(sizes):
        name = manifest_key(prefix)
        if known and prefix in known.manifests and known.sizes.get(name) == sizes[name]:
            manifests[prefix] = known.manifests[prefix]
        else:
            unread.append(prefix)
    broken: dict[str, str] = {}
    for prefix, found in zip(unread, _each(lambda prefix: _read(store, prefix), unread), strict=True):
        if not isinstance(found, Manifest):
            broken[prefix] = found
            continue
        manifests[prefix] = found
        if damage(found, prefix, sizes):  # a listing is no snapshot: it may have passed the data before they were there
            sizes.update(store.list(prefix))
    return StoreListing(sizes, manifests, broken, file_fingerprints(config))


def _list(store: Store, folders: list[str], known: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the objects in these folders, beside those that are known of all others."""
    starts = tuple(f"{folder}/" for folder in folders)
    sizes = {key: size for key, size in known.items() if not key.startswith(starts)}
    for found in _each(store.list, folders):
        sizes.update(found)
    return sizes


def _each(ask: Callable[[str], T], names: list[str]) -> list[T]:
    """The answers in order. Several are asked side by side, as each is a round trip in S3; after a failure no further one is."""
    if len(names) < 2:
        return [ask(name) for name in names]
    failures: list[ItoolError] = []

    def ask_unless_failed(name: str) -> T:
        if failures:
            raise failures[0]
        try:
            return ask(name)
        except ItoolError as error:
            failures.append(error)
            raise

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(ask_unless_failed, names))


def _read(store: Store, prefix: str) -> Manifest | str:
    """A manifest, or why it cannot be used and what to do."""
    name = manifest_key(prefix)
    try:
        return parse_manifest(store.read(name), f"{store.root}/{name}")
    except NewerArtifact as error:
        return str(error)
    except ArtifactError as error:
        return f"{error}; remove it with {removal(prefix, store.root)} and run again"


def manifest_prefixes(sizes: Mapping[str, int]) -> list[str]:
    """The artifacts in a listing: folders `<run>/i<k>/<stage>/<key>` with a manifest (those of shards and checkpoints lie deeper)."""
    return [key.removesuffix(f"/{MANIFEST_NAME}") for key in sizes if key.count("/") == 4 and key.endswith(f"/{MANIFEST_NAME}")]


def resolve_observed(
    config: RunConfig, observed: StoreListing, *, settled: Mapping[StageId, Resolution] | None = None
) -> dict[StageId, Resolution]:
    """Pure: the state of every stage of the run, in running order (so that a stage's inputs come before it).

    `settled` are earlier resolutions of the same configuration: what was done then is taken as done, and what still waits is not
    explained anew, so that a long run costs little after each of its stages.
    """
    resolutions: dict[StageId, Resolution] = {}
    siblings: dict[StageId, list[Manifest]] = defaultdict(list)
    for prefix, manifest in observed.manifests.items():
        if prefix.partition("/")[0] in _runs(config):
            siblings[manifest.id].append(manifest)
    settings = {name: _settings_of(config, name, observed, siblings[StageId(0, name)]) for name in STAGES}
    for stage in stage_ids(config):
        earlier = settled.get(stage) if settled else None
        if earlier is not None and earlier.done:
            resolutions[stage] = earlier
            continue
        inputs = {role: resolutions[source] for role, source in inputs_of(config, stage).items()}
        if earlier is not None and earlier.state == "waiting" and any(source.state in ("missing", "waiting") for source in inputs.values()):
            resolutions[stage] = earlier
        else:
            resolutions[stage] = _resolve_stage(config, stage, inputs, observed, settings=settings[stage.name], siblings=siblings[stage])
    return resolutions


def forget_done(
    config: RunConfig, observed: StoreListing, resolutions: Mapping[StageId, Resolution]
) -> tuple[StoreListing, dict[StageId, Resolution]]:
    """Both without what no decision reads: of a finished stage remains where it stands and its content's digest.

    A controller of hundreds of iterations then does not hold all that they wrote, nor what each stage reads (the report: all of them).
    """
    done = tuple(f"{run}/{stage}/" for run in _runs(config) for stage, found in resolutions.items() if found.done)
    sizes = {key: size for key, size in observed.sizes.items() if not key.startswith(done)}
    manifests = {key: manifest for key, manifest in observed.manifests.items() if not key.startswith(done)}
    broken = {key: problem for key, problem in observed.broken.items() if not key.startswith(done)}
    short = {
        stage: replace(found, manifest=None, inputs={}) if found.manifest or found.inputs else found for stage, found in resolutions.items()
    }
    return replace(observed, sizes=sizes, manifests=manifests, broken=broken), short


def damage(manifest: Manifest, prefix: str, sizes: Mapping[str, int]) -> str | None:
    """The first listed file that is not there or has another size, as one line; None when all are there."""
    for path, entry in manifest.files.items():
        key = manifest.file_key(prefix, path)
        found = sizes.get(key)
        if found is None:
            return f"{key} is missing"
        if found != entry.size:
            return f"{key} has {found} bytes, the manifest says {entry.size}"
    return None


def _settings_of(config: RunConfig, name: StageName, observed: StoreListing, siblings: list[Manifest]) -> dict[str, Any]:
    """The settings of a stage, for `prepare` with the fingerprints of its files.

    A file that is not here (any more), as in another working directory, counts as the one that was read last: nothing says otherwise.
    """
    settings = settings_of(config, name)
    if name == "prepare":
        files = {file: found or _last_read(file, settings, siblings) for file, found in observed.files.items()}
        settings |= {file: fingerprint for file, fingerprint in files.items() if fingerprint is not None}
    return settings


def _last_read(file: str, settings: dict[str, Any], siblings: list[Manifest]) -> str | None:
    path = file.removesuffix(CONTENT)
    readers = [manifest for manifest in siblings if file in manifest.settings and manifest.settings.get(path) == settings[path]]
    return str(max(readers, key=lambda manifest: manifest.ended).settings[file]) if readers else None


def _resolve_stage(
    config: RunConfig,
    stage: StageId,
    inputs: dict[str, Resolution],
    observed: StoreListing,
    *,
    settings: dict[str, Any],
    siblings: list[Manifest],
) -> Resolution:
    waiting = {role: source for role, source in inputs.items() if not source.done}
    if waiting:
        return Resolution(stage, "waiting", _waiting_reason(waiting, settings, siblings))
    refs = {role: artifact for role, source in inputs.items() if (artifact := source.artifact) is not None}
    key = artifact_key(stage, settings, {role: ref.digest for role, ref in refs.items()})
    for run in _runs(config):
        found = _find(run, stage, key, refs, observed, root=config.root, reused=run != config.run)
        if found is not None:
            return found
    prefix = artifact_prefix(config.run, stage, key)
    shards = shards_of(config, stage)
    done = tuple(shard for shard in range(shards) if manifest_key(shard_prefix(prefix, shard, shards)) in observed.sizes)
    state: State = "stale" if siblings else "missing"
    reason = _stale_reason(stage, settings, refs, siblings) if siblings else "has not run yet"
    if done:
        reason += f"; {len(done)} of {shards} shards are done"
    return Resolution(stage, state, reason, key, prefix, inputs=refs, shards=shards, shards_done=done)


def shard_prefix(prefix: str, shard: int, shards: int) -> str:
    """Folder of one shard of a sharded stage; the artifact's own folder when there is only one."""
    return f"{prefix}/shards/{shard}-of-{shards}" if shards > 1 else prefix


def _runs(config: RunConfig) -> list[str]:
    reused = [config.reuse_from] if config.reuse_from and config.reuse_from != config.run else []
    return [config.run, *reused]


def _find(
    run: str, stage: StageId, key: str, refs: dict[str, ArtifactRef], observed: StoreListing, *, root: str, reused: bool
) -> Resolution | None:
    """The artifact with this key in a run's folder: done, damaged, or None when there is none."""
    prefix = artifact_prefix(run, stage, key)
    if prefix in observed.broken:
        return Resolution(stage, "damaged", observed.broken[prefix], key, prefix, inputs=refs)
    remedy = f"remove it with {removal(prefix, root)} and run again"
    manifest = observed.manifests.get(prefix)
    if manifest is None:
        return None
    if (manifest.id, manifest.key) != (stage, key):
        found = f"{manifest.id}/{manifest.key}"
        return Resolution(stage, "damaged", f"{prefix} holds the manifest of {found}; {remedy}", key, prefix, inputs=refs)
    problem = damage(manifest, prefix, observed.sizes)
    if problem:
        return Resolution(stage, "damaged", f"{problem}; {remedy}", key, prefix, manifest, refs)
    return _done(manifest, prefix, f"reused from run {run}" if reused else "up to date", refs)


def _done(manifest: Manifest, prefix: str, reason: str, inputs: Mapping[str, ArtifactRef]) -> Resolution:
    return Resolution(manifest.id, "done", reason, manifest.key, prefix, manifest, inputs, digest=manifest.digest)


def _waiting_reason(waiting: dict[str, Resolution], settings: dict[str, Any], siblings: list[Manifest]) -> str:
    """What it waits for, and which of its own settings changed since it ran last."""
    damaged = [source for source in waiting.values() if source.state == "damaged"]
    if damaged:
        return f"input {damaged[0].stage} is damaged"
    changes = _setting_changes(_nearest(settings, {}, siblings), settings) if siblings else []
    names = [f"{role} ({source.stage})" if role != str(source.stage) else role for role, source in waiting.items()]
    inputs = f"input {_shorten(names)} {'may change' if siblings else 'is not there yet'}"
    return "; ".join([_shorten(changes), inputs]) if changes else inputs


def _stale_reason(stage: StageId, settings: dict[str, Any], refs: dict[str, ArtifactRef], siblings: list[Manifest]) -> str:
    """Which settings or inputs differ from the artifact that differs least."""
    nearest = _nearest(settings, refs, siblings)
    changes = _setting_changes(nearest, settings)
    for role in _changed_inputs(nearest, refs):
        changes.append(f"input {role} ({refs[role].id}) changed" if role in refs else f"input {role} is no longer read")
    version = STAGES[stage.name].version
    if nearest.stage_version != version:
        changes.append(f"code of the stage {nearest.stage_version} -> {version}")
    return _shorten(changes) or "made by another version"


def _nearest(settings: dict[str, Any], refs: dict[str, ArtifactRef], siblings: list[Manifest]) -> Manifest:
    """The artifact of the same stage that differs in the fewest settings and inputs; among equals the newest."""
    return min(siblings, key=lambda m: (len(_setting_changes(m, settings)) + len(_changed_inputs(m, refs)), -m.ended.timestamp()))


def _setting_changes(old: Manifest, settings: dict[str, Any]) -> list[str]:
    """Settings whose values differ. One that only one of both reads follows from another that differs, or is new in this version."""
    known = old.settings
    changed = [name for name in settings if settings[name] != known.get(name, settings[name])]
    changes = [f"{name} {_show(known[name])} -> {_show(settings[name])}" for name in changed if not name.endswith(CONTENT)]
    files = [name.removesuffix(CONTENT) for name in changed if name.endswith(CONTENT)]
    changes += [f"{_name_file(name, settings)} has changed since" for name in files if name not in changed]
    return changes or [_is_read_now(name, settings) for name in settings if name not in known]


def _is_read_now(name: str, settings: dict[str, Any]) -> str:
    if name.endswith(CONTENT):
        return f"{_name_file(name.removesuffix(CONTENT), settings)} may have changed since: nobody looked into it then"
    return f"{name} is read now: {_show(settings[name])}"


def _name_file(name: str, settings: dict[str, Any]) -> str:
    return name if settings[name] is None else f"{name} {settings[name]}"


def _changed_inputs(old: Manifest, refs: dict[str, ArtifactRef]) -> list[str]:
    """Inputs that differ, those of the artifact alone last; none while the stage waits for its own."""
    before = {role: ref.digest for role, ref in old.inputs.items()}
    now = {role: ref.digest for role, ref in refs.items()}
    return [role for role in now | before if now.get(role) != before.get(role)] if refs else []


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else show_value(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _shorten(parts: list[str]) -> str:
    more = len(parts) - _SHOWN_CHANGES
    return ", ".join(parts[:_SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")
