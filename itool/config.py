"""The run's configuration: one YAML file, one section per concern, every value checked before anything starts.

The same file is `itoolctl --config`, the chart's `run:` value and what lies beside the artifacts. Both ways in, `load_config` for
a file with `--set a.b=c` and `parse_config` for a mapping, refuse unknown keys and impossible values in one line and return a frozen
`RunConfig`.
Which stage reads which field stands in `stages.py`; a field that no stage lists (`runtime`, `store`, `kubernetes`) never causes a re-run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from itool.config_kubernetes import DNS_LABEL, DNS_NAME, LABEL_VALUE, METADATA_KEY, QUANTITY, KubernetesConfig
from itool.config_section import URL, Count, CountOrZero, Fraction, Rate, Section, Share, Url, Weight
from itool.config_yaml import RepeatedKey, read_yaml, yaml_problem
from itool.errors import ConfigError
from itool.names import Backend, Method
from itool.paths import absolute_path, local_path

RUN_NAME = r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$"
FORMS = {
    RUN_NAME: "DNS label: use small letters, digits and inner dashes, at most 53 characters",
    DNS_LABEL: "DNS label: use small letters, digits and inner dashes, at most 63 characters",
    DNS_NAME: "DNS name: use small letters, digits, inner dashes and dots",
    METADATA_KEY: "label key: use name or domain/name, of letters, digits, dashes, dots and underscores",
    LABEL_VALUE: "label value: use at most 63 letters, digits, inner dashes, dots and underscores",
    URL: "URL: use http://host:8000 or https://host, without a password",
    QUANTITY: "quantity: use a number with a unit, as in 500m, 2 or 4Gi",
}
"""What a value of each pattern is called in errors, and how it looks."""
OPTIONS = "command line"
"""Where what short options such as --run say comes from, in errors."""
UNKNOWN = ("extra_forbidden", "invalid_key")
"""pydantic's names for a key that no setting has."""
Filled = Annotated[str, Field(min_length=1)]
MOST_DEMO_EXAMPLES = 100_000
Samples = Annotated[Count, Field(le=10_000)]
Examples = Annotated[Count, Field(le=10**7)]
Batch = Annotated[Count, Field(le=2**20)]
Tokens = Annotated[Count, Field(le=2**20)]
Padded = Annotated[Count, Field(le=2**24)]
LearningRate = Annotated[Rate, Field(le=1.0)]
"""More than these limits is a slip of the pen: the run would need all memory there is, or years."""


class ModelConfig(Section):
    """The base model and the adapter that is trained on it."""

    path: Filled = Field(
        "demo", description="`demo` (shipped with iTool), a hub id, or a folder or .gguf file (relative: to the working directory)"
    )
    revision: str | None = Field(None, description="hub revision; pin it for runs that must be repeatable")
    chat_template: Filled | None = Field(None, description="a Jinja file that replaces the model's own chat template")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="what training, scoring and serving compute in")
    context_tokens: Annotated[Tokens, Field(ge=32)] = Field(1024, description="longest prompt + response, in tokens")
    max_response_tokens: Tokens = Field(128, description="longest response, in tokens")
    lora_rank: Annotated[Count, Field(le=512)] = Field(16, description="rank of the adapter, on the linear layers of the blocks")
    lora_alpha: Annotated[Rate, Field(le=1e4)] = Field(32.0, description="the adapter counts lora_alpha / lora_rank")
    lora_dropout: Share = Field(0.0, description="dropout before the adapter while it is trained")


class DataConfig(Section):
    """Where examples come from and how they are split. Splits hash example ids, so adding one moves none that opens differently."""

    source: Literal["demo", "toolace", "xlam", "toolbench", "seal_tools", "openai"] = Field(
        "demo", description="format of the data (docs/data.md); `demo`: the built-in task"
    )
    path: Filled | None = Field(None, description="training data: a file or folder (relative: to the working directory) or a hub id")
    held_out_path: Filled | None = Field(None, description="held-out data in the same format; without it `held_out_fraction` is split off")
    tool_pool_path: Filled | None = Field(None, description="pool of tools that candidate lists are drawn from (seal_tools)")
    candidate_tools: Annotated[Count, Field(le=1000)] = Field(6, description="longest candidate list that is drawn from the pool")
    no_call_fraction: Share = Field(0.0, description="share of examples whose right tools are withheld, so that text is right (seal_tools)")
    count: Examples | None = Field(None, description="use at most so many training examples (demo: generate so many; null: 2700)")
    held_out_count: Examples | None = Field(
        None, description="with held_out_path: use at most so many of them (demo: generate so many; null: 1000)"
    )
    buffer_fraction: Fraction = Field(0.1, description="share of the training data that becomes the replay buffer (paper: 10 %)")
    validation_fraction: Share = Field(
        0.05, description="share that decides which iteration is kept; never trained on, and not the result that is reported"
    )
    held_out_fraction: Share = Field(0.05, description="share that is reported, when there is no held-out data")
    buffer_labels: Literal["response", "checker"] = Field(
        "response", description="`checker`: the buffer has no ground-truth text, only a verdict on a response (outcome reward)"
    )
    max_dropped_fraction: Share = Field(0.2, description="more unusable examples than this fail the stage")

    @property
    def pool_file(self) -> Path:
        """Seal-Tools' pool of tools: `tool_pool_path`, else `tool.jsonl` beside the training data."""
        data = local_path(self.path or "")
        return local_path(self.tool_pool_path) if self.tool_pool_path else (data if data.is_dir() else data.parent) / "tool.jsonl"


class OptimizerConfig(Section):
    """Settings that SFT and preference training share."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon orthogonalises the updates of matrices; an adapter has no other parameters"
    )
    learning_rate: LearningRate = Field(1e-4, description="peak learning rate")
    weight_decay: Weight = Field(0.01, description="decoupled weight decay")
    warmup_fraction: Share = Field(0.05, description="share of the updates in which the learning rate rises to its peak")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="learning rate after that: as it is, or falling towards 0"
    )
    max_grad_norm: Rate = Field(1.0, description="longer gradients are scaled down to this norm")
    batch_tokens: Padded = Field(4096, description="most padded tokens in one forward pass; longer batches accumulate gradients")
    checkpoint_seconds: Rate = Field(300.0, description="write a verified checkpoint at least so often")


class WarmupConfig(OptimizerConfig):
    """Warm-up SFT, Eq. (2)-(3)."""

    curriculum: Literal["easy_to_hard", "mixed"] = Field(
        "easy_to_hard", description="easy examples first, then medium, then hard; or all mixed in every epoch"
    )
    epochs: Annotated[Rate, Field(le=1000.0)] = Field(3.0, description="passes over the warm-up set; fractions are allowed")
    batch_examples: Batch = Field(32, description="examples per update")


class SelectConfig(Section):
    """Which buffer examples are searched, Eq. (4)."""

    by: Literal["perplexity", "pass_rate"] = Field(
        "perplexity", description="hard is what has a high perplexity (paper), or what few samples get right"
    )
    alpha: Fraction = Field(0.2, description="hardest share of the buffer, within each stratum (paper: 0.2)")
    samples: Samples = Field(8, description="samples per example for pass_rate")
    batch_tokens: Padded = Field(8192, description="most padded tokens in one forward pass")


class SearchConfig(Section):
    """Monte Carlo tree search over steps, Eq. (5)-(9), and the pairs it gives."""

    granularity: Literal["call", "argument"] = Field("argument", description="a step ends with a call, or with each argument")
    width: Samples = Field(4, description="samples per expansion")
    root_samples: Samples = Field(8, description="samples of the first expansion, at the root")
    depth_limit: Annotated[Count, Field(le=1000)] = Field(8, description="deepest node that is expanded, in steps")
    simulations: Samples = Field(8, description="most select-expand-backup passes per tree")
    c_puct: Weight = Field(1.0, description="weight of exploration in PUCT")
    gamma: Fraction = Field(1.0, description="discount per step of what is backed up")
    temperature: Annotated[Rate, Field(le=100.0)] = Field(
        1.0, description="sampling temperature of the search, of pass rates and of pass@k"
    )
    confidence_weight: Weight = Field(0.0, description="weight of C(s), Eq. (7); 0 switches its calls off")
    inject_ground_truth: bool = Field(True, description="lay the ground truth into the tree, unless every sample is right")
    min_gap: Weight = Field(0.1, description="least difference of the values of a pair's sides")
    min_visits: Count = Field(2, description="least visits of each side of a pair")
    best_of: Samples = Field(16, description="samples per example for best_of_n and rejection_sampling")
    shards: Annotated[Count, Field(le=10_000)] = Field(1, description="parallel shards of `generate`")
    trees_in_flight: Annotated[Count, Field(le=10**6)] = Field(64, description="trees that are searched at the same time in one shard")


class DpoConfig(OptimizerConfig):
    """Training on step-level pairs, Eq. (10)-(11), and the controls that replace it at the same number of updates."""

    loss: Literal["dpo", "ipo", "simpo", "orpo"] = Field("dpo", description="loss of a pair; `dpo` is Eq. (11)")
    beta: Weight = Field(0.1, description="strength of the preference term")
    simpo_gamma: Weight = Field(0.5, description="target margin of SimPO")
    length_normalised: bool = Field(True, description="SimPO: mean (paper) or sum of log-probabilities (a plain margin loss)")
    nll_weight: Weight = Field(0.1, description="weight of the chosen side's negative log-likelihood; with loss orpo it is always 1")
    nll_on: Literal["step", "answer"] = Field(
        "step", description="what that term covers: the chosen step, or the whole right answer that it belongs to"
    )
    label_smoothing: Literal["none", "visits"] = Field("none", description="`visits`: N_l / (N_w + N_l) per pair, at most 0.5")
    reference: Literal["previous", "warmup"] = Field(
        "previous", description="reference policy: that of the previous iteration, or the warm-up's"
    )
    replay_fraction: Share = Field(0.25, description="share of the sequences of an update that replay warm-up examples as SFT")
    replay_from: Literal["warmup", "warmup_and_buffer"] = Field(
        "warmup", description="what is replayed beside pairs: with the buffer, its ground truth too, where there is one"
    )
    updates: Annotated[Count, Field(le=10**6)] = Field(40, description="optimiser updates per iteration")
    batch_pairs: Batch = Field(16, description="pairs per update; an SFT control sees as many sequences, 2 per pair")
    learning_rate: LearningRate = Field(5e-6, description="peak learning rate")

    @model_validator(mode="after")
    def _beta_means_something(self) -> DpoConfig:
        if self.beta == 0.0 and self.loss != "orpo":
            raise ValueError("beta 0 makes every pair's loss constant; use a value above 0")
        return self


class EvaluateConfig(Section):
    """How an adapter is measured."""

    pass_k: list[Samples] = Field(default_factory=lambda: [1, 8], description="k of pass@k, measured on `pass_examples` held-out examples")
    pass_examples: CountOrZero = Field(0, description="how many held-out examples pass@k is measured on; 0: it is not measured")
    batch_sequences: Batch = Field(
        128, description="most sequences asked for at a time; the policy takes as many of them as it has room for"
    )

    @model_validator(mode="after")
    def _pass_at_k_has_a_k(self) -> EvaluateConfig:
        if self.pass_examples and not self.pass_k:
            raise ValueError(f"pass_k is empty and pass_examples is {self.pass_examples}: give at least one k, or set pass_examples to 0")
        return self


class PolicyConfig(Section):
    """What answers during search and evaluation."""

    backend: Literal["embedded", "vllm"] = Field("embedded", description="the model in the stage's own process, or a vLLM server")
    url: Url | None = Field(
        None, description="an OpenAI-compatible vLLM server; without it one is started: beside the stage, or in a cluster as a Deployment"
    )
    adapters: Literal["load", "wait"] = Field(
        "load", description="load: over HTTP, from a folder that the server sees; wait: the server fetches adapters itself"
    )
    max_requests: Annotated[Count, Field(le=10_000)] = Field(64, description="requests in flight per client")
    timeout_seconds: Rate = Field(120.0, description="longest wait for one answer of a vLLM server")
    batch_sequences: Batch = Field(256, description="embedded: most sequences sampled in one batch")
    startup_seconds: Rate = Field(300.0, description="how long a server may take to become ready")

    @property
    def needs_weights(self) -> bool:
        """Whether whoever asks this policy needs the base model's weights; a server elsewhere has its own."""
        return self.backend == "embedded" or self.starts_vllm

    @property
    def starts_vllm(self) -> bool:
        """Whether a vLLM server is started for this policy: wanted, and not somewhere else already."""
        return self.backend == "vllm" and self.url is None


ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Where boto3 looks for an endpoint that no setting names, the first that is set."""


class StoreConfig(Section):
    """S3 access beyond `root`; credentials come from the environment, as boto3 finds them."""

    endpoint_url: Url | None = Field(None, description="URL of an S3-compatible store; null: AWS")
    region: str | None = Field(None, description="AWS region; null: as boto3 finds it")
    path_style: bool = Field(False, description="put the bucket into the path instead of the host name, as many S3-compatible stores want")
    checksums: Literal["when_supported", "when_required"] = Field(
        "when_required", description="when requests carry the newer checksums, which some stores refuse"
    )
    max_connections: Annotated[Count, Field(le=10_000)] = Field(16, description="connections to the store at a time")


class RuntimeConfig(Section):
    """How and where stages run. Runs nothing again; the number of threads can change the last bits of a result."""

    backend: Backend = Field("local", description="processes on this machine, or Jobs in a cluster")
    threads: Annotated[CountOrZero, Field(le=4096)] = Field(
        0, description="CPU threads of the stages that run side by side, in a cluster of a pod; 0 = all cores, of a pod cpu_limit or cpu"
    )
    warm_start: bool = Field(True, description="local: fork stages from one process that has imported torch already")
    overlap_evaluation: bool = Field(False, description="evaluate an iteration while the next one scores and searches; needs room for both")
    max_attempts: Annotated[Count, Field(le=1000)] = Field(
        3, description="local: tries per stage when its exit code says that a retry can help; in a cluster see kubernetes.backoff_limit"
    )
    worker_timeout_seconds: Rate = Field(1800.0, description="longest wait of training processes for each other before they end with 69")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="a stage's log lines; auto: console on a terminal, else json. Pods write json always"
    )


class RunConfig(Section):
    """One training run."""

    run: Annotated[str, Field(pattern=RUN_NAME)] = Field(
        "demo", description="the run's name, a DNS label, in a cluster best one that begins with a letter; its artifacts lie below root/run"
    )
    root: Filled = Field("runs", description="artifacts: a folder (relative: to the working directory) or s3://bucket/prefix")
    reuse_from: Annotated[str, Field(pattern=RUN_NAME)] | None = Field(None, description="another run whose equal artifacts are reused")
    seed: CountOrZero = Field(17, description="seed of the run, from which that of every stage, tree and sample is derived")
    iterations: Annotated[CountOrZero, Field(le=10_000)] = Field(
        3, description="iterations after the warm-up; a higher number extends the run"
    )
    method: Method = Field("mcts_dpo", description="the method, or a control: best_of_n, rejection_sampling, sft_continued")
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    dpo: DpoConfig = Field(default_factory=DpoConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)
    kubernetes: KubernetesConfig = Field(default_factory=KubernetesConfig)

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        if self.data.source != "demo" and self.data.path is None:
            raise ValueError(f"data.path is missing: source {self.data.source} needs a file, a folder or a hub id")
        for name, count in (("count", self.data.count), ("held_out_count", self.data.held_out_count)):
            if self.data.source == "demo" and count is not None and count > MOST_DEMO_EXAMPLES:
                raise ValueError(f"data.{name} = {count}: the demo generates at most {MOST_DEMO_EXAMPLES} examples")
        splits_held_out_off = self.data.source != "demo" and self.data.held_out_path is None
        split_off = self.data.held_out_fraction if splits_held_out_off else 0.0
        if self.data.buffer_fraction + self.data.validation_fraction + split_off >= 1.0:
            names = "buffer, validation and held-out" if splits_held_out_off else "buffer and validation"
            raise ValueError(f"data: {names} fractions leave nothing for the warm-up; make their sum less than 1")
        if self.model.max_response_tokens >= self.model.context_tokens:
            raise ValueError("model.max_response_tokens must be less than model.context_tokens")
        if self.data.buffer_labels == "checker" and (self.select.by == "perplexity" and self.method != "sft_continued"):
            raise ValueError("select.by perplexity needs ground-truth text; with data.buffer_labels checker use pass_rate")
        if self.runtime.backend == "kubernetes" and not self.root.startswith("s3://"):
            raise ValueError(
                f"root = {self.root!r} is a folder, which pods do not share; use s3://bucket/prefix with runtime.backend kubernetes"
            )
        if self.has_services and self.run[0].isdigit():
            raise ValueError(
                f"run = {self.run!r} begins with a digit, which the name of a Service must not: in a cluster vLLM's pods, "
                "and those of a training over several nodes, are found by one; begin it with a letter"
            )
        if self.has_managed_serving and self.model.dtype == "float32" and not self.kubernetes.serving.runs_on_cpu:
            raise ValueError(
                "model.dtype = 'float32': vLLM computes adapters on a GPU in bfloat16 only; "
                "use bfloat16, or kubernetes.serving.device cpu with an image of vLLM's CPU build"
            )
        if self.data.buffer_labels == "checker" and self.method == "sft_continued":
            raise ValueError("method sft_continued needs ground-truth text; data.buffer_labels is checker")
        return self

    @property
    def has_managed_serving(self) -> bool:
        """Whether the controller runs vLLM for this run, as a Deployment; on one machine each stage starts its own."""
        return self.runtime.backend == "kubernetes" and self.policy.starts_vllm

    @property
    def has_services(self) -> bool:
        """Whether pods of the run are found by a Service: vLLM's, or those of a training that spans nodes."""
        spans_nodes = any(pod.nodes > 1 for pod in self.kubernetes.stages.values())
        return self.has_managed_serving or (self.runtime.backend == "kubernetes" and spans_nodes)

    def as_yaml(self) -> str:
        """The configuration as a YAML document that `load_config` reads back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path | None, overrides: list[str] | None = None, options: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML file (None: the defaults), apply `a.b=c` overrides (values are YAML), then `options`, check everything.

    Raises ConfigError with the key, the value and what is allowed.
    """
    document = _read_document(path) if path is not None else {}
    return parse_config(document, overrides, options, origin=str(path) if path else "configuration")


def parse_config(
    document: dict[str, Any], overrides: list[str] | None = None, options: Mapping[str, Any] | None = None, *, origin: str = "configuration"
) -> RunConfig:
    """Apply `a.b=c` overrides, then options (`a.b` and its value), to a mapping, in place, and check everything. Raises ConfigError."""
    overrides, options = overrides or [], options or {}
    _apply(document, overrides, options)
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(_explain(error, _origin_of(problem, overrides, options, origin))) from None


def drop_unknown_keys(document: dict[str, Any]) -> None:
    """Remove the keys of a mapping that no setting has, in place; all else is left for `parse_config` to judge."""
    try:
        RunConfig.model_validate(document)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            if problem["type"] == "extra_forbidden":
                *sections, key = problem["loc"]
                holder: Any = document
                for section in sections:
                    holder = holder[section]
                del holder[key]


def check_run_name(name: str) -> None:
    """Raise ConfigError for a name that no run can have, before anything is looked up under it."""
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(f"run = {name!r} is no {FORMS[RUN_NAME]}")


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist", remedy="Give an existing file with --config") from None
    except IsADirectoryError:
        raise ConfigError(f"configuration file {absolute_path(path)} is a folder", remedy="Give a file with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    except RepeatedKey as error:
        raise ConfigError(f"configuration file {path}, {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {yaml_problem(error)}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"configuration file {path} holds a {type(document).__name__}, not a mapping of sections")
    return document


def _apply(document: dict[str, Any], overrides: list[str], options: Mapping[str, Any]) -> None:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(f"--set {override!r} is not of the form section.key=value")
        try:
            value = read_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
        _put(document, key.strip(), value, f"--set {override}")
    for key, value in options.items():
        _put(document, key, value, OPTIONS)


def _put(document: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        section = document.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{origin}: {key} cannot be set, as {parent} is a value, not a section")
        document = section
    document[leaf] = value


def _origin_of(problem: ErrorDetails, overrides: list[str], options: Mapping[str, Any], origin: str) -> str:
    """Where what is refused comes from: the last --set that gave it, or the document, with each --set of a section that is at odds."""
    key = _joined(problem["loc"])
    if key in options:
        return OPTIONS
    named = [(override.partition("=")[0].strip(), f"--set {override}") for override in overrides]
    giving = [text for name, text in named if _is_within(key, name)]
    below = [text for name, text in named if _is_within(name, key)]
    if giving or (below and problem["type"] in UNKNOWN):
        return (giving or below)[-1]
    return f"{origin} with {' '.join(below)}" if below else origin


def _is_within(key: str, section: str) -> bool:
    """Whether a key is the section (empty: the whole), or lies in it."""
    return not section or key == section or key.startswith(f"{section}.")


def _joined(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location if part != "[key]")


def _explain(error: ValidationError, origin: str) -> str:
    """One line for the first problem, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = _joined(first["loc"]) or "configuration"
    if first["type"] in UNKNOWN:
        text = f"{origin}: unknown key {key}; allowed here: {', '.join(_siblings(first['loc']))}"
    elif first["type"] == "value_error":
        text = f"{origin}: {key + ': ' if first['loc'] else ''}{first['ctx']['error']}"
    elif first["type"] in ("model_type", "dict_type"):
        text = f"{origin}: {key} = {show_value(first['input'])} is no section: give settings below it, or leave it out"
    elif first["type"] == "string_too_short":
        text = f"{origin}: {key} is empty; {'use a folder or s3://bucket/prefix' if key == 'root' else 'give a value, or leave it out'}"
    elif first["type"] == "string_type" and isinstance(first["input"], int | float):
        example = ", as in --set 'KEY=\"...\"'" if origin.startswith("--set ") else ""
        text = f"{origin}: {key} = {show_value(first['input'])} is no text; put the value in quotes{example}"
    elif first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] in FORMS:
        text = f"{origin}: {key} = {first['input']!r} is no {FORMS[first['ctx']['pattern']]}"
    else:
        message = first["msg"][:1].lower() + first["msg"][1:]
        text = f"{origin}: {key} = {show_value(first['input'])}: {message}"
    text = re.sub(r"//\S*@", "//...@", text)  # a password is nobody's to read
    more = len(problems) - 1
    return text + (f" ({more} more problem{'s' if more > 1 else ''})" if more else "")


def show_value(value: Any) -> str:
    """A value as a person wrote it in YAML: null, true and false, not Python's names."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed beside the last one; a mapping's keys are names, its values are sections."""
    model: Any = RunConfig
    for part in location[:-1]:
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[str(part)].annotation
    return sorted(model.model_fields)
