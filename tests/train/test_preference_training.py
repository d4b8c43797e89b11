import functools
import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from itool.config import DpoConfig
from itool.errors import InputError, Interrupted, NumericalError
from itool.train import preference, sft
from itool.train.hooks import TrainingHooks
from itool.train.model import load_adapter, load_model, load_policy, response_logps, save_adapter
from itool.train.perplexity import perplexities
from itool.train.preference import PairLogps, pair_losses, plan_preferences, train_preferences
from itool.train.sequences import TokenSequence
from itool.train.sft import continue_sft, plan_continuation
from tests.train.conftest import pair

FAST = DpoConfig(updates=6, batch_pairs=4, learning_rate=1e-2, batch_tokens=128, replay_fraction=0.25)


@pytest.fixture
def train(tiny_base, lora, adapter, tmp_path):
    """Train from `adapter`; the name of the output folder is the first argument."""

    def run(name, *data, method=train_preferences, settings=FAST, adapter_in=adapter, **more):
        return method(tiny_base, *data, adapter_in=adapter_in, model=lora, settings=settings, seed=1, output=tmp_path / name, **more)

    return run


@pytest.mark.parametrize("loss", ["dpo", *(pytest.param(other, marks=pytest.mark.slow) for other in ("ipo", "simpo", "orpo"))])
def test_training_separates_the_sides(train, pairs, sequences, loss):
    settings = FAST.model_copy(update={"loss": loss, "label_smoothing": "visits"})
    log = train("out", pairs, sequences, settings=settings)
    first, last = log.metrics[0], log.metrics[-1]
    assert (first["margins"], first["kl_reference"]) == (pytest.approx(0, abs=1e-5), pytest.approx(0, abs=1e-5))
    assert last["margins"] > 0 < last["kl_reference"]
    assert last["accuracies"] > 0.9
    assert last["logps/chosen"] - last["logps/rejected"] > first["logps/chosen"] - first["logps/rejected"]


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_the_loss_of_an_update_is_that_of_its_pairs_its_likelihood_and_its_replay(tiny_base, adapter, train, pairs, loss):
    """ORPO's own equation has the likelihood at weight 1, whatever is configured."""
    old, nll_weight = TokenSequence([5, 6, 7], [8, 9, 2]), {"dpo": 0.3, "orpo": 1.0}[loss]
    settings = FAST.model_copy(update={"loss": loss, "nll_weight": 0.3, "updates": 1})
    [update] = train("out", pairs, [old], settings=settings).metrics
    [replayed] = perplexities(load_policy(tiny_base, adapter), [old], batch_tokens=64)
    assert update["loss/replay"] == pytest.approx(math.log(replayed), abs=1e-5)
    [drawn] = plan_preferences(len(pairs), 1, settings, seed=1)
    chosen = [pairs[index] for index in drawn.pairs]
    rows = [[*one.prompt_ids, *one.prefix_ids, *one.chosen_ids, *one.rejected_ids] for one in chosen]
    assert update["tokens"] == sum(map(len, rows)) + len(old) * len(drawn.replay)
    assert update["loss"] == pytest.approx(update["loss/pairs"] + nll_weight * update["nll/chosen"] + update["loss/replay"])


@pytest.mark.parametrize(
    ("changes", "logit"),
    [
        ({}, 2 * (-0.5 + 1) - 0.5),
        ({"simpo_gamma": 0.25}, 2 * (-0.5 + 1) - 0.25),
        ({"length_normalised": False}, 2 * (-1 + 4) - 0.5),
    ],
)
def test_simpo_takes_its_margin_and_its_lengths_from_the_settings(changes, logit):
    """Sides of 2 and 4 tokens with log-probabilities -1 and -4."""
    policy = PairLogps(torch.zeros(6), *(torch.tensor([value]) for value in (-1.0, -4.0, 2.0, 4.0)))
    settings = DpoConfig(loss="simpo", beta=2.0, simpo_gamma=0.5).model_copy(update=changes)
    assert pair_losses(policy, policy, settings, None).item() == pytest.approx(math.log1p(math.exp(-logit)))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
def test_a_label_that_is_as_likely_wrong_as_right_prefers_no_side(loss):
    one, other, short, long = (torch.tensor([value]) for value in (-1.0, -4.0, 2.0, 4.0))
    reference = PairLogps(torch.zeros(6), *(torch.tensor([value]) for value in (-3.0, -3.0, 3.0, 3.0)))
    settings, half = DpoConfig(loss=loss, simpo_gamma=0.0), torch.tensor([0.5])
    losses = [
        pair_losses(PairLogps(torch.zeros(6), *sides), reference, settings, half).item()
        for sides in ((one, other, short, long), (other, one, long, short))
    ]
    assert losses[0] == pytest.approx(losses[1])


def trl_loss(base, adapter, reference, rows, loss_type):
    """The loss that an unchanged DPOTrainer computes on text, with an NLL term of 0.1."""
    arguments = DPOConfig(
        str(reference),
        loss_type=[loss_type, "sft"],
        loss_weights=[1.0, 0.1],
        beta=0.3,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(
        load_adapter(load_model(base), adapter, trainable=True),
        ref_model=load_policy(base, reference),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    return trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item()


@pytest.mark.parametrize(("ours", "theirs"), [("dpo", "sigmoid"), pytest.param("ipo", "ipo", marks=pytest.mark.slow)])
def test_full_sequence_pairs_have_the_loss_that_trl_computes(tiny_base, adapter, train, ours, theirs):
    reference = load_adapter(load_model(tiny_base), adapter)
    for name, parameter in reference.named_parameters():
        parameter.data *= 0.5 if "lora_B" in name else 1.0
    save_adapter(reference, adapter.parent / "reference")
    words = [("w5 w6 w7", "w8 w9", "w10 w11 w12"), ("w20", "w21", "w30 w31"), ("w5 w9 w5 w9", "w40 w41 w42 w43", "w44")]
    rows = [{"prompt": prompt + " ", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in words]
    expected = trl_loss(tiny_base, adapter, adapter.parent / "reference", rows, theirs)

    ids = [[[int(word[1:]) for word in text.split()] for text in row] for row in words]
    pairs = [pair(prompt, [], [*chosen, 2], [*rejected, 2]) for prompt, chosen, rejected in ids]
    settings = FAST.model_copy(update={"loss": ours, "beta": 0.3, "updates": 1, "batch_pairs": 3, "replay_fraction": 0.0})
    log = train("out", pairs, [], reference=adapter.parent / "reference", settings=settings)
    assert log.metrics[0]["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_cut_into_batches_changes_nothing(train, pairs, sequences):
    def metrics(batch_tokens):
        settings = FAST.model_copy(update={"batch_tokens": batch_tokens, "updates": 3})
        return train(f"b{batch_tokens}", pairs, sequences, settings=settings).metrics

    for one, other in zip(metrics(1), metrics(4096), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_a_pair_needs_the_context_of_its_longer_side_alone(train, tiny_base):
    limit = load_model(tiny_base).config.max_position_embeddings
    state = [5] * (limit - 20)
    train("fits", [pair(state, [], [6] * 20, [7] * 20)], [], settings=FAST.model_copy(update={"updates": 1}))
    with pytest.raises(InputError, match=f"has {limit + 1} tokens, the base model reads {limit}"):
        train("too long", [pair(state, [], [6] * 20, [7] * 21)], [], settings=FAST)


def test_dropout_of_the_adapter_is_on_in_preference_training_too(train, pairs, adapter):
    settings = FAST.model_copy(update={"updates": 1})
    without = train("without", pairs, [], settings=settings)
    stored = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(stored | {"lora_dropout": 0.5}))
    with_it = train("with", pairs, [], settings=settings)
    assert with_it.metrics[0]["logps/chosen"] != pytest.approx(without.metrics[0]["logps/chosen"])
    margin, reference = (log.metrics[0]["logps/chosen"] - log.metrics[0]["logps/rejected"] for log in (with_it, without))
    assert with_it.metrics[0]["margins"] == pytest.approx(settings.beta * (margin - reference), abs=1e-5), "the reference drops nothing"


def test_a_pair_longer_than_a_sliding_window_is_read_through_the_window(tiny_base, adapter, lora, tmp_path):
    windowed = tmp_path / "windowed"
    shutil.copytree(tiny_base, windowed)
    config = json.loads((windowed / "config.json").read_text())
    (windowed / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 4}))
    settings = FAST.model_copy(update={"updates": 1, "batch_pairs": 1, "replay_fraction": 0.0})
    ours = pair([5, 6, 7, 8, 9], [], [3, 9, 2], [4, 8, 9, 2])
    common = {"adapter_in": adapter, "model": lora, "settings": settings, "seed": 1, "output": tmp_path / "out"}
    [update] = train_preferences(windowed, [ours], [], **common).metrics
    sides = [TokenSequence(ours.prompt_ids, side) for side in (ours.chosen_ids, ours.rejected_ids)]
    for name, row in zip(("logps/chosen", "logps/rejected"), sides, strict=True):
        seen, blind = (perplexities(load_policy(base, adapter), [row], batch_tokens=64) for base in (windowed, tiny_base))
        assert update[name] == pytest.approx(-len(row.response_ids) * math.log(seen[0]), abs=1e-4)
        assert seen != pytest.approx(blind), "the window hides something"
    assert update["margins"] == pytest.approx(0, abs=1e-5), "so it does for the reference"


def test_an_interrupted_training_ends_bit_identical_to_an_undisturbed_one(train, pairs, sequences, tmp_path):
    whole = train("whole", pairs, sequences)

    def keep(folder, update):
        folder.rename(tmp_path / "checkpoint")
        folder.mkdir()

    seen = []
    hooks = TrainingHooks(should_stop=lambda: seen == [1, 2], save_checkpoint=keep, on_progress=lambda done, *_: seen.append(done))
    with pytest.raises(Interrupted, match="update 2 of 6"):
        train("parts", pairs, sequences, hooks=hooks)
    resumed = TrainingHooks(resume_from=tmp_path / "checkpoint")
    parts = train("parts", pairs, sequences, settings=FAST.model_copy(update={"checkpoint_seconds": 9.0}), hooks=resumed)
    assert parts.metrics == whole.metrics
    name = "adapter_model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_training_stops_while_it_computes_the_reference(train, pairs, tmp_path):
    calls = iter([False, True])
    hooks = TrainingHooks(should_stop=lambda: next(calls), save_checkpoint=lambda *_: pytest.fail("there is nothing to save"))
    with pytest.raises(Interrupted, match="before its first update"):
        train("out", pairs, [], hooks=hooks)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [train_preferences, continue_sft])
def test_a_training_says_when_its_model_is_loaded(train, pairs, sequences, monkeypatch, method):
    seen = []
    module = preference if method is train_preferences else sft
    monkeypatch.setattr(module, "load_model", lambda *given, **more: (seen.append("load"), load_model(*given, **more))[1])
    monkeypatch.setattr(preference, "response_logps", lambda *given: (seen.append("compute"), response_logps(*given))[1])
    hooks = TrainingHooks(on_loaded=lambda: seen.append("loaded"), on_progress=lambda *_: seen.append("update"))
    data = pairs if method is train_preferences else sequences
    train("out", data, [], settings=FAST.model_copy(update={"updates": 1}), method=method, hooks=hooks)
    assert seen[:2] == ["load", "loaded"]
    assert seen[-1] == "update"
    assert seen.count("loaded") == 1


def test_dropout_continues_where_a_checkpoint_left_it(train, sequences, dropping_adapter, tmp_path):
    settings = FAST.model_copy(update={"updates": 2, "batch_pairs": 1})
    train = functools.partial(train, method=continue_sft, adapter_in=dropping_adapter, settings=settings)
    whole = train("whole", sequences, [])
    hooks = TrainingHooks(should_stop=lambda: True, save_checkpoint=lambda folder, _: shutil.copytree(folder, tmp_path / "checkpoint"))
    with pytest.raises(Interrupted):
        train("parts", sequences, [], hooks=hooks)
    settings = settings.model_copy(update={"checkpoint_seconds": 9.0})
    parts = train("parts", sequences, [], settings=settings, hooks=TrainingHooks(resume_from=tmp_path / "checkpoint"))
    assert parts.metrics == whole.metrics


def test_dropout_draws_by_the_seed_of_the_stage(tiny_base, lora, dropping_adapter, tmp_path):
    """All rows are the same, so that the plan cannot make the difference."""
    rows, settings = [TokenSequence([5, 6, 7], [8, 9, 2])] * 4, FAST.model_copy(update={"updates": 1})

    def loss(seed):
        common = {"adapter_in": dropping_adapter, "model": lora, "settings": settings, "output": tmp_path / "out"}
        return continue_sft(tiny_base, rows, [], seed=seed, **common).metrics[0]["loss"]

    assert loss(1) == loss(1) != pytest.approx(loss(2), rel=1e-4)


@pytest.mark.parametrize("changed", ["pairs", "replay"])
def test_beside_a_checkpoint_of_other_rows_it_starts_anew(train, pairs, sequences, tmp_path, changed):
    settings = FAST.model_copy(update={"updates": 2, "batch_pairs": 1, "checkpoint_seconds": 1e-9})
    hooks = TrainingHooks(save_checkpoint=lambda folder, _: shutil.copytree(folder, tmp_path / "checkpoint"))
    train("out", pairs, sequences, settings=settings, hooks=hooks)
    discarded = []
    hooks = TrainingHooks(resume_from=tmp_path / "checkpoint", discard_checkpoints=lambda: discarded.append(True))
    train("out", pairs, sequences, settings=settings, hooks=hooks)
    assert discarded == [], "its own"
    data = (pairs[::-1], sequences) if changed == "pairs" else (pairs, sequences[::-1])
    train("out", *data, settings=settings, hooks=hooks)
    assert discarded == [True]


def test_a_checkpoint_is_written_every_so_many_seconds(train, pairs):
    settings, seen = FAST.model_copy(update={"checkpoint_seconds": 1e-9}), []
    hooks = TrainingHooks(save_checkpoint=lambda folder, update: seen.append((update, sorted(path.name for path in folder.iterdir()))))
    train("out", pairs, [], settings=settings, hooks=hooks)
    assert seen == [(update, ["adapter", "training_log.json", "training_state.pt"]) for update in range(1, 6)]


def test_a_gradient_that_is_not_a_number_stops_without_saving(train, pairs, tmp_path):
    settings = FAST.model_copy(update={"learning_rate": 1e30, "warmup_fraction": 0.0})
    with pytest.raises(NumericalError, match=r"at update \d of 6"):
        train("out", pairs, [], settings=settings)
    assert not (tmp_path / "out").exists()


def test_equal_sides_are_refused(train):
    with pytest.raises(InputError, match="two equal sides"):
        train("out", [pair([5], [], [6], [6])], [])


THIRD = DpoConfig(updates=5, batch_pairs=16, replay_fraction=1 / 3)


def test_an_update_holds_pairs_and_the_share_of_replay():
    plan = plan_preferences(10, 50, THIRD, seed=1)
    assert [(len(update.pairs), len(update.replay)) for update in plan] == [(16, 16)] * 5


def test_what_is_replayed_is_drawn_by_itself():
    plan = plan_preferences(10, 10, THIRD, seed=1)
    assert [update.pairs for update in plan] != [update.replay for update in plan]


def test_an_update_of_a_control_holds_two_sequences_for_each_pair_and_the_same_replay():
    plan = plan_continuation(10, 50, THIRD, seed=1)
    assert [(sum(row < 10 for row in update.rows), sum(row >= 10 for row in update.rows)) for update in plan] == [(32, 16)] * 5
    replayed = [[row - 10 for row in update.rows[32:]] for update in plan]
    assert replayed == [update.replay for update in plan_preferences(10, 50, THIRD, seed=1)]


def test_a_control_takes_as_many_updates_and_learns(train, sequences):
    log = train("out", sequences[:10], sequences[10:], method=continue_sft)
    assert log.updates == FAST.updates
    assert log.metrics[-1]["loss"] < log.metrics[0]["loss"]


def test_likelihood_is_learned_on_the_whole_right_answer(tiny_base, adapter, train):
    """The term is the mean NLL of [7, 8 | 9 | 10, 2], the answer that the chosen step belongs to; the rejected side has no part in it."""
    ours = pair([5, 6], [7, 8], [9], [11, 12]).model_copy(update={"ending_ids": [10, 2]})
    settings = FAST.model_copy(update={"updates": 1, "batch_pairs": 1, "replay_fraction": 0.0, "nll_on": "answer"})
    log = train("answer", [ours], [], settings=settings)
    [expected] = perplexities(load_policy(tiny_base, adapter), [TokenSequence([5, 6], [7, 8, 9, 10, 2])], batch_tokens=64)
    assert log.metrics[0]["nll/chosen"] == pytest.approx(math.log(expected), abs=1e-5)
    assert log.metrics[0]["margins"] == pytest.approx(0, abs=1e-6)
    step = train("step", [ours], [], settings=settings.model_copy(update={"nll_on": "step"}))
    for name in ("logps/chosen", "logps/rejected"):
        assert log.metrics[0][name] == pytest.approx(step.metrics[0][name], abs=1e-5)
    [alone] = perplexities(load_policy(tiny_base, adapter), [TokenSequence([5, 6, 7, 8], [9])], batch_tokens=64)
    assert step.metrics[0]["nll/chosen"] == pytest.approx(math.log(alone), abs=1e-5)
