"""Kubernetes objects as plain dicts, the labels by which ours are found, and the port of the one that is asked."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

NAME_LABEL = "app.kubernetes.io/name"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
RUN_LABEL = "itool/run"
ITERATION_LABEL, STAGE_LABEL, ATTEMPT_LABEL, KEY_LABEL = "itool/iteration", "itool/stage", "itool/attempt", "itool/key"
JOB_LABEL = "batch.kubernetes.io/job-name"
"""On the pods of a Job; Kubernetes puts it there."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

VLLM_PORT = 8000
"""Where a vLLM pod and the Service before all of them answer."""
