import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from itool.config import DpoConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from itool.errors import InputError, Interrupted, NumericalError
from itool.muon import Muon
from itool.stages import flatten, unread
from itool.train.hooks import TrainingHooks
from itool.train.model import ADAPTER_WEIGHTS, load_adapter, load_model, load_policy
from itool.train.optimizer import build_optimizer, schedule_factor
from itool.train.perplexity import perplexities
from itool.train.sequences import TokenSequence
from itool.train.sft import plan_continuation, plan_curriculum, train_sft
from itool.train.updates import repeatable_kernels

FAST = WarmupConfig(epochs=2, batch_examples=8, learning_rate=1e-2, batch_tokens=128, optimizer="adamw")


def by_phase(sequences):
    return {"easy": sequences[:8], "medium": sequences[8:16], "hard": sequences[16:]}


def test_training_lowers_the_loss_and_saves_only_an_adapter(tiny_base, lora, sequences, tmp_path):
    log = train_sft(tiny_base, by_phase(sequences), model=lora, settings=FAST, seed=3, output=tmp_path / "adapter")
    assert [entry["update"] for entry in log.metrics] == [1, 2, 3, 4, 5, 6]
    assert log.tokens == sum(entry["tokens"] for entry in log.metrics) == 2 * sum(map(len, sequences)), "two epochs"
    assert log.metrics[1]["loss"] < log.metrics[0]["loss"]
    assert [entry["learning_rate"] for entry in log.metrics] == pytest.approx([0.01, 0.01, 0.008, 0.006, 0.004, 0.002])
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(tiny_base) not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def test_the_first_loss_is_the_one_that_transformers_computes(tiny_base, lora, sequences, tmp_path):
    settings = FAST.model_copy(update={"batch_examples": 24, "epochs": 1, "curriculum": "mixed"})
    ours = train_sft(tiny_base, {"all": sequences}, model=lora, settings=settings, seed=3, output=tmp_path / "a").metrics[0]["loss"]
    model = load_model(tiny_base).eval()
    total = tokens = 0
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        labels = ids.clone()
        labels[:, : len(sequence.prompt_ids)] = -100
        total += model(input_ids=ids, labels=labels).loss.item() * len(sequence.response_ids)
        tokens += len(sequence.response_ids)
    assert ours == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # PEFT looks among modules; these are weights
def test_experts_that_are_one_tensor_are_trained_saved_and_loaded(tiny_base, lora, sequences, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    torch.manual_seed(6)
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts, max_position_embeddings=128)).save_pretrained(base)
    train_sft(base, by_phase(sequences), model=lora, settings=FAST, seed=3, output=tmp_path / "adapter")
    before, after = (perplexities(load_policy(base, adapter), sequences, batch_tokens=256) for adapter in (None, tmp_path / "adapter"))
    assert sum(map(math.log, after)) < sum(map(math.log, before)) - 1
    apart = load_adapter(load_model(base), tmp_path / "adapter").eval()
    assert any("experts" in name for name, _ in apart.named_parameters() if "lora_A" in name)
    assert perplexities(apart, sequences, batch_tokens=256) == pytest.approx(after, rel=1e-4)


def test_dropout_is_applied_while_training(tiny_base, lora, sequences, tmp_path):
    """B is zero in the first update, so that the second is the first that can differ."""

    def second_loss(dropout):
        model = lora.model_copy(update={"lora_dropout": dropout})
        settings = FAST.model_copy(update={"epochs": 0.25, "curriculum": "mixed", "warmup_fraction": 0.0})
        log = train_sft(tiny_base, {"all": sequences * 2}, model=model, settings=settings, seed=3, output=tmp_path / f"{dropout}")
        return log.metrics[1]["loss"]

    assert second_loss(0.5) != pytest.approx(second_loss(0.0), rel=1e-4)


def test_gradients_are_clipped_to_the_configured_norm(tiny_base, lora, sequences, tmp_path):
    """AdamW forgets the size of gradients, except for one far below its epsilon: then nothing moves."""
    tight = {"max_grad_norm": 1e-14, "weight_decay": 0.0, "batch_examples": 24, "curriculum": "mixed"}
    log = train_sft(tiny_base, {"all": sequences}, model=lora, settings=FAST.model_copy(update=tight), seed=3, output=tmp_path / "a")
    assert log.metrics[0]["grad_norm"] > 1e-3, "logged as it was"
    assert log.metrics[1]["loss"] == pytest.approx(log.metrics[0]["loss"], abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_decay_by_the_configured_share_where_no_gradient_moves_them(optimizer):
    weights = torch.nn.Parameter(torch.ones(2, 3))
    weights.grad = torch.zeros(2, 3)
    settings = FAST.model_copy(update={"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.5})
    build_optimizer([weights], settings).step()
    torch.testing.assert_close(weights.detach(), torch.full((2, 3), 0.95))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_training_ends_bit_identical_to_an_undisturbed_one(tiny_base, lora, sequences, tmp_path, optimizer):
    lora = lora.model_copy(update={"lora_dropout": 0.1})
    settings = FAST.model_copy(update={"optimizer": optimizer})
    common = {"model": lora, "settings": settings, "seed": 3}
    train_sft(tiny_base, by_phase(sequences), output=tmp_path / "whole", **common)

    def keep(folder, update):
        folder.rename(tmp_path / f"checkpoint-{update}")
        folder.mkdir()

    calls = iter([False, False, True])
    hooks = TrainingHooks(should_stop=lambda: next(calls), save_checkpoint=keep)
    with pytest.raises(Interrupted, match="update 3 of 6"):
        train_sft(tiny_base, by_phase(sequences), output=tmp_path / "parts", hooks=hooks, **common)
    assert not (tmp_path / "parts").exists()
    torch.manual_seed(99)
    hooks = TrainingHooks(resume_from=tmp_path / "checkpoint-3")
    common |= {"settings": settings.model_copy(update={"checkpoint_seconds": 9.0})}  # decides nothing but when to save
    log = train_sft(tiny_base, by_phase(sequences), output=tmp_path / "parts", hooks=hooks, **common)
    assert [entry["update"] for entry in log.metrics] == [1, 2, 3, 4, 5, 6]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"settings": FAST.model_copy(update={"weight_decay": 0.5})},
        {"model": ModelConfig(lora_rank=4, lora_alpha=16.0)},
        "no state",
        "no adapter",
        "another adapter",
    ],
)
def test_beside_a_checkpoint_of_another_training_it_starts_anew(tiny_base, lora, sequences, tmp_path, other):
    def keep(folder, update):
        folder.rename(tmp_path / "checkpoint")
        folder.mkdir()

    common = {"model": lora, "settings": FAST, "seed": 3, "output": tmp_path / "x"}
    hooks = TrainingHooks(should_stop=lambda: True, save_checkpoint=keep)
    with pytest.raises(Interrupted):
        train_sft(tiny_base, by_phase(sequences), hooks=hooks, **common)
    adapter = tmp_path / "checkpoint/adapter"
    if other == "no state":
        (tmp_path / "checkpoint/training_state.pt").unlink()
    elif other == "no adapter":
        shutil.rmtree(adapter)
    elif other == "another adapter":
        weights = load_file(adapter / ADAPTER_WEIGHTS)
        save_file({name: tensor[:1].contiguous() for name, tensor in weights.items()}, adapter / ADAPTER_WEIGHTS)
    other = other if isinstance(other, dict) else {}
    discarded = []
    hooks = TrainingHooks(resume_from=tmp_path / "checkpoint", discard_checkpoints=lambda: discarded.append(True))
    with capture_logs() as said:
        log = train_sft(tiny_base, by_phase(sequences), hooks=hooks, **(common | other))
    assert [line["event"] for line in said] == ["checkpoint skipped"]
    assert discarded == [True]
    assert log.metrics == train_sft(tiny_base, by_phase(sequences), **(common | other)).metrics


def test_a_loss_that_is_not_a_number_stops_without_saving(tiny_base, lora, sequences, tmp_path):
    settings = FAST.model_copy(update={"learning_rate": 1e30, "warmup_fraction": 0.0})
    with pytest.raises(NumericalError, match=r"at update [2-6] of 6 .*; lower the learning rate"):
        train_sft(tiny_base, by_phase(sequences), model=lora, settings=settings, seed=3, output=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_loss_that_is_not_a_number_before_any_update_is_the_bases_fault(tiny_base, lora, sequences, tmp_path):
    broken, model = shutil.copytree(tiny_base, tmp_path / "broken"), load_model(tiny_base)
    model.model.norm.weight.data[0] = math.nan
    model.save_pretrained(broken)
    with pytest.raises(NumericalError, match=r"loss is nan at update 1 of 6 .*; the base model gives it before any update"):
        train_sft(broken, by_phase(sequences), model=lora, settings=FAST, seed=3, output=tmp_path / "adapter")


def test_easy_to_hard_keeps_the_order_and_mixed_the_number_of_updates():
    ordered = plan_curriculum([10, 0, 20], WarmupConfig(epochs=2, batch_examples=5), seed=1)
    mixed = plan_curriculum([10, 0, 20], WarmupConfig(epochs=2, batch_examples=5, curriculum="mixed"), seed=1)
    assert [update.phase for update in ordered] == [0] * 4 + [2] * 8
    assert len(mixed) == len(ordered)
    assert all(len(update.rows) == 5 for update in [*ordered, *mixed])
    assert sorted(row for update in ordered for row in update.rows) == sorted(list(range(30)) * 2)
    assert ordered == plan_curriculum([10, 0, 20], WarmupConfig(epochs=2, batch_examples=5), seed=1)


def test_a_row_beyond_the_context_is_refused(tiny_base, lora, tmp_path):
    long = TokenSequence([3] * 200, [4], "too-long")
    with pytest.raises(InputError, match="'too-long' has 201 tokens"):
        train_sft(tiny_base, {"all": [long]}, model=lora, settings=FAST, seed=1, output=tmp_path)


def test_muon_is_torchs_muon_up_to_its_bfloat16():
    torch.manual_seed(1)
    start = [torch.randn(24, 8), torch.randn(8, 24), torch.randn(24, 8)]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = [Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)]
    for _ in range(3):
        gradients = [torch.randn_like(matrix) for matrix in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for first, mine, other in zip(start, ours, theirs, strict=True):
        torch.testing.assert_close(mine - first, other - first, atol=1e-3, rtol=0.05)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_schedule_warms_up_and_never_wastes_an_update(schedule):
    settings = WarmupConfig(schedule=schedule, warmup_fraction=0.2)
    factors = [schedule_factor(update, 10, settings) for update in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert all(factor > 0 for factor in factors)
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_the_learning_rate_falls_along_a_line_or_half_a_wave():
    """After 2 of 10 updates of warm-up, 8 remain: at update 4 three quarters of them, at update 8 one."""
    linear, cosine = (
        [schedule_factor(update, 10, WarmupConfig(schedule=schedule, warmup_fraction=0.2)) for update in (4, 6, 8)]
        for schedule in ("linear", "cosine")
    )
    assert linear == pytest.approx([0.75, 0.5, 0.25])
    assert cosine == pytest.approx([0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)])


def test_a_gpu_gets_repeatable_kernels_and_whoever_samples_after_a_training_does_not(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with repeatable_kernels():
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_enters_no_key_of_an_sft_control_is_read_by_none_of_its_updates():
    left_out = {path.removeprefix("dpo.") for path in unread(flatten(RunConfig(method="sft_continued").model_dump()), "dpo")}
    assert left_out & set(OptimizerConfig.model_fields) == {"checkpoint_seconds"}
    others = {"loss": "ipo", "nll_on": "answer", "label_smoothing": "visits", "reference": "warmup", "replay_from": "warmup_and_buffer"}
    changed = DpoConfig(**{field: others.get(field, 1) for field in left_out})
    assert plan_continuation(10, 50, changed, seed=1) == plan_continuation(10, 50, DpoConfig(), seed=1)
