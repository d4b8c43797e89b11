"""Pods that train one adapter together talk to each other."""

from __future__ import annotations

from tests.helm.network import SERVING, STAGE, receives, sends
from tests.helm.rendering import render

DPO = {**STAGE, "itool/stage": "dpo"}
TWO_NODES = {"run": {"kubernetes": {"stages": {"dpo": {"nodes": 2}, "score": {"cpu": "2"}}}}}


def test_the_workers_of_a_stage_on_several_nodes_reach_each_other_on_any_port() -> None:
    rendered = render(TWO_NODES)
    for port in (29500, 41234):
        assert sends(rendered, DPO, DPO, port)
        assert receives(rendered, DPO, DPO, port)


def test_nobody_else_reaches_them() -> None:
    rendered = render(TWO_NODES)
    for other in (STAGE, SERVING, {**DPO, "itool/run": "other"}):
        assert not receives(rendered, DPO, other, 29500)
        assert not sends(rendered, DPO, other, 29500)


def test_on_one_node_there_is_no_opening() -> None:
    assert "network-policies/training.yaml" not in render()
