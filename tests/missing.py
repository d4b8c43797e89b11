"""What a test needs of a cluster and does not find."""

from __future__ import annotations

import os

import pytest


def missing(what: str) -> BaseException:
    """To be raised: a visible skip, or a failure where CLUSTER_IMAGES is set.

    Who sets it has a cluster, and would else not see that no test ran on it.
    """
    return (pytest.fail if os.environ.get("CLUSTER_IMAGES") else pytest.skip).Exception(what)
