"""The shipped configurations: valid, and planned without touching a model, a hub or a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from itool.artifacts.resolve import resolve
from itool.artifacts.store import FolderStore
from itool.config import load_config, parse_config
from itool.errors import ConfigError
from itool.stages import STAGES, StageId, flatten, inputs_of, stage_ids

CONFIGS = Path(__file__).parents[1] / "configs"

CHANGE_NO_RESULT = {
    "root",  # where artifacts lie
    "reuse_from",
    "store",
    "runtime",  # where stages run
    "kubernetes",
    "evaluate.batch_sequences",  # how many sequences at a time: equal up to rounding
    "policy.batch_sequences",
    "policy.max_requests",
    "policy.url",  # which server answers, and how long it is waited for
    "policy.adapters",
    "policy.timeout_seconds",
    "policy.startup_seconds",
}
"""Sections and settings that no stage's result depends on."""


@pytest.mark.parametrize("name", ["demo", "smollm2", "paper"])
def test_a_shipped_configuration_is_valid_and_survives_being_written(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.run == name
    assert parse_config(yaml.safe_load(config.as_yaml())) == config


def test_the_paper_setting_is_planned_stage_by_stage(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "paper.yaml")
    plan = resolve(FolderStore(tmp_path), config)
    assert [str(stage) for stage in plan][:5] == ["i0/prepare", "i0/warmup", "i0/evaluate", "i1/score", "i1/generate"]
    assert len(plan) == 3 + 4 * config.iterations + 1
    assert plan[stage_ids(config)[0]].state == "missing"
    assert {resolution.state for resolution in list(plan.values())[1:]} == {"waiting"}


def test_every_value_of_the_paper_setting_names_its_source() -> None:
    lines = (CONFIGS / "paper.yaml").read_text().splitlines()
    values = [line for line in lines if line.startswith("  ") and ":" in line.split("#")[0]]
    assert [line for line in values if "#" not in line] == []


def test_every_setting_is_read_by_a_stage_or_changes_no_result() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    read = tuple(f"{path}." for stage in STAGES.values() for path in stage.settings)
    unread = {key for key in flatten(config.model_dump(mode="json")) if not f"{key}.".startswith(read)}
    assert {key.split(".")[0] if key.split(".")[0] in CHANGE_NO_RESULT else key for key in unread} == CHANGE_NO_RESULT


def test_a_stage_reads_only_stages_before_it() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    seen: set[str] = set()
    for stage in stage_ids(config):
        assert {str(other) for other in inputs_of(config, stage).values()} <= seen
        seen.add(str(stage))


@pytest.mark.parametrize(
    ("method", "reads"), [("mcts_dpo", True), ("best_of_n", True), ("rejection_sampling", False), ("sft_continued", False)]
)
def test_only_training_on_pairs_reads_a_reference(method: str, reads: bool) -> None:
    config = parse_config({"method": method, "dpo": {"reference": "warmup"}})
    assert ("reference" in inputs_of(config, StageId(2, "dpo"))) is reads


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.alpha=0", "select.alpha = 0: input should be greater than 0"),
        ("search.width=0", "search.width = 0"),
        ("dpo.beta=-1", "dpo.beta = -1"),
        ("dpo.bta=1", "unknown key dpo.bta; allowed here: "),
        ("kubernetes.stages.dpo.gpu=1", "unknown key kubernetes.stages.dpo.gpu; allowed here: affinity, "),
        ("kubernetes.stages.score.nodes=2", "nodes = 2: only stages.warmup and stages.dpo can span nodes"),
        ("kubernetes.pods.memory=2GB", "kubernetes.pods.memory = '2GB'"),
        ("runtime.backend=kubernetes", "is a folder, which pods do not share"),
        ("evaluate.pass_k=[]", "evaluate: pass_k is empty and pass_examples is 60: give at least one k, or set pass_examples to 0"),
        ("run=Bad", "run = 'Bad'"),
        ("policy.url=vllm:8000", "policy.url = 'vllm:8000' is no URL: use http://host:8000 or https://host"),
        ("policy.url=http://host:port", "policy.url = 'http://host:port' is no URL"),
        (
            "policy.url=http://me:sec/ret@host:8000",
            "--set policy.url=http://...@host:8000: policy.url = 'http://...@host:8000' is no URL: use http://host:8000",
        ),
        ("store.endpoint_url=minio:9000", "store.endpoint_url = 'minio:9000' is no URL"),
        ("kubernetes.queue=Foo", "kubernetes.queue = 'Foo' is no DNS name: use small letters"),
        ("kubernetes.labels={bad key: x}", "kubernetes.labels.bad key = 'bad key' is no label key: use name"),
        ("kubernetes.image_tag=0x_", "--set kubernetes.image_tag: '0x_' is not a YAML value"),
        ("kubernetes.image_tag=1.10", """kubernetes.image_tag = 1.1 is no text; put the value in quotes, as in --set 'KEY="..."'"""),
        ("kubernetes.image_tag=007", "kubernetes.image_tag = 7 is no text; put the value in quotes"),
        ("run=true", "run = true is no text; put the value in quotes"),
        ("kubernetes.pods.env={PORT: 80}", "kubernetes.pods.env.PORT = 80 is no text; put the value in quotes"),
        ("kubernetes.pods.cpu=-1", "kubernetes.pods.cpu = '-1' is no quantity: use a number with a unit, as in 500m, 2 or 4Gi"),
        ("kubernetes.pods.cpu=.inf", "kubernetes.pods.cpu = 'Infinity' is no quantity"),
        ("kubernetes.pods.cpu=true", "kubernetes.pods.cpu = true"),
        ("dpo=3", "dpo = 3 is no section: give settings below it, or leave it out"),
        ("model=", "model = null is no section: give settings below it"),
        ("kubernetes.stages=3", "kubernetes.stages = 3 is no section"),
        ("seed=", "seed = null: input should be a valid integer"),
        (".dpo.beta=1", "--set '.dpo.beta=1' is not of the form section.key=value"),
        ("model={1: 2}", "unknown key model.1; allowed here: chat_template, "),
        ("root=''", "root is empty; use a folder or s3://bucket/prefix"),
        ("data.path=''", "data.path is empty; give a value, or leave it out"),
        ("data.held_out_path=''", "data.held_out_path is empty"),
        ("model.path=''", "model.path is empty"),
        ("data.source=xlam", "data.path is missing"),
        ("nonsense", "--set 'nonsense' is not of the form section.key=value"),
        ("iterations=1000000", "iterations = 1000000: input should be less than or equal to 10000"),
        ("search.shards=99999999", "search.shards = 99999999: input should be less than or equal to 10000"),
        ("runtime.threads=99999999", "runtime.threads = 99999999: input should be less than or equal to 4096"),
        ("evaluate.pass_k=[1, 99999999]", "evaluate.pass_k.1 = 99999999: input should be less than or equal to 10000"),
        ("data.count=999999999", "data.count = 999999999: input should be less than or equal to 10000000"),
        ("data.count=200000", "data.count = 200000: the demo generates at most 100000 examples"),
        ("model.lora_alpha=1e300", "model.lora_alpha = '1e300': input should be less than or equal to 10000"),
        ("warmup.learning_rate=.inf", "warmup.learning_rate = inf: input should be a finite number"),
        ("search.c_puct=.nan", "search.c_puct = nan: input should be a finite number"),
        ("seed=true", "seed = true: input should be a number, not true or false"),
        ("data.count=true", "data.count = true: input should be a number, not true or false"),
        ("evaluate.pass_k=[true]", "evaluate.pass_k = [True]: input should be a number, not true or false"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "demo.yaml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_of_a_file_is_text_in_quotes_only(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: 20261127\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(raised.value) == f"{path}: run = 20261127 is no text; put the value in quotes"
    path.write_text('run: "20261127"\n')
    assert load_config(path, ["""kubernetes.image_tag="1.10\""""]).kubernetes.image_tag == "1.10"


def test_a_date_is_a_name_as_good_as_another() -> None:
    config = load_config(None, ["run=2026-11-27", "kubernetes.image_tag=2026-11-31", "model.revision=2026-11-27T10:00:00Z"])
    assert (config.run, config.kubernetes.image_tag, config.model.revision) == ("2026-11-27", "2026-11-31", "2026-11-27T10:00:00Z")


@pytest.mark.parametrize(
    ("value", "quantity"), [("2", "2"), ("0.5", "0.5"), ("2.0", "2"), ("2147483648", "2147483648"), ("2.147483648e+09", "2147483648")]
)
def test_a_quantity_may_be_a_number(value: str, quantity: str) -> None:
    pod = load_config(None, [f"kubernetes.pods.cpu_limit={value}"]).kubernetes.pods
    assert (pod.cpu_limit, pod.cpu) == (quantity, "1")


def test_a_run_that_needs_services_begins_with_a_letter() -> None:
    cluster = {"root": "s3://bucket/runs", "runtime": {"backend": "kubernetes"}}
    for services in (
        {"policy": {"backend": "vllm"}, "kubernetes": {"serving": {"device": "cpu"}}},
        {"kubernetes": {"stages": {"dpo": {"nodes": 2}}}},
    ):
        with pytest.raises(
            ConfigError, match=r"run = '2026-11' begins with a digit, which the name of a Service must not: .* begin it with a letter"
        ):
            parse_config({"run": "2026-11", **cluster, **services})
        parse_config({"run": "r2026-11", **cluster, **services})
        parse_config({"run": "2026-11", **services})
    parse_config({"run": "2026-11", **cluster})
    parse_config({"run": "2026-11", **cluster, "policy": {"backend": "vllm", "url": "http://elsewhere:8000"}})


def test_the_held_out_fraction_counts_only_where_it_is_split_off() -> None:
    fractions = {"buffer_fraction": 0.8, "validation_fraction": 0.1, "held_out_fraction": 0.2}
    parse_config({"data": fractions})
    parse_config({"data": {"source": "xlam", "path": "a", "held_out_path": "b", **fractions}})
    with pytest.raises(ConfigError, match="data: buffer, validation and held-out fractions leave nothing for the warm-up"):
        parse_config({"data": {"source": "xlam", "path": "a", **fractions}})
    with pytest.raises(ConfigError, match="data: buffer and validation fractions leave nothing for the warm-up"):
        parse_config({"data": {**fractions, "validation_fraction": 0.2}})


def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 6)),
        "run: *a5",
    ]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"run.yaml is not YAML: line 5: with its aliases followed it holds more than 100000 values"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("run:\n  &a [*a]")
    with pytest.raises(ConfigError, match=r"run.yaml is not YAML: line 2: with its aliases followed it holds itself"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("warmup: &training {batch_tokens: 100}\ndpo: {<<: *training, updates: 3}\n")
    assert load_config(tmp_path / "run.yaml").dpo.batch_tokens == 100


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: a\nwarmup:\n  epochs: 1\n  batch_examples: 8\n  epochs: 2\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 5: key epochs stands in line 3 already"):
        load_config(path)
    path.write_text("dpo: {updates: 2, updates: 3}\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 1: key updates stands in line 1 already"):
        load_config(path)
    path.write_text("dpo: &base {updates: 2}\nsearch: {width: 2}\n")
    assert load_config(path).dpo.updates == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dpo:\n\tbeta: 0.1\n", r"line 2: while scanning for the next token, found character '\t' that cannot start any token"),
        ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream, but found another document"),
        ("seed: 0x_\n", "invalid literal for int() with base 16: ''"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert str(raised.value) == f"configuration file {path} is not YAML: {problem}"


def test_a_key_may_override_a_merged_one(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("""
kubernetes:
  pods: &pods {gpus: 1, memory: 2Gi}
  stages:
    dpo: &dpo {<<: *pods, gpus: 2}
    warmup: {<<: *dpo, gpus: 3}
""")
    kubernetes = load_config(path).kubernetes
    assert [(pod.gpus, pod.memory) for pod in (kubernetes.stages["dpo"], kubernetes.stages["warmup"])] == [(2, "2Gi"), (3, "2Gi")]
