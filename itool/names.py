"""Names that a configuration and the command line choose from, those of the stages, and of what several of these drop.

No pydantic here: `itoolctl` starts with them.
"""

from __future__ import annotations

from typing import Literal

Method = Literal["mcts_dpo", "best_of_n", "rejection_sampling", "sft_continued"]
"""The paper's method and its controls."""
SFT_CONTROLS: tuple[Method, ...] = ("sft_continued", "rejection_sampling")
"""Those that train on right responses, not on pairs."""

Backend = Literal["local", "kubernetes"]
"""Where stages run."""

StageName = Literal["prepare", "warmup", "score", "generate", "dpo", "evaluate", "report"]
TRAINING_STAGES: tuple[StageName, ...] = ("warmup", "dpo")
"""Those that several processes may do together, on one node or on several."""

PROMPT_TOO_LONG = "prompt_too_long"
RESPONSE_TOO_LONG = "response_too_long"
QUESTION_TOO_LONG = "self_evaluation_too_long"
"""The prompt leaves room for an answer, but not for the question about it as well."""
TEMPLATE_REFUSES = "template_refuses"
"""The chat template takes no such conversation."""
