"""Token sequences, and how they are put into batches that waste little on padding and nothing on prompts.

Ids go in as they came: nothing here tokenises, truncates or adds an end-of-turn token. Rows are padded on the right and read causally,
so no real token ever attends to padding and no mask is needed. The last token of a row predicts nothing and is left out of the input.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

PASS_COST_TOKENS = 384
"""What one more forward pass costs, in padded tokens; measured on two CPU cores with the demo's base."""


@dataclass(frozen=True)
class TokenSequence:
    """One prompt and the response whose log-probability counts. `response_ids` holds the end-of-turn token when it was part of it."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    example_id: str = ""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def context_tokens(self) -> int:
        """The context that the model needs for it."""
        return len(self)


@dataclass(frozen=True)
class StepPair:
    """Two sides after one state, as the loss sees them: a common beginning of the sides already belongs to the state.

    `chosen_ids` or `rejected_ids` is empty when one side was the beginning of the other: its log-probability is then exactly 0.
    The last `prefix_tokens` of the state, the chosen side and `ending_ids` are one right answer: likelihood, no preference, is learned
    from what of it is not the chosen side.
    """

    state_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    chosen_visits: int = 1
    rejected_visits: int = 1
    example_id: str = ""
    prefix_tokens: int = 0
    ending_ids: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.state_ids) + len(self.chosen_ids) + len(self.ending_ids) + len(self.rejected_ids)

    @property
    def context_tokens(self) -> int:
        """The context that the model needs for it: both sides begin where the state ends."""
        return len(self.state_ids) + max(len(self.chosen_ids) + len(self.ending_ids), len(self.rejected_ids))

    @property
    def likely_tokens(self) -> int:
        """How many tokens the likelihood term covers."""
        return self.prefix_tokens + len(self.chosen_ids) + len(self.ending_ids)


def step_pair(
    state_ids: Sequence[int],
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    *,
    visits: tuple[int, int] = (1, 1),
    example_id: str = "",
    answer: tuple[int, Sequence[int]] | None = None,
) -> StepPair:
    """Move the common beginning of both sides into the state: log-probabilities count from the first diverging token.

    `answer` says which tokens beside the chosen side are to become likely: so many last ones of the state, and those that follow chosen.
    """
    shared = 0
    while shared < min(len(chosen_ids), len(rejected_ids)) and chosen_ids[shared] == rejected_ids[shared]:
        shared += 1
    state, sides = [*state_ids, *chosen_ids[:shared]], (list(chosen_ids[shared:]), list(rejected_ids[shared:]))
    before, ending = (answer[0] + shared, answer[1]) if answer else (0, ())
    return StepPair(state, *sides, *visits, example_id, before, ending)


@dataclass(frozen=True)
class Batch:
    """One forward pass. Of B rows and T columns, N positions are scored.

    `predictors` (N) index the flattened (B*T) hidden states whose next token is in `targets` (N); `owners` (N) say which of the `count`
    sequences a token belongs to (for pairs: 2i = chosen, 2i + 1 = rejected, `count` = the rest of chosen's right answer, on no side).
    `allowed` (B, 1, T, T) and `positions` (B, T) are set for pairs only.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    count: int
    allowed: Tensor | None = None
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        moved = {name: value.pin_memory().to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **moved})


def batch_sequences(sequences: Sequence[TokenSequence]) -> Batch:
    """Rows `prompt + response` without the last token; the response's tokens are scored."""
    width = max(len(sequence) for sequence in sequences) - 1
    rows: list[list[int]] = []
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, sequence in enumerate(sequences):
        row = [*sequence.prompt_ids, *sequence.response_ids]
        start, stop = len(sequence.prompt_ids) - 1, len(row) - 1
        rows.append(row[:-1] + [0] * (width - stop))
        predictors += range(index * width + start, index * width + stop)
        targets += sequence.response_ids
        owners += [index] * (stop - start)
    return Batch(torch.tensor(rows), torch.tensor(predictors), torch.tensor(targets), torch.tensor(owners), len(sequences))


def batch_pairs(pairs: Sequence[StepPair]) -> Batch:
    """Rows `state + chosen + ending + rejected`: the state, nearly all of a row, is computed once for both sides.

    The rejected side continues the state's positions and may not look at the chosen side, which gives each side exactly the
    log-probabilities that it has alone.
    """
    width = max(_pair_row_tokens(pair) for pair in pairs)
    scored = _Scored()
    input_ids, positions = torch.zeros(len(pairs), width, dtype=torch.long), torch.arange(width).repeat(len(pairs), 1)
    allowed = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(pairs), 1, 1, 1)
    for index, pair in enumerate(pairs):
        state, start, nobody = len(pair.state_ids), index * width, 2 * len(pairs)
        right_inputs, rejected_inputs = [*pair.chosen_ids, *pair.ending_ids][:-1], list(pair.rejected_ids[:-1])
        middle = state + len(right_inputs)
        row = [*pair.state_ids, *right_inputs, *rejected_inputs]
        input_ids[index, : len(row)] = torch.tensor(row)
        positions[index, middle:] -= len(right_inputs)
        allowed[index, 0, middle:, state:middle] = False
        last = start + state - 1
        scored.add(pair.state_ids[state - pair.prefix_tokens :], nobody, last - pair.prefix_tokens)
        scored.add(pair.chosen_ids, 2 * index, last)
        scored.add(pair.ending_ids, nobody, last + len(pair.chosen_ids))
        scored.add(pair.rejected_ids[:1], 2 * index + 1, last)
        scored.add(pair.rejected_ids[1:], 2 * index + 1, start + middle)
    predictors, targets, owners = (torch.tensor(values) for values in (scored.predictors, scored.targets, scored.owners))
    return Batch(input_ids, predictors, targets, owners, 2 * len(pairs), allowed, positions)


def batch_pairs_apart(pairs: Sequence[StepPair]) -> Batch:
    """The same scored tokens in rows `state + chosen + ending` and `state + rejected`, for a model that does not heed `allowed`."""
    rows: list[TokenSequence] = []
    owners: list[int] = []
    for index, pair in enumerate(pairs):
        asked, nobody = len(pair.state_ids) - pair.prefix_tokens, 2 * len(pairs)
        rows.append(TokenSequence(pair.state_ids[:asked], [*pair.state_ids[asked:], *pair.chosen_ids, *pair.ending_ids]))
        rows.append(TokenSequence(pair.state_ids, pair.rejected_ids))
        owners += [nobody] * pair.prefix_tokens + [2 * index] * len(pair.chosen_ids)
        owners += [nobody] * len(pair.ending_ids) + [2 * index + 1] * len(pair.rejected_ids)
    return replace(batch_sequences(rows), owners=torch.tensor(owners))


@dataclass
class _Scored:
    """The scored tokens of a batch as they are collected."""

    predictors: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], owner: int, first_predictor: int) -> None:
        self.predictors += range(first_predictor, first_predictor + len(ids))
        self.targets += ids
        self.owners += [owner] * len(ids)


def _pair_row_tokens(pair: StepPair) -> int:
    return len(pair.state_ids) + max(len(pair.chosen_ids) + len(pair.ending_ids) - 1, 0) + max(len(pair.rejected_ids) - 1, 0)


def bucket(lengths: Sequence[int], batch_tokens: int, *, pass_cost_tokens: int = PASS_COST_TOKENS) -> list[list[int]]:
    """Group indices so that every group's padded size (rows times longest) stays within `batch_tokens` at the least total cost.

    Sorted by length, cut where padding saved outweighs one more forward pass. A sequence longer than `batch_tokens` stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    best, cut = np.zeros(len(order) + 1, dtype=np.int64), [0]
    indices = np.arange(len(order))
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        starts = slice(max(0, end - max(1, batch_tokens // max(longest, 1))), end)
        costs = best[starts] + (end - indices[starts]) * longest + pass_cost_tokens
        cut.append(starts.start + int(costs.argmin()))
        best[end] = costs.min()
    groups, end = [], len(order)
    while end:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def draw(count: int, updates: int, per_update: int, *, seed: int, salt: str) -> list[list[int]]:
    """Indices below `count` for each update: whole shuffled passes one after the other, `per_update` at a time, fixed by seed and salt."""
    stream: list[int] = []
    epoch = 0
    while len(stream) < updates * per_update:
        order = list(range(count))
        random.Random(f"{seed}:{salt}:{epoch}").shuffle(order)
        stream += order
        epoch += 1
    return [stream[update * per_update : (update + 1) * per_update] for update in range(updates)]
