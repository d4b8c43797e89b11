"""What the chart's network settings may hold: the parts of a NetworkPolicy, as Kubernetes spells them, closed against typing errors.

Kubernetes reads a rule without `to` as "to anywhere" and one without `ports` as "any port", and drops a key that it does not know. So a
misspelt or emptied key would open what it should close: unknown keys and empty lists are refused here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Required

from pydantic import ConfigDict, Field, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic's; it takes the one of `typing` from Python 3.12 on

from itool.config_kubernetes import Labels, LabelValue, MetadataKey

OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
CIDR_IPV4 = rf"({OCTET}\.){{3}}{OCTET}/(3[0-2]|[12]?[0-9])"
CIDR_IPV6 = r"[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}/(12[0-8]|1[01][0-9]|[1-9]?[0-9])"
CIDR = f"^({CIDR_IPV4}|{CIDR_IPV6})$"
PORT_NAME = "^[-a-z0-9]*[a-z][-a-z0-9]*$"

Port = Annotated[int, Field(ge=1, le=65535)]
NamedPort = Annotated[int | str, WithJsonSchema({"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": PORT_NAME})]
Cidr = Annotated[str, Field(pattern=CIDR)]


@with_config(ConfigDict(extra="forbid"))
class LabelRequirement(TypedDict, total=False):
    """One condition on a label."""

    key: Required[MetadataKey]
    operator: Required[Literal["In", "NotIn", "Exists", "DoesNotExist"]]
    values: list[LabelValue]


@with_config(ConfigDict(extra="forbid"))
class LabelSelector(TypedDict, total=False):
    """Pods or namespaces by their labels; {}: all of them."""

    matchLabels: Labels
    matchExpressions: list[LabelRequirement]


_Except = TypedDict("_Except", {"except": list[Cidr]}, total=False)
"""A class cannot have this key: it is a keyword of Python."""


@with_config(ConfigDict(extra="forbid"))
class AddressRange(_Except, total=False):
    """Addresses outside the cluster, without `except`."""

    cidr: Required[Cidr]


@with_config(ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "dependentSchemas": {"ipBlock": {"maxProperties": 1}}}))
class Peer(TypedDict, total=False):
    """One end of a connection (NetworkPolicyPeer): selectors, or an ipBlock."""

    podSelector: LabelSelector
    namespaceSelector: LabelSelector
    ipBlock: AddressRange


@with_config(ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1, "dependentRequired": {"endPort": ["port"]}}))
class PolicyPort(TypedDict, total=False):
    """Ports of one protocol (NetworkPolicyPort)."""

    protocol: Literal["TCP", "UDP", "SCTP"]
    port: NamedPort
    endPort: Port


@with_config(ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1}))
class EgressRule(TypedDict, total=False):
    """An opening (NetworkPolicyEgressRule)."""

    to: Annotated[list[Peer], Field(min_length=1)]
    ports: Annotated[list[PolicyPort], Field(min_length=1)]
