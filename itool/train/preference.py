"""Preference training on step pairs, Eq. (10)-(11): the policy's adapter against a frozen reference, with NLL and replay terms."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from itool.config import DpoConfig, ModelConfig
from itool.errors import InputError, Interrupted
from itool.policy.model_folder import attention_window, other_layers
from itool.records import PreferencePair
from itool.train import losses
from itool.train.distributed import Workers
from itool.train.hooks import TrainingHooks, TrainingLog
from itool.train.model import load_adapter, load_adapter_weights, load_model, pass_cost_tokens, response_logps
from itool.train.sequences import Batch, StepPair, TokenSequence, batch_pairs, batch_pairs_apart, bucket, draw, step_pair
from itool.train.sft import replay_sequences, sft_backward
from itool.train.updates import UpdateTrainer, check_fits, fingerprint, repeatable_kernels, row_numbers, run_updates, training_arguments

REFERENCE = "ref"
"""The name that TRL gives to the frozen copy of the adapter."""


@dataclass(frozen=True)
class PreferenceUpdate:
    """Indices of the pairs and of the replayed sequences of one update."""

    pairs: Sequence[int]
    replay: Sequence[int]


def train_preferences(
    model_dir: Path,
    pairs: Sequence[PreferencePair],
    replay: Sequence[TokenSequence],
    *,
    adapter_in: Path,
    reference: Path | None = None,
    model: ModelConfig,
    settings: DpoConfig,
    seed: int,
    output: Path,
    hooks: TrainingHooks | None = None,
) -> TrainingLog:
    """Train the adapter `adapter_in` on pairs, Eq. (11), arXiv 2501.09766v1, and write the result to `output`.

    `reference` is the adapter of π_ref (None: `adapter_in` as it comes in). Ids go in as they are, no EOS is added, and log-probabilities
    count from the first diverging token. `replay` sequences join each update as SFT. Raises InputError, NumericalError, Interrupted,
    DependencyError.
    """
    steps = [_as_step(pair, settings) for pair in pairs]
    base = load_model(model_dir, dtype=model.dtype)
    check_fits(base, steps)
    if replay:
        check_fits(base, replay)
    adapted = load_adapter(base, adapter_in, trainable=True)
    plan = plan_preferences(len(steps), len(replay), settings, seed)
    hooks = hooks or TrainingHooks()
    with repeatable_kernels(), tempfile.TemporaryDirectory(prefix="itool-dpo-") as scratch:
        trainer = StepDpoTrainer(
            adapted,
            args=training_arguments(
                partial(DPOConfig, disable_dropout=False),  # model.lora_dropout is meant, and the reference is computed without it
                adapted,
                updates=len(plan),
                settings=settings,
                seed=seed,
                scratch=scratch,
            ),
            pairs=steps,
            replay=replay,
            plan=plan,
            settings=settings,
            apart=_needs_rows_apart(base, steps),
            workers=hooks.workers,
            processing_class=AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False),
        )
        hooks.on_loaded()
        trainer.freeze_reference(reference, hooks.should_stop)
        identity = fingerprint(steps, replay, plan, settings.model_dump(exclude={"checkpoint_seconds"}), model, seed)
        return run_updates(trainer, settings, hooks, output=output, identity=identity)


def plan_preferences(pairs: int, replay: int, settings: DpoConfig, seed: int) -> list[PreferenceUpdate]:
    """`updates` updates of `batch_pairs` pairs each, and the share of replayed sequences that `replay_fraction` asks for."""
    drawn = draw(pairs, settings.updates, settings.batch_pairs, seed=seed, salt="pairs")
    per_update = replay_sequences(settings, replay)
    replayed = draw(replay, settings.updates, per_update, seed=seed, salt="replay") if per_update else [[]] * settings.updates
    return [PreferenceUpdate(rows, old) for rows, old in zip(drawn, replayed, strict=True)]


def _needs_rows_apart(model: Any, steps: Sequence[StepPair]) -> bool:
    """Whether a pair's sides cannot share a row: the mask that parts them there replaces that of a window, and other layers heed none."""
    window = attention_window(model.config)
    return bool(other_layers(model)) or (window is not None and max(step.context_tokens for step in steps) > window)


def _as_step(pair: PreferencePair, settings: DpoConfig) -> StepPair:
    if pair.chosen_ids == pair.rejected_ids:
        raise InputError(f"a pair of example {pair.example_id!r} has two equal sides", remedy="Run generate again")
    visits = (pair.chosen_visits, pair.rejected_visits)
    answer = (len(pair.prefix_ids), pair.ending_ids) if settings.nll_on == "answer" else None
    state = [*pair.prompt_ids, *pair.prefix_ids]
    return step_pair(state, pair.chosen_ids, pair.rejected_ids, visits=visits, example_id=pair.example_id, answer=answer)


@dataclass(frozen=True)
class PairLogps:
    """Per-token log-probabilities of P pairs in one batch, under the policy or the reference, and their sums by side (P each)."""

    tokens: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def sides(tokens: Tensor, owners: Tensor, count: int) -> PairLogps:
    """Split per-token values (N) by side; owner 2i is the chosen side of pair i, 2i + 1 the rejected one."""
    sums, lengths = losses.sum_by(tokens, owners, count), losses.sum_by(torch.ones_like(tokens), owners, count)
    return PairLogps(tokens, sums[0::2], sums[1::2], lengths[0::2], lengths[1::2])


def pair_losses(policy: PairLogps, reference: PairLogps, settings: DpoConfig, smoothing: Tensor | None) -> Tensor:
    """The configured loss per pair (P), before the NLL and replay terms."""
    lengths: Any = {"chosen_tokens": policy.chosen_tokens, "rejected_tokens": policy.rejected_tokens}
    both = (policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    match settings.loss:
        case "dpo":
            return losses.dpo_loss(*both, beta=settings.beta, smoothing=smoothing)
        case "ipo":
            return losses.ipo_loss(*both, **lengths, beta=settings.beta, smoothing=smoothing)
        case "simpo":
            return losses.simpo_loss(
                policy.chosen,
                policy.rejected,
                **lengths,
                beta=settings.beta,
                gamma=settings.simpo_gamma,
                length_normalised=settings.length_normalised,
                smoothing=smoothing,
            )
        case "orpo":
            return losses.orpo_loss(policy.chosen, policy.rejected, **lengths, beta=settings.beta, smoothing=smoothing)


@dataclass(frozen=True)
class _UpdateSize:
    """What means over an update are taken over, whatever batches and workers it is cut into."""

    pairs: int
    side_tokens: int
    likely_tokens: int


class StepDpoTrainer(UpdateTrainer, DPOTrainer):  # type: ignore[misc] # TRL ships no types
    """TRL's DPOTrainer over step pairs as token ids, with replayed SFT sequences in the same update."""

    def __init__(
        self,
        *arguments: Any,
        pairs: Sequence[StepPair],
        replay: Sequence[TokenSequence],
        plan: Sequence[PreferenceUpdate],
        settings: DpoConfig,
        apart: bool,
        workers: Workers,
        **trl_settings: Any,
    ) -> None:
        self.pairs, self.replay, self.plan, self.settings, self.workers = pairs, replay, plan, settings, workers
        self.apart = apart
        self.reference_logps: list[Tensor] = []
        self.training_log = TrainingLog()
        super().__init__(*arguments, train_dataset=row_numbers(plan), **trl_settings)

    def freeze_reference(self, adapter_dir: Path | None, should_stop: Callable[[], bool]) -> None:
        """Compute once, since the reference never changes, its log-probabilities of this worker's pairs, and drop its weights.

        The reference is `adapter_dir`, or None for the adapter that training starts from (TRL's copy of it). Raises Interrupted in every
        worker before the next batch when one is asked to stop.
        """
        model: PeftModel = self.model
        if adapter_dir is not None:
            load_adapter_weights(model, adapter_dir, name=REFERENCE)
        model.set_adapter(REFERENCE)
        model.eval()
        found: list[Tensor] = [torch.empty(0)] * len(self.pairs)
        used = sorted({index for update in self.plan for index in self._share(update)})
        for group in self._until_stopped(self._buckets(used), should_stop):
            rows = [used[index] for index in group]
            batch = self._batch([self.pairs[index] for index in rows])
            with torch.no_grad():
                logps = response_logps(model, batch).cpu()[batch.owners < batch.count]
            lengths = [len(self.pairs[index].chosen_ids) + len(self.pairs[index].rejected_ids) for index in rows]
            for index, part in zip(rows, torch.split(logps, lengths), strict=True):
                found[index] = part
        self.reference_logps = found
        model.set_adapter("default")
        model.delete_adapter(REFERENCE)

    def _until_stopped(self, groups: Sequence[list[int]], should_stop: Callable[[], bool]) -> Iterator[list[int]]:
        """The groups one by one. All workers agree before each, also those that have none left."""
        for group in itertools.chain(groups, itertools.repeat(None)):
            stopping, working = self.workers.sum([float(should_stop()), float(group is not None)])
            if stopping:
                raise Interrupted("training stopped before its first update, while the reference was computed", remedy="Start it again")
            if not working:
                return
            if group is not None:
                yield group

    def _buckets(self, rows: Sequence[int]) -> list[list[int]]:
        """These pairs, by their place in `rows`, in groups of one forward pass each."""
        lengths = [2 * self.pairs[row].context_tokens if self.apart else len(self.pairs[row]) for row in rows]
        return bucket(lengths, self.settings.batch_tokens, pass_cost_tokens=pass_cost_tokens(self.model))

    def _batch(self, pairs: Sequence[StepPair]) -> Batch:
        return batch_pairs_apart(pairs) if self.apart else batch_pairs(pairs)

    def _share(self, update: PreferenceUpdate) -> list[int]:
        """The pairs of an update that this worker computes."""
        return [update.pairs[index] for index in self.workers.share([len(self.pairs[pair]) for pair in update.pairs])]

    def update_loss(self, model: Any, update: PreferenceUpdate) -> tuple[float, dict[str, float], int]:
        pairs = [self.pairs[index] for index in update.pairs]
        whole = _UpdateSize(
            len(pairs), sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs), sum(pair.likely_tokens for pair in pairs)
        )
        totals = dict.fromkeys((*METRICS, "loss/replay"), 0.0)
        own = self._share(update)
        for group in self._buckets(own):
            loss, parts = self.pair_loss(model, [own[index] for index in group], whole)
            self.accelerator.backward(loss)
            for name, value in zip(METRICS, parts, strict=True):
                totals[name] += value
        replayed = [self.replay[index] for index in update.replay]
        totals["loss/replay"] = sft_backward(self.accelerator, model, replayed, self.settings.batch_tokens, self.workers)
        totals = dict(zip(totals, self.workers.sum(totals.values()), strict=True))
        loss_value = totals["loss/pairs"] + self.nll_weight * totals["nll/chosen"] + totals["loss/replay"]
        return loss_value, totals, sum(map(len, pairs)) + sum(map(len, replayed))

    @property
    def nll_weight(self) -> float:
        """Weight of the chosen side's NLL; ORPO's own equation has it at 1."""
        return 1.0 if self.settings.loss == "orpo" else self.settings.nll_weight

    def pair_loss(self, model: Any, indices: Sequence[int], whole: _UpdateSize) -> tuple[Tensor, list[float]]:
        """One bucket's share of the update's loss, and of METRICS; shares add up to means over the update."""
        pairs = [self.pairs[index] for index in indices]
        batch = self._batch(pairs)
        tokens = response_logps(model, batch)
        owners = batch.owners.to(tokens.device)
        likely = losses.nll(tokens[owners % 2 == 0], whole.likely_tokens)  # chosen sides, and what belongs to no side
        on_a_side = owners < batch.count
        tokens, owners = tokens[on_a_side], owners[on_a_side]
        policy = sides(tokens, owners, batch.count)
        reference = sides(torch.cat([self.reference_logps[index] for index in indices]).to(tokens.device), owners, batch.count)
        per_pair = pair_losses(policy, reference, self.settings, self._smoothing(pairs, tokens.device)).sum() / whole.pairs
        metrics = _metrics(policy, reference, self.settings.beta, whole)
        values: list[float] = torch.cat([torch.stack([per_pair.detach(), likely.detach()]), metrics]).tolist()
        return per_pair + self.nll_weight * likely, values

    def _smoothing(self, pairs: Sequence[StepPair], device: torch.device) -> Tensor | None:
        if self.settings.label_smoothing == "none":
            return None
        visits = torch.tensor([[pair.chosen_visits, pair.rejected_visits] for pair in pairs], dtype=torch.float32, device=device)
        return losses.visit_smoothing(visits[:, 0], visits[:, 1])


METRICS = ("loss/pairs", "nll/chosen", "logps/chosen", "logps/rejected", "margins", "accuracies", "kl_reference")


def _metrics(policy: PairLogps, reference: PairLogps, beta: float, whole: _UpdateSize) -> Tensor:
    """A batch's share of METRICS without the two losses: means over the update's pairs, of the KL over its tokens.

    A margin is β (h_w - h_l), an accuracy whether it is above zero.
    """
    with torch.no_grad():
        margins = beta * ((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
        kl = losses.kl_to_reference(policy.tokens, reference.tokens) * (policy.tokens.numel() / max(whole.side_tokens, 1))
        sums = torch.stack([policy.chosen.sum(), policy.rejected.sum(), margins.sum(), (margins > 0).float().sum()])
        return torch.cat([sums / whole.pairs, kl.reshape(1)])
