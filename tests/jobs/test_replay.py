from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from itool.config import load_config
from itool.records import Example, Message
from jobs.dpo import _in_buffer_order, replayed_examples


class FakeStage:
    """The data artifact of a run with one warm-up example, and two in the buffer, one of them without ground truth."""

    def __init__(self, *settings: str) -> None:
        self.config = load_config(None, list(settings))

    def read(self, _record: type[Example], role: str, name: str) -> list[Example]:
        return {
            ("data", "warmup.jsonl"): [_example("warm", "[f()]")],
            ("data", "buffer.jsonl"): [_example("gold", "[f()]"), _example("checker", None)],
        }[role, name]


def _example(name: str, response: str | None) -> Example:
    return Example(id=name, messages=[Message(role="user", content="q")], response=response)


@pytest.mark.parametrize(
    ("settings", "replayed"),
    [
        ([], ["warm"]),
        (["dpo.replay_fraction=0"], []),
        (["dpo.replay_from=warmup_and_buffer"], ["warm", "gold"]),
        (["dpo.replay_from=warmup_and_buffer", "dpo.replay_fraction=0"], []),
        (["dpo.replay_from=warmup_and_buffer", "method=sft_continued"], ["warm"]),
        (["dpo.replay_from=warmup_and_buffer", "method=rejection_sampling"], ["warm"]),
        (["dpo.replay_from=warmup_and_buffer", "method=best_of_n"], ["warm", "gold"]),
    ],
)
def test_pairs_may_have_the_buffers_ground_truth_replayed_beside_them(settings: list[str], replayed: list[str]) -> None:
    stage: Any = FakeStage(*settings)
    assert [example.id for example in replayed_examples(stage)] == replayed


def test_what_several_shards_found_is_learned_in_the_order_of_the_buffer() -> None:
    """Shards come one after the other; of one example the order in which it was found stays."""
    found: list[Any] = [SimpleNamespace(example_id=name, step=step) for name, step in (("checker", 1), ("gold", 2), ("gold", 1))]
    stage: Any = FakeStage()
    assert [(row.example_id, row.step) for row in _in_buffer_order(stage, found)] == [("gold", 2), ("gold", 1), ("checker", 1)]
