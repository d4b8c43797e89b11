"""The chart's values, their schema and the README's table are what the pydantic models say."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from itool.cluster.chart_values import TABLE, ChartValues, schema_document, values, values_table, values_yaml
from itool.config import RunConfig, load_config
from tests.helm.rendering import CHART, REPOSITORY, deep_merge


def mistakes(document: dict[str, Any]) -> list[str]:
    """What the schema says of values, merged with the defaults as Helm does first."""
    check = jsonschema.Draft202012Validator(schema_document())
    check.check_schema(check.schema)
    return [error.message for error in check.iter_errors(deep_merge(yaml.safe_load(values_yaml()), document))]


def test_the_three_files_are_fresh() -> None:
    found = TABLE.search((CHART / "README.md").read_text())
    assert json.loads((CHART / "values.schema.json").read_text()) == schema_document(), "run `make chart`"
    assert (CHART / "values.yaml").read_text() == values_yaml(), "run `make chart`"
    assert found is not None
    assert found[0] == values_table(), "run `make chart`"


def test_the_defaults_are_those_of_the_models() -> None:
    document = yaml.safe_load(values_yaml())
    assert ChartValues.model_validate(document) == ChartValues()
    assert set(document) == {field.alias or name for name, field in ChartValues.model_fields.items()}


def test_every_value_says_what_it_is() -> None:
    assert [".".join(value.path) for value in values() if not value.description] == []


def test_the_schema_accepts_what_the_program_accepts() -> None:
    for name in ("demo", "smollm2", "paper"):
        complete = yaml.safe_load(load_config(REPOSITORY / "configs" / f"{name}.yaml").as_yaml())
        assert mistakes({"run": complete}) == []


def test_a_quantity_may_be_a_number_for_both() -> None:
    pods = {"cpu": 2, "cpu_limit": 0.5, "memory": 2.147483648e9, "memory_limit": None}
    document = {"run": {"kubernetes": {"pods": pods}}, "controller": {"resources": {"requests": {"cpu": 1}}}}
    assert mistakes(document) == []
    found = ChartValues.model_validate(document)
    assert found.run.kubernetes.pods.memory == "2147483648"
    assert found.controller.resources["requests"] == {"cpu": "1"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"run": {"iterations": "3"}}, "'3' does not match '^a whole number, without quotes$'"),
        ({"run": {"data": {"count": 0}}}, "0 is less than the minimum of 1"),
        ({"run": {"data": {"count": "many"}}}, "'many' does not match '^a whole number or null, without quotes$'"),
        ({"run": {"kubernetes": {"credentials_secret": 3}}}, "'null, or a string in quotes (--set-string)' was expected"),
        ({"run": {"kubernetes": {"pods": {"cpu": -1}}}}, "-1 is less than the minimum of 0"),
        ({"run": {"kubernetes": {"pods": {"cpu_limit": True}}}}, "True is not of type 'string', 'number', 'null'"),
        ({"run": {"run": True}}, "'a string in quotes (--set-string), not true' was expected"),
        ({"run": {"run": 1}}, "'a string in quotes (--set-string)' was expected"),
        ({"run": {"dpo": "sft"}}, "'sft' does not match '^a mapping, in braces"),
        ({"controller": {"image": "x"}}, "Additional properties are not allowed ('image' was unexpected)"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "'10.0.0.1' does not match"),
    ],
)
def test_the_schema_refuses_what_the_program_refuses(document: dict[str, Any], message: str) -> None:
    (mistake,) = mistakes(document)
    assert message in mistake


def test_run_is_the_configuration_itself() -> None:
    assert ChartValues.model_fields["run"].annotation is RunConfig
