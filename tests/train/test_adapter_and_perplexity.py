import json
import math

import pytest
import torch
from structlog.testing import capture_logs
from transformers import FalconH1Config, FalconH1ForCausalLM, MixtralConfig, MixtralForCausalLM, Phi3Config, Phi3ForCausalLM

from itool.errors import ArtifactError, InputError
from itool.train.model import fold_small_adapters, load_adapter, load_model, load_policy, new_adapter, response_logps, save_adapter
from itool.train.perplexity import perplexities
from itool.train.sequences import batch_sequences


def logps(model, sequences):
    with torch.no_grad():
        return response_logps(model.eval(), batch_sequences(sequences))


def test_a_new_adapter_changes_nothing_and_covers_every_linear_layer(tiny_base, lora, sequences):
    base = logps(load_model(tiny_base), sequences)
    model = new_adapter(load_model(tiny_base), lora, seed=1)
    torch.testing.assert_close(logps(model, sequences), base)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 7


def test_layers_that_an_adapter_leaves_out_are_named(tiny_base, lora):
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with capture_logs() as said:
        new_adapter(load_model(tiny_base), lora, seed=1)
        new_adapter(Phi3ForCausalLM(Phi3Config(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=2)), lora, seed=1)
        new_adapter(MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=4, num_key_value_heads=1)), lora, seed=1)
    assert [(event["layers"], event["adapted_share"]) for event in said] == [
        (["gate_up_proj", "qkv_proj"], 0.286),  # o_proj and down_proj: 2 of 7 matrices of 8 x 8
        (["experts.down_proj", "experts.gate_up_proj", "gate"], 0.242),  # 4 of 4 + 4 * 3 such matrices, and 4 x 8 of the router
    ]


def test_equal_weights_are_saved_as_equal_bytes(tiny_base, lora, tmp_path):
    for name in ("one", "two"):
        save_adapter(new_adapter(load_model(tiny_base), lora, seed=1), tmp_path / name)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    saved = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"]) == (4, 8.0)
    save_adapter(new_adapter(load_model(tiny_base), lora, seed=2), tmp_path / "other")
    weights = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("one", "other")]
    assert weights[0] != weights[1], "another seed, other weights"


def test_perplexities_are_measured_without_dropout(tiny_base, adapter, dropping_adapter, sequences):
    expected = perplexities(load_policy(tiny_base, adapter), sequences, batch_tokens=256)
    training = load_adapter(load_model(tiny_base), dropping_adapter, trainable=True).train()
    assert perplexities(training, sequences, batch_tokens=256) == pytest.approx(expected, rel=1e-4)


def test_a_merged_and_a_folded_adapter_equal_the_plain_one(tiny_base, adapter, sequences):
    plain = load_adapter(load_model(tiny_base), adapter)
    expected = logps(plain, sequences)
    assert not torch.allclose(expected, logps(load_model(tiny_base), sequences), atol=1e-3)
    torch.testing.assert_close(logps(load_policy(tiny_base, adapter), sequences).cpu(), expected, atol=1e-5, rtol=1e-5)
    assert fold_small_adapters(plain) == 14
    torch.testing.assert_close(logps(plain, sequences), expected, atol=1e-5, rtol=1e-5)


def test_a_folded_adapter_has_the_gradients_of_the_plain_one(tiny_base, adapter, sequences):
    gradients = []
    for fold in (False, True):
        model = load_adapter(load_model(tiny_base), adapter, trainable=True)
        if fold:
            fold_small_adapters(model)
        response_logps(model, batch_sequences(sequences)).mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_a_missing_or_damaged_adapter_is_named(tiny_base, adapter, tmp_path):
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        load_adapter(load_model(tiny_base), tmp_path)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ArtifactError):
        load_adapter(load_model(tiny_base), adapter)


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)


def test_a_base_that_scales_its_logits_is_refused(tmp_path):
    """Falcon H1's own model gives other log-probabilities than the product with its vocabulary alone."""
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    mamba = {"mamba_d_ssm": 8, "mamba_n_heads": 1, "mamba_d_head": 8, "mamba_d_state": 8, "num_key_value_heads": 1}
    FalconH1ForCausalLM(FalconH1Config(**shape, **mamba, lm_head_multiplier=0.5)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"changes its logits \(lm_head_multiplier\)"):
        load_model(tmp_path)


def test_perplexities_equal_a_loop_of_one_sequence_at_a_time(tiny_base, sequences):
    model = load_model(tiny_base).eval()
    expected = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
        labels = ids.clone()
        labels[:, : len(sequence.prompt_ids)] = -100
        expected.append(math.exp(model(input_ids=ids, labels=labels).loss.item()))
    seen = []
    found = perplexities(model, sequences, batch_tokens=200, on_progress=lambda done, total: seen.append((done, total)))
    assert found == pytest.approx(expected, rel=1e-4)
    assert seen[-1] == (24, 24)


def test_perplexities_that_were_broken_off_continue_with_the_same_batches(tiny_base, sequences):
    model, found = load_model(tiny_base), {}

    def stop_after(done, _total):
        if done >= 8:
            raise InterruptedError

    undisturbed = perplexities(model, sequences, batch_tokens=100)
    with pytest.raises(InterruptedError):
        perplexities(model, sequences, batch_tokens=100, found=found, on_progress=stop_after)
    known, seen = len(found), []
    assert 8 <= known < 24
    assert perplexities(model, sequences, batch_tokens=100, found=found, on_progress=lambda done, _: seen.append(done)) == undisturbed
    assert seen[0] > known
