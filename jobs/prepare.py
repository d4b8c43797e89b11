"""Prepare: from raw data to warm-up sets by difficulty, replay buffer, validation and held-out sets; and the base model, once for all."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from itool.artifacts.manifest import Counts
from itool.artifacts.stage import Stage, remedy_for, run_stage
from itool.config import RunConfig
from itool.data.chat import end_of_turn_id, load_tokenizer, token_counts
from itool.data.difficulty import assign_difficulty
from itool.data.sources.load import Loaded, load_examples
from itool.data.split import split_examples
from itool.demo.task import generate
from itool.errors import InputError
from itool.logs import get_logger
from itool.names import PROMPT_TOO_LONG, RESPONSE_TOO_LONG, TEMPLATE_REFUSES
from itool.records import Example
from itool.train.materialise import close_thoughts, materialise, name_end_of_turn

DEMO_COUNT, DEMO_HELD_OUT_COUNT = 2700, 1000
_log = get_logger(__name__)


def prepare(stage: Stage) -> None:
    """Difficulty is assigned within the warm-up set and within the held-out set, so that each divides evenly."""
    config = stage.config
    stage.working()  # it loads no model to begin with: copying one is its work
    materialise(config.model, stage.output / "model")
    close_thoughts(stage.output / "model")
    tokenizer = load_tokenizer(stage.output / "model")
    name_end_of_turn(stage.output / "model", end_of_turn_id(tokenizer))
    loaded = _load(config)
    dropped = Counter(loaded.dropped)
    refused: list[str] = []

    def fitting(examples: Sequence[Example]) -> list[Example]:
        kept = []
        for done, example in enumerate(examples, start=1):
            stage.raise_if_stopped()
            try:
                prompt_tokens, response_tokens = token_counts(tokenizer, example)
            except InputError as error:
                refused.append(str(error))
            else:
                if response_tokens > config.model.max_response_tokens:
                    dropped[RESPONSE_TOO_LONG] += 1
                elif prompt_tokens + config.model.max_response_tokens > config.model.context_tokens:
                    dropped[PROMPT_TOO_LONG] += 1
                else:
                    kept.append(example)
            stage.progress(done, len(examples), "examples")
        return kept

    held_out = None if loaded.held_out is None else fitting(loaded.held_out)
    training = fitting(loaded.examples)
    _expect_readable(refused, of=len(loaded.examples) + len(loaded.held_out or ()))
    split = split_examples(training, config.data, config.seed, held_out)
    dropped += Counter({"repeats_held_out": split.repeats_held_out, TEMPLATE_REFUSES: len(refused)})
    parts = {
        "warmup": assign_difficulty(split.warmup),
        "buffer": [_without_response(e) for e in split.buffer] if config.data.buffer_labels == "checker" else split.buffer,
        "validation": split.validation,
        "held_out": assign_difficulty(split.held_out),
    }
    stage.count(incoming=loaded.incoming, kept=sum(map(len, parts.values())), dropped=dropped)
    stage.check_dropped()  # before an empty set is blamed on the fractions
    if loaded.left_out:  # they passed no check of this stage, so they may not hide what failed it
        stage.check_dropped(Counts(incoming=loaded.picked, dropped=dropped - loaded.dropped))
    for name, examples in parts.items():
        _expect_examples(name, examples, config, dropped)
        stage.write(f"{name}.jsonl", examples)
    stage.metrics(
        {"examples": {name: len(examples) for name, examples in parts.items()}, "repeated": loaded.repeated, "left_out": loaded.left_out}
    )


def _load(config: RunConfig) -> Loaded:
    """The demo's examples are made from the seed; all others are read."""
    if config.data.source != "demo":
        return load_examples(config.data)
    examples = generate("train", config.data.count or DEMO_COUNT, config.seed)
    return Loaded(examples, generate("held_out", config.data.held_out_count or DEMO_HELD_OUT_COUNT, config.seed))


def _without_response(example: Example) -> Example:
    """Only the checker's knowledge of the ground truth: nothing that could be trained on."""
    return example.model_copy(update={"response": None})


def _expect_readable(refused: Sequence[str], *, of: int) -> None:
    """A chat template may refuse some conversations (a role that it does not know), in its own words, but not all."""
    if not refused:
        return
    if len(refused) == of:
        raise InputError(refused[0], remedy=f"It refuses all {of} examples: set model.chat_template to one that takes such data")
    _log.warning("examples dropped", reason=TEMPLATE_REFUSES, count=len(refused), first=refused[0])


def _expect_examples(name: str, examples: Sequence[Example], config: RunConfig, dropped: Counter[str]) -> None:
    if examples or (name == "validation" and not config.data.validation_fraction):
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
    too_long = "".join(f"{known}. " for reason in dropped if (known := remedy_for(reason, config)))
    if name == "held_out" and (config.data.held_out_path or config.data.source == "demo"):
        remedy = "Give more held-out data"
    else:
        remedy = f"Give more data, or {'lower the other data fractions' if name == 'warmup' else f'raise data.{name}_fraction'}"
    raise InputError(f"the {name} set is empty{f' (dropped: {reasons})' if reasons else ''}", remedy=f"{too_long}{remedy}")


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("prepare", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
