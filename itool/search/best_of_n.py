"""The controls without a tree: best-of-n pairs and rejection sampling, from complete samples at the price of a search.

Both draw `search.best_of` complete responses per example in one request. They are stored as a tree of depth one, whose steps are whole
responses, so that pairs, evidence, counts and the report are the ones of the search.
"""

from __future__ import annotations

from itool.config import SearchConfig
from itool.records import AcceptedSample, SearchTree


def best_of_n_settings(config: SearchConfig) -> SearchConfig:
    """The search that draws n complete responses and stops: one simulation, nothing to revisit, so a single visit is all there is."""
    return config.model_copy(update={"root_samples": config.best_of, "simulations": 1, "min_visits": 1, "confidence_weight": 0.0})


def rejection_sampling_settings(config: SearchConfig) -> SearchConfig:
    """As best-of-n, but only what was sampled counts: the ground truth stays out."""
    return best_of_n_settings(config).model_copy(update={"inject_ground_truth": False})


def accept_samples(tree: SearchTree) -> list[AcceptedSample]:
    """The distinct right responses of a depth-one tree, without an injected ground truth, in the order in which they were sampled."""
    return [
        AcceptedSample(example_id=tree.example_id, prompt_ids=tree.prompt_ids, response_ids=node.step_ids)
        for node in tree.nodes
        if node.terminal and node.correct and not node.injected
    ]
