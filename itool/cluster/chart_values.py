"""What the chart may be given: its own settings and, under `run`, the run's configuration exactly as `--config` reads it.

This is the one source of three files of `helm/itool`: `python -m itool.cluster.chart_values helm/itool` writes values.yaml, its JSON Schema
and the table in the README, and a test fails when one is stale. A setting that `RunConfig` has (images, the credentials Secret, pods) has
no second place here. Keys are camelCase, as Helm's users expect; those below `run` keep the names of the configuration file.
"""

from __future__ import annotations

import html
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from itool.cluster.chart_network import CIDR, Cidr, EgressRule, Peer, Port
from itool.config import RunConfig
from itool.config_kubernetes import QUANTITY, Annotations, DnsName, Labels, MetadataKey, Quantity
from itool.config_section import URL, Section

VariableName = Annotated[str, Field(pattern="^[-._A-Za-z][-._A-Za-z0-9]*$")]
Resources = dict[Literal["requests", "limits"], dict[MetadataKey, Quantity]]
SMALL: Resources = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}
MONITORING: Peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

RUN_KEYS_OF_TEMPLATES = frozenset(
    {"run", "root", "iterations", "policy.backend", "policy.url", "store.endpoint_url"}
    | {f"kubernetes.image_{part}" for part in ("repository", "tag", "pull_policy", "pull_secrets")}
    | {f"kubernetes.{part}" for part in ("images", "store_endpoint_url", "credentials_secret", "queue", "labels")}
    | {"kubernetes.stages", "kubernetes.serving.replicas"}
)
"""What the templates read of `run`. values.yaml shows these with their defaults, so that no template repeats a default."""

WORDS = {
    "integer": ("a whole number", "without quotes"),
    "number": ("a number", "without quotes (--set-json)"),
    "boolean": ("true or false", "without quotes"),
    "array": ("a list", "in brackets (--set-json)"),
    "object": ("a mapping", "in braces (--set-json)"),
}
"""What to write where Helm has read a string instead. `--set` makes strings of numbers with a point."""

STRING = "a string in quotes (--set-string)"
"""What Helm prints where it has read no string: `--set` makes a number of 5 and a boolean of true. It cannot print a number."""

PATTERNS = {
    CIDR: "^an address range, like 10.0.0.0/8 or fd00::/8$",
    QUANTITY: "^a quantity, like 500m or 2Gi$",
    URL: "^an address, like http://minio:9000$",
}
"""What Helm prints instead of a pattern that says too little."""

NOT_EMPTY = "^a text that is not empty$"
"""What Helm prints instead of a length."""

TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)


class ChartSection(Section):
    """Base of the chart's own sections: camelCase in YAML."""

    model_config = ConfigDict(alias_generator=to_camel)


class ServiceAccount(ChartSection):
    """One identity in the cluster."""

    create: bool = Field(True, description="create it; false: it exists already, under `name`")
    name: DnsName | None = Field(None, description="null: named after the release")
    annotations: Annotations = Field(
        default_factory=dict, description="workload identity, e.g. eks.amazonaws.com/role-arn or iam.gke.io/gcp-service-account"
    )


class ServiceAccounts(ChartSection):
    """Three identities, because three kinds of pods need three different rights."""

    controller: ServiceAccount = Field(default_factory=ServiceAccount, description="the only one with a token for the API server")
    jobs: ServiceAccount = Field(default_factory=ServiceAccount, description="stage pods: S3, no API server")
    serving: ServiceAccount = Field(default_factory=ServiceAccount, description="vLLM pods: S3, no API server")


class Rbac(ChartSection):
    """The controller's rights."""

    create: bool = Field(True, description="create the Role and its binding; false: somebody has bound these rights already")


class Controller(ChartSection):
    """The controller's pod, and the pods of the checks, which run the same image."""

    resources: Resources = Field(default_factory=lambda: SMALL, description="requests and limits")
    node_selector: Labels = Field(default_factory=dict, description="where it may run")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="taints that it tolerates")
    affinity: dict[str, Any] = Field(default_factory=dict, description="where it would rather run")
    priority_class: DnsName | None = Field(None, description="priority class")
    env: dict[VariableName, str] = Field(
        default_factory=dict, description="extra environment variables: a proxy, a CA bundle; of stages: run.kubernetes.pods.env"
    )
    volumes: list[dict[str, Any]] = Field(default_factory=list, description="extra volumes, as in a pod's `volumes`")
    volume_mounts: list[dict[str, Any]] = Field(default_factory=list, description="where the extra volumes are mounted")


class StoreNetwork(ChartSection):
    """How every pod reaches S3."""

    ports: list[Port] = Field(
        default_factory=list, description="ports of the S3 pods or hosts, behind any Service; empty: the port of the endpoint's URL"
    )
    peers: list[Peer] = Field(
        default_factory=list, description="where S3 is (NetworkPolicyPeers); empty: any address that is not the API server's"
    )


class ApiServerNetwork(ChartSection):
    """How the controller, and nobody else, reaches the API server."""

    ports: list[Port] = Field(
        min_length=1, default_factory=lambda: [443, 6443], description="its ports, in front of and behind its Service"
    )
    cidrs: list[Cidr] = Field(
        default_factory=list,
        description="its addresses; needed when S3 answers on one of its ports, so that S3's opening leaves them out. Empty: any address",
    )


class NetworkPolicy(ChartSection):
    """Default deny for all pods of the run, and the openings that it needs."""

    enabled: bool = Field(True, description="create the policies; the cluster's network must enforce them")
    dns_peers: list[Peer] = Field(default_factory=list, description="where DNS is (NetworkPolicyPeers); empty: port 53 of any address")
    store: StoreNetwork = Field(default_factory=StoreNetwork)
    api_server: ApiServerNetwork = Field(default_factory=ApiServerNetwork)
    extra_egress: list[EgressRule] = Field(
        default_factory=list,
        description="more openings for all pods (NetworkPolicyEgressRules): a model hub, a policy.url, the cloud's identity service",
    )


class PodMonitor(ChartSection):
    """Prometheus reads vLLM's metrics (policy.backend vllm without a url)."""

    enabled: bool = Field(False, description="needs the PodMonitor CRD of the Prometheus operator")
    interval: Annotated[str, Field(pattern=r"^[0-9]+(ms|s|m|h)$")] = Field("30s", description="time between two readings")
    labels: Labels = Field(default_factory=dict, description="labels by which Prometheus selects it")
    peers: list[Peer] = Field(
        min_length=1,
        default_factory=lambda: [MONITORING],
        description="who may read /metrics (NetworkPolicyPeers)",
    )


class Preflight(ChartSection):
    """Hooks that run before an installation or upgrade creates anything."""

    enabled: bool = Field(
        True, description="ask for a pod like the controller's, check the configuration, and write, read and delete one object in S3"
    )


class ChartValues(ChartSection):
    """All values of the chart."""

    run: RunConfig = Field(
        default_factory=RunConfig,
        description="The run: the document that `itoolctl --config` reads. Below stand the keys that the chart reads itself; "
        "all keys, with types and defaults: `itoolctl schema`",
    )
    service_accounts: ServiceAccounts = Field(default_factory=ServiceAccounts)
    rbac: Rbac = Field(default_factory=Rbac)
    controller: Controller = Field(default_factory=Controller)
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    pod_monitor: PodMonitor = Field(default_factory=PodMonitor)
    preflight: Preflight = Field(default_factory=Preflight)
    from_parent: dict[str, Any] = Field(
        default_factory=dict, alias="global", description="Helm hands it to subcharts; iTool reads nothing from it"
    )


@dataclass(frozen=True)
class Value:
    """One key of values.yaml. `default` is None for a section and for null; `section` tells them apart."""

    path: tuple[str, ...]
    description: str
    section: bool
    default: Any = None


def schema_document() -> dict[str, Any]:
    """The JSON Schema of the values, in the plain form that lets Helm explain each mistake in a single line: key, value, what is wanted.

    Helm checks what is left after it has merged the values with values.yaml and dropped what a user sets to null. So every key with a
    default is required: null would take it from the templates.
    """
    schema: dict[str, Any] = _plain(ChartValues.model_json_schema(by_alias=True))
    for value in values():
        if value.section or value.default is not None:
            section = _section(schema, value.path[:-1])
            section["required"] = sorted({value.path[-1], *section.get("required", ())})
    schema["$defs"] |= {"NoString": _no_string(STRING), "NeitherStringNorNull": _no_string(f"null, or {STRING}")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def values(model: type[BaseModel] = ChartValues, path: tuple[str, ...] = ()) -> Iterator[Value]:
    """Every key of values.yaml in its order, sections before their keys; of `run` only what the templates read."""
    defaults = model()
    for name, field in model.model_fields.items():
        key = (*path, field.alias or name)
        default = getattr(defaults, name)
        section = isinstance(default, BaseModel)
        if key[0] == "run" and len(key) > 1 and not _templates_read(".".join(key[1:])):
            continue
        described = field.description or (section and (type(default).__doc__ or "").partition("\n")[0]) or ""
        yield Value(key, described, section, None if section else default)
        if section:
            yield from values(type(default), key)


def values_yaml() -> str:
    """values.yaml: each key with its default, under a `# --` comment that says what it is."""
    lines = ["# Written by `make chart` from itool/cluster/chart_values.py; edit there."]
    for value in values():
        indent = "  " * (len(value.path) - 1)
        lines += [""] if len(value.path) == 1 else []
        comment = textwrap.wrap(value.description, 130, initial_indent=f"{indent}# -- ", subsequent_indent=f"{indent}# ")
        lines += [*comment, f"{indent}{value.path[-1]}:" + ("" if value.section else f" {json.dumps(value.default)}")]
    return "\n".join(lines) + "\n"


def values_table() -> str:
    """The README's table of values, in Markdown."""
    rows = [
        f"| `{'.'.join(value.path)}` | `{json.dumps(value.default)}` | {html.escape(value.description, quote=False)} |"
        for value in values()
        if not value.section
    ]
    return "\n".join(["| key | default | what |", "|---|---|---|", *rows]) + "\n"


def main(chart: Path) -> None:
    """Write the three files of the chart."""
    (chart / "values.schema.json").write_text(json.dumps(schema_document(), indent=2) + "\n", encoding="utf-8")
    (chart / "values.yaml").write_text(values_yaml(), encoding="utf-8")
    readme = chart / "README.md"
    readme.write_text(TABLE.sub(lambda _: values_table(), readme.read_text(encoding="utf-8")), encoding="utf-8")


def _templates_read(path: str) -> bool:
    return any(key == path or key.startswith(f"{path}.") for key in RUN_KEYS_OF_TEMPLATES)


def _section(schema: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The part of the schema that describes the section at a path."""
    section = schema
    for key in path:
        section = section["properties"][key]
        section = schema["$defs"][section["$ref"].rpartition("/")[2]] if "$ref" in section else section
    return section


def _plain(node: Any) -> Any:
    """A schema whose violations Helm explains in a line: without titles and `enum`, with a single `type`, and with words for strings.

    `anyOf: [X, null]` is folded into X with two types, and a mapping with fixed keys lists them.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"anyOf": [{"type": kind} as option, {"type": "null"}], **rest}:
            node = rest | option | {"type": [*([kind] if isinstance(kind, str) else kind), "null"]}
    match node:
        case {"propertyNames": {"enum": [*names]}, "additionalProperties": dict() as value, **rest}:
            node = rest | {"properties": dict.fromkeys(names, value), "additionalProperties": False}
    match node:
        case {"patternProperties": dict()}:
            node = node | {"additionalProperties": False}
    match node:
        case {"enum": [str(), *_] as options, **rest}:
            node = rest | {"pattern": f"^({'|'.join(re.escape(option) for option in options)})$"}
    return _quoted(_in_words({key: _plain(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}))


def _in_words(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value, where a string that does not fit meets a pattern of words: Helm prints it, and the value beside it."""
    match schema:
        case {"pattern": str(pattern), **rest} if pattern in PATTERNS:
            return rest | {"if": {"pattern": pattern}, "else": {"pattern": PATTERNS[pattern]}}
        case {"minLength": 1, **rest}:
            return rest | {"if": {"minLength": 1}, "else": {"pattern": NOT_EMPTY}}
        case {"type": "object", "properties": properties, **rest}:  # which say nothing of a string
            return rest | {"properties": properties} | _in_words({"type": "object"})
        case {"type": str(kind)} if kind in WORDS:
            null = False
        case {"type": [str(kind), "null"]} if kind in WORDS:
            null = True
        case _:
            return schema
    what, how = WORDS[kind]
    said = {key: schema[key] for key in ("default", "description") if key in schema}
    words = f"^{what}{' or null' if null else ''}, {how}$"
    asked = {key: value for key, value in schema.items() if key not in said}
    return said | {"if": {"type": "string"}, "then": {"pattern": words}, "else": asked}


def _no_string(wanted: str) -> dict[str, Any]:
    """The schema that refuses all but strings with what is wanted; of two values it can say that they are not."""
    refused: dict[str, Any] = {"const": wanted}
    for value in (False, True):
        refused = {"if": {"const": value}, "then": {"const": f"{wanted}, not {json.dumps(value)}"}, "else": refused}
    return refused


def _quoted(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a string, where all else meets a constant of words: Helm prints it, and nothing but two types otherwise."""
    match schema:
        case {"type": ("string" | ["string", "null"]) as kind, **rest}:
            said = {key: rest.pop(key) for key in ("default", "description") if key in rest}
            name = "NoString" if kind == "string" else "NeitherStringNorNull"
            return said | {"if": {"type": kind}} | ({"then": rest} if rest else {}) | {"else": {"$ref": f"#/$defs/{name}"}}
    return schema


if __name__ == "__main__":
    main(Path(sys.argv[1]))
