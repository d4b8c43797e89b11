"""The run's configuration as the chart hands it to the controller."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from itool.config import RunConfig, load_config, parse_config
from tests.helm.rendering import REPOSITORY, render


def config_of(changes: dict[str, Any]) -> RunConfig:
    return parse_config(yaml.safe_load(render({"run": changes})["config-map.yaml"]["data"]["config.yaml"]))


def as_on_a_laptop(config: RunConfig) -> RunConfig:
    """Without what the chart sets."""
    runtime = config.runtime.model_copy(update={"backend": "local"})
    accounts = {"job_service_account": "default", "serving_service_account": "default"}
    return config.model_copy(update={"runtime": runtime, "kubernetes": config.kubernetes.model_copy(update=accounts)})


@pytest.mark.parametrize("name", ["demo", "smollm2", "paper"])
def test_a_configuration_file_means_the_same_below_run(name: str) -> None:
    path = REPOSITORY / "configs" / f"{name}.yaml"
    changes = {"root": "s3://bucket/prefix", "store": {"endpoint_url": "http://s3.example:9000"}}
    expected = load_config(path, ['root="s3://bucket/prefix"', 'store.endpoint_url="http://s3.example:9000"'])
    assert as_on_a_laptop(config_of({**yaml.safe_load(path.read_text()), **changes})) == expected


def test_a_complete_configuration_with_nulls_survives(tmp_path: Path) -> None:
    complete = parse_config(
        {"root": "s3://bucket/prefix", "store": {"endpoint_url": "http://s3.example:9000"}, "dpo": {"learning_rate": 1e-7}}
    )
    assert as_on_a_laptop(config_of(yaml.safe_load(complete.as_yaml()))) == complete


def test_dates_and_quantities_need_no_quotes_here_and_there(tmp_path: Path) -> None:
    text = """
run: 2026-11-27
root: s3://bucket/prefix
store: {endpoint_url: http://s3.example:9000}
model: {revision: 2026-11-30}
kubernetes: {image_tag: 2026-11-31, pods: {cpu: 2, cpu_limit: 2.5, memory: 2147483648}}
"""
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "values.yaml").write_text("run:\n" + textwrap.indent(text, "  "))
    expected = load_config(tmp_path / "run.yaml")
    assert (expected.run, expected.kubernetes.pods.memory) == ("2026-11-27", "2147483648")
    rendered = render({}, "-f", str(tmp_path / "values.yaml"))
    (tmp_path / "config.yaml").write_text(rendered["config-map.yaml"]["data"]["config.yaml"])
    assert as_on_a_laptop(load_config(tmp_path / "config.yaml")) == expected
    assert rendered["controller/job.yaml"]["metadata"]["labels"]["itool/run"] == "2026-11-27"


def test_the_defaults_are_those_of_the_program() -> None:
    assert as_on_a_laptop(config_of({})) == parse_config(
        {"root": "s3://bucket/prefix", "store": {"endpoint_url": "http://s3.example:9000"}}
    )


def test_the_chart_sets_the_backend_and_its_service_accounts() -> None:
    config = config_of({"runtime": {"backend": "local", "threads": 2}})
    assert (config.runtime.backend, config.runtime.threads) == ("kubernetes", 2)
    assert (config.kubernetes.job_service_account, config.kubernetes.serving_service_account) == ("demo-jobs", "demo-serving")


def test_the_controller_uses_the_endpoint_of_pods() -> None:
    config = config_of({"store": {"endpoint_url": "http://laptop:9000"}, "kubernetes": {"store_endpoint_url": "http://s3.cluster:9000"}})
    assert config.store.endpoint_url == "http://s3.cluster:9000"
