"""What a job sees: `Stage`, its inputs, outputs and surroundings, and `run_stage`, the main function of every job.

A body takes a `Stage`, reads input files, writes output files below `stage.output` and returns; `run_stage` resolves the inputs, commits
the result and turns every error into an exit code. A body that is asked to stop saves a checkpoint and raises Interrupted; a body that
returns is taken at its word that it is finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from itool.artifacts.checkpoints import Checkpoints
from itool.artifacts.commit import commit, join_shards, read_manifest, read_whole, sweep
from itool.artifacts.inputs import InputFiles, RecordT, read_records, write_records
from itool.artifacts.local_files import file_fingerprints
from itool.artifacts.manifest import Counts, Manifest, code_version
from itool.artifacts.process import (
    JobArguments,
    StopFlag,
    end_at_once,
    exit_code_of,
    gpus_in_use,
    parse_arguments,
    peak_memory_bytes,
    seconds_since_process_start,
    stop_signals,
)
from itool.artifacts.progress import Progress
from itool.artifacts.resolve import Resolution, resolve, resolve_one, shard_prefix
from itool.artifacts.store import Store, open_store
from itool.artifacts.work_folder import work_folder
from itool.commands import resume
from itool.config import RunConfig, load_config
from itool.errors import ArtifactError, ConfigError, InputError, Interrupted, ItoolError, NumericalError
from itool.logs import configure_logging, get_logger
from itool.names import PROMPT_TOO_LONG, QUESTION_TOO_LONG, RESPONSE_TOO_LONG, TEMPLATE_REFUSES, StageName
from itool.stages import STAGES, StageId, settings_of

Body = Callable[["Stage"], None]
_log = get_logger(__name__)


class Stage:
    """One attempt of one stage (or of one shard of it), as its body sees it."""

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        resolution: Resolution,
        inputs: Mapping[str, Resolution],
        *,
        work: Path,
        arguments: JobArguments,
        stop: StopFlag,
        before_seconds: float,
    ) -> None:
        if resolution.key is None or resolution.prefix is None:
            raise ItoolError(f"stage {resolution.stage} cannot start: {resolution.reason}")
        self.id: StageId = resolution.stage
        self.config = config
        self.shard = arguments.shard
        self.shards = arguments.shards
        self.rank = arguments.rank
        self.key = resolution.key
        self.prefix = resolution.prefix
        self.output = work / "output"
        self.scratch = work / "scratch"
        self._resolution = resolution
        self._files = InputFiles(store, inputs)
        self._inputs = inputs
        files = file_fingerprints(config) if self.id.name == "prepare" else {}
        self._settings = settings_of(config, self.id.name) | {name: found for name, found in files.items() if found is not None}
        self._checkpoints = Checkpoints(store, self.own_prefix, secrets.token_hex(4))
        self._counts = Counts()
        self._metrics: dict[str, Any] = {}
        self._tokens = 0
        self._progress = Progress()
        self._stop = stop
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._before = before_seconds
        self._startup: float | None = None
        self._earlier_seconds = 0.0
        self._earlier_gpu_seconds = 0.0
        self.output.mkdir(parents=True)
        self.scratch.mkdir(parents=True)

    @property
    def own_prefix(self) -> str:
        """Folder of what this attempt writes: of its shard, of the artifact itself where there is only one."""
        return shard_prefix(self.prefix, self.shard, self.shards)

    @property
    def seed(self) -> int:
        """Seed of everything random in this stage: the same for every attempt and shard, another for every stage and iteration."""
        return stage_seed(self.config.seed, self.id)

    def path(self, role: str, name: str, *, except_suffix: str = "") -> Path:
        """Local path of an input file, or of a folder when `name` ends in a slash; its content is checked. Do not write there.

        Files of a folder that end in `except_suffix` are not fetched.
        """
        return self._files.path(role, name, except_suffix=except_suffix)

    def has(self, role: str) -> bool:
        """Whether this stage reads such an input."""
        return role in self._inputs

    def roles(self) -> list[str]:
        """The inputs by role, in running order."""
        return list(self._inputs)

    def manifest(self, role: str) -> Manifest:
        """Where an input came from: its counts, metrics and times."""
        return self._files.manifest(role)

    def read(self, record: type[RecordT], role: str, name: str) -> list[RecordT]:
        """The records of an input's JSONL file."""
        return read_records(self.path(role, name), record)

    def write(self, name: str, records: Iterable[BaseModel | Mapping[str, Any]]) -> None:
        """Write an output JSONL file, one record per line."""
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, records)

    def write_json(self, name: str, document: Any) -> None:
        """Write an output JSON file."""
        path = self.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")

    def count(self, *, incoming: int = 0, kept: int = 0, dropped: Mapping[str, int] | None = None) -> None:
        """Add to the counts of records that went in, were kept, and were dropped by reason."""
        self._counts = self._counts.plus(Counts(incoming=incoming, kept=kept, dropped=dict(dropped or {})))

    def metrics(self, figures: Mapping[str, Any]) -> None:
        """Add figures to the manifest. Raises NumericalError when one is not finite. Shards' figures are added up."""
        for name, value in figures.items():
            try:
                self._metrics[name] = json.loads(json.dumps(value, allow_nan=False))
            except ValueError:
                raise NumericalError(f"stage {self.id}: metric {name} is not finite: {value!r}") from None

    def tokens(self, count: int) -> None:
        """Add to the tokens that this stage sampled, trained on or scored."""
        self._tokens += count

    def progress(self, done: int, total: int, unit: str, **figures: Any) -> None:
        """Report progress; at most two events a second reach the log, and always the last one."""
        self._progress.report(done, total, unit, **figures)

    def working(self) -> None:
        """Mark the end of start-up: from now on the time is useful work."""
        if self._startup is None:
            self._startup = self._elapsed()
            _log.info("stage working", startup_seconds=round(self._startup, 2))

    def should_stop(self) -> bool:
        """Whether someone asked this stage to stop (SIGTERM, Ctrl-C)."""
        return bool(self._stop)

    def raise_if_stopped(self) -> None:
        """Raise Interrupted when someone asked this stage to stop. Save a checkpoint before, where there is something to save."""
        if self._stop:
            raise Interrupted(f"stage {self.id} was stopped", remedy="Run the same command again to resume")

    def save_checkpoint(self, folder: Path, done: int) -> None:
        """Store a folder as a checkpoint from which another attempt can resume, wherever it runs.

        `done` counts updates of a training, examples or trees.
        """
        self._checkpoints.save(folder, done, seconds=self._seconds(), gpu_seconds=self._gpu_seconds(), tokens=self._tokens)
        _log.info("checkpoint saved", done=done)

    def latest_checkpoint(self) -> Path | None:
        """A verified local copy of the newest whole checkpoint of an earlier attempt. Its time and tokens count to this one's."""
        found = self._checkpoints.latest(self.scratch)
        if found is None:
            return None
        self._earlier_seconds = found.manifest.seconds
        self._earlier_gpu_seconds = found.manifest.gpu_seconds
        self._tokens = found.manifest.tokens
        _log.info("checkpoint resumed", done=found.manifest.done)
        return found.folder

    def discard_checkpoints(self) -> None:
        """Delete what earlier attempts saved and this one cannot use: it is ahead, and would be found again instead of this one's."""
        self._checkpoints.discard()

    def check_dropped(self, counts: Counts | None = None) -> None:
        """Raise InputError when more records were dropped, of `counts` or of all, than `data.max_dropped_fraction` allows."""
        counts = counts or self._counts
        dropped = sum(counts.dropped.values())
        limit = self.config.data.max_dropped_fraction
        if dropped > limit * counts.incoming and counts.incoming:
            top = sorted(counts.dropped.items(), key=lambda item: -item[1])[:3]
            reasons = ", ".join(f"{reason} {number}" for reason, number in top)
            text = f"stage {self.id} dropped {dropped} of {counts.incoming} records ({reasons})"
            remedy = remedy_for(top[0][0], self.config) or "Correct the data"
            raise InputError(f"{text}, more than data.max_dropped_fraction {limit}", remedy=f"{remedy}, or raise that limit")

    def draft(self) -> Manifest:
        """The manifest of what was done so far, without files."""
        return Manifest(
            run=self.config.run,
            iteration=self.id.iteration,
            stage=self.id.name,
            stage_version=STAGES[self.id.name].version,
            key=self.key,
            shard=self.shard,
            shards=self.shards,
            inputs=dict(self._resolution.inputs),
            settings=self._settings,
            files={},
            counts=self._counts,
            metrics=self._metrics,
            tokens=self._tokens,
            code_version=code_version(),
            image_digest=os.environ.get("ITOOL_IMAGE_DIGEST"),
            seed=self.seed,
            started=self._started,
            ended=datetime.now(UTC),
            startup_seconds=round(self._elapsed() if self._startup is None else self._startup, 3),
            seconds=round(self._seconds(), 3),
            gpu_seconds=round(self._gpu_seconds(), 3),
            peak_memory_bytes=peak_memory_bytes(),
        )

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._clock

    def _seconds(self) -> float:
        return self._earlier_seconds + self._elapsed()

    def _gpu_seconds(self) -> float:
        return self._earlier_gpu_seconds + gpus_in_use() * self._elapsed()


def stage_seed(run_seed: int, stage: StageId) -> int:
    """A 31-bit seed from the run's seed, the iteration and the stage's name."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{stage}".encode()).digest()[:4], "big") >> 1


def run_stage(name: StageName, body: Body, argv: list[str] | None = None) -> int:
    """The main function of a job: run a stage unless it is done, commit its result, return the exit code of errors.py.

    With `argv` None this is the process's own main (its age counts as start-up time); a forked process passes its arguments.
    A stop signal that comes before the body begins ends it at once: process 1 of a container would otherwise never hear of it.
    """
    before = seconds_since_process_start() if argv is None else 0.0
    try:
        with stop_signals(end_at_once):
            configure_logging()
            arguments = parse_arguments(name, argv)
            config = load_config(arguments.config, arguments.overrides)
            configure_logging(config.runtime.log_format, level=logging.ERROR if arguments.rank else logging.INFO)
            if config.runtime.threads:  # a runner has set it already; torch reads it when it is imported
                os.environ.setdefault("OMP_NUM_THREADS", str(config.runtime.threads))
            _run(name, body, config, arguments, before)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the job's main: every error becomes an exit code and one line
        return exit_code_of(error)
    return 0


def _run(name: StageName, body: Body, config: RunConfig, arguments: JobArguments, before: float) -> None:
    stage_id = StageId(arguments.iteration, name)
    store = open_store(config.root, config.store)
    config = config.model_copy(update={"iterations": max(config.iterations, arguments.iteration)})
    told = resolve_one(store, config, stage_id, arguments.key) if arguments.key else None
    resolutions = told or resolve(store, config)
    resolution = _startable(config, stage_id, resolutions, arguments)
    if resolution.done:
        _log.info("stage already done", stage=str(stage_id), key=resolution.key)
        if resolution.manifest is not None and resolution.manifest.run == config.run:
            sweep(store, str(resolution.prefix), resolution.manifest)  # who made it may have been killed before it had swept
        return
    inputs = {role: resolutions[ref.id] for role, ref in resolution.inputs.items()}
    stop = StopFlag()
    with stop_signals(stop.handle), work_folder(store, stage_id) as work:
        stage = Stage(store, config, resolution, inputs, work=work, arguments=arguments, stop=stop, before_seconds=before)
        _attempt(store, stage, body)


def _attempt(store: Store, stage: Stage, body: Body) -> None:
    """See that this stage or shard is done, by whatever attempt, and where that was the last shard, that they are joined."""
    _log.info("stage started", stage=str(stage.id), run=stage.config.run, key=stage.key, shard=stage.shard, shards=stage.shards)
    try:
        manifest = _work(store, stage, body)
    except ArtifactError:  # another attempt may have finished, and swept the folder in which this one wrote
        manifest = read_whole(store, stage.own_prefix) or read_whole(store, stage.prefix)
        if manifest is None:
            raise
        _log.info("another attempt finished first", stage=str(stage.id), key=stage.key, shard=stage.shard)
    if manifest is None:
        return
    if stage.shards > 1:
        manifest = join_shards(store, stage.prefix, stage.shards, stage.scratch, stage.check_dropped) or manifest
    _log.info(
        "stage finished",
        stage=str(stage.id),
        seconds=manifest.seconds,
        startup_seconds=manifest.startup_seconds,
        tokens=manifest.tokens,
        kept=manifest.counts.kept,
        dropped=manifest.counts.dropped,
        digest=manifest.digest[:12],
    )


def _work(store: Store, stage: Stage, body: Body) -> Manifest | None:
    """Run the body, unless its shard is done, and commit what it wrote; None for ranks other than 0, which commit nothing."""
    done = read_manifest(store, stage.own_prefix) if stage.shards > 1 else None
    if done is not None:
        return done
    body(stage)
    if stage.rank:
        return None
    if stage.shards == 1:
        stage.check_dropped()
    _only_jsonl(stage)
    return commit(store, stage.own_prefix, stage.output, stage.draft())


def _only_jsonl(stage: Stage) -> None:
    """Shards can be joined only line by line."""
    if stage.shards > 1:
        for path in stage.output.rglob("*"):
            if path.is_file() and path.suffix != ".jsonl":
                raise ItoolError(f"shard of {stage.id} wrote {path.name}: shards can be joined only when they write .jsonl files")


def _startable(config: RunConfig, stage: StageId, resolutions: Mapping[StageId, Resolution], arguments: JobArguments) -> Resolution:
    """The stage's resolution when it is done or can run. Raises ConfigError, ArtifactError or InputError."""
    if stage not in resolutions:
        known = ", ".join(str(other) for other in resolutions)
        raise ConfigError(f"{stage} is not a stage of this run", remedy=f"It has {known}")
    if arguments.shards > 1 and not STAGES[stage.name].sharded:
        raise ConfigError(f"stage {stage.name} cannot be sharded: --shards {arguments.shards}")
    resolution = resolutions[stage]
    if resolution.state == "damaged":
        raise ArtifactError(resolution.reason)
    if resolution.state == "waiting":
        broken = next((other for other in resolutions.values() if other.state == "damaged"), None)
        if broken is not None:
            raise ArtifactError(f"stage {stage} cannot start: {broken.reason}")
        remedy = f"Run the stages before it, or {resume(config.run, config.root)}"
        raise InputError(f"stage {stage} cannot start: {resolution.reason}", remedy=remedy)
    return resolution


def remedy_for(reason: str, config: RunConfig) -> str | None:
    """The setting by which an example cannot be used; None for what only other data can mend."""
    context, response = config.model.context_tokens, config.model.max_response_tokens
    return {
        PROMPT_TOO_LONG: f"Raise model.context_tokens = {context} or lower model.max_response_tokens = {response}",
        QUESTION_TOO_LONG: f"Raise model.context_tokens = {context}, or set search.confidence_weight to 0",
        RESPONSE_TOO_LONG: f"Raise model.max_response_tokens = {response}",
        TEMPLATE_REFUSES: "Set model.chat_template to one that takes such data",
    }.get(reason)
