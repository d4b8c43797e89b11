"""What only the embedded policy promises: transformers' numbers, batches of any make-up, clear ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.utils.logging import enable_progress_bar

from itool.config import ModelConfig, PolicyConfig
from itool.errors import ConfigError, DependencyError, InputError, ItoolError, NumericalError
from itool.policy import cohort
from itool.policy.embedded import EmbeddedPolicy
from itool.policy.packed import PackedModel, Span, load_packed_model
from itool.policy.protocol import Sample
from tests.policy.conftest import CONTEXT, MODEL, Folders
from tests.policy.test_contract import OTHER, PROMPT, draw, ids


def open_embedded(folders: Folders, *, rows: int = 64, adapter: Path | None = None, model: ModelConfig = MODEL) -> EmbeddedPolicy:
    return EmbeddedPolicy(folders.model, adapter, model=model, policy=PolicyConfig(batch_sequences=rows))


@torch.inference_mode()
def transformers_logprobs(folders: Folders, prompt: list[int], continuation: tuple[int, ...]) -> list[float]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.model), str(folders.adapter))
    logits = model(torch.tensor([[*prompt, *continuation]])).logits[0].log_softmax(-1)
    return [float(logits[len(prompt) - 1 + number, token]) for number, token in enumerate(continuation)]


def test_decoding_gives_the_logprobs_of_plain_transformers(folders: Folders) -> None:
    async def samples() -> list[list[Sample]]:
        async with open_embedded(folders, adapter=folders.adapter) as policy:
            asked = [draw(policy, OTHER * number, tokens=4 * number, count=1 + number % 3, seed=number) for number in range(1, 9)]
            return await asyncio.gather(*asked)

    answers = list(enumerate(asyncio.run(samples()), start=1))
    assert len({len(sample.token_ids) for _, answer in answers for sample in answer}) > 8  # rows and prompts end one after the other
    for number, answer in answers:
        for sample in answer:
            assert sample.logprobs == pytest.approx(transformers_logprobs(folders, OTHER * number, sample.token_ids), abs=1e-4)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 7, 64])
def test_the_size_of_the_batch_changes_no_sample(folders: Folders, rows: int) -> None:
    async def samples(rows: int) -> list[list[tuple[int, ...]]]:
        async with open_embedded(folders, rows=rows) as policy:
            questions = [draw(policy, OTHER * number, tokens=4 * number, count=5, seed=number) for number in range(1, 7)]
            return [ids(answer) for answer in await asyncio.gather(*questions)]

    assert asyncio.run(samples(rows)) == asyncio.run(samples(200))


def test_a_greedy_request_stays_greedy_when_sampled_ones_in_its_batch_end(folders: Folders) -> None:
    async def answers() -> tuple[list[Sample], list[Sample]]:
        async with open_embedded(folders) as policy:
            alone = await draw(policy, OTHER, t=0.0, count=1)
            _, beside = await asyncio.gather(draw(policy, count=20, tokens=3), draw(policy, OTHER, t=0.0, count=1))
            return alone, beside

    alone, beside = asyncio.run(answers())
    assert ids(alone) == ids(beside)
    assert len(alone[0].token_ids) > 3


def test_a_prompt_that_extends_a_known_one_is_answered_as_if_it_were_new(folders: Folders) -> None:
    extended = [*PROMPT, *OTHER, *PROMPT]

    async def answers(*, warm: bool) -> tuple[list[Sample], list[float]]:
        async with open_embedded(folders) as policy:
            if warm:
                await draw(policy, [*PROMPT, *OTHER])
            return await draw(policy, extended), await policy.logprobs(extended, OTHER)

    (cold, cold_scores), (warm, warm_scores) = asyncio.run(answers(warm=False)), asyncio.run(answers(warm=True))
    assert ids(warm) == ids(cold)
    assert warm_scores == pytest.approx(cold_scores, abs=1e-5)


def test_a_policy_that_forgot_reads_a_prompt_from_its_beginning(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[int] = []
    prefill = PackedModel.prefill

    def watched(model: PackedModel, spans: Sequence[Span], wanted: Sequence[int]) -> torch.Tensor:
        known.extend(span.past for span in spans)
        return prefill(model, spans, wanted)

    async def ask() -> None:
        async with open_embedded(folders) as policy:
            await draw(policy, PROMPT, tokens=1)
            await draw(policy, [*PROMPT, *OTHER], tokens=1)
            policy.forget()
            await draw(policy, [*PROMPT, *OTHER], tokens=1)

    monkeypatch.setattr(PackedModel, "prefill", watched)
    asyncio.run(ask())
    assert known == [0, len(PROMPT), 0]


def test_a_request_that_was_given_up_disturbs_nobody(folders: Folders) -> None:
    async def answers() -> tuple[list[Sample], list[Sample]]:
        async with open_embedded(folders) as policy:
            alone = await draw(policy)
            abandoned = asyncio.ensure_future(draw(policy, OTHER, tokens=100))
            kept = asyncio.ensure_future(draw(policy))
            await asyncio.sleep(0.01)
            abandoned.cancel()
            return alone, await kept

    alone, kept = asyncio.run(answers())
    assert ids(alone) == ids(kept)


def test_a_policy_that_was_closed_says_so(folders: Folders) -> None:
    async def late() -> None:
        policy = open_embedded(folders)
        async with policy:
            running = asyncio.ensure_future(draw(policy, tokens=200))
            await asyncio.sleep(0)
        with pytest.raises(DependencyError, match="was closed while a request was running"):
            await running
        with pytest.raises(DependencyError, match="is closed"):
            await draw(policy)

    asyncio.run(late())


def test_an_engine_that_dies_is_gone_for_whoever_waits_and_whoever_asks_later(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    async def ask() -> None:
        async with open_embedded(folders) as policy:
            monkeypatch.setattr(PackedModel, "decode", decode)
            answers = await asyncio.gather(draw(policy), draw(policy, OTHER), return_exceptions=True)
            for error in [*answers, *await asyncio.gather(draw(policy), return_exceptions=True)]:
                assert isinstance(error, ItoolError)
                assert error.exit_code == 1  # counted: it may come again for ever
                assert "the embedded policy failed: OutOfMemoryError: CUDA out of memory" in str(error)

    asyncio.run(ask())


def test_weights_that_are_not_finite_end_every_request_with_a_numerical_error(folders: Folders, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folders.model)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(tmp_path)

    async def ask() -> None:
        broken = Folders(tmp_path, folders.adapter, folders.other_adapter)
        async with open_embedded(broken) as policy:
            for error in await asyncio.gather(draw(policy), policy.logprobs(PROMPT, OTHER), return_exceptions=True):
                assert isinstance(error, NumericalError)

    asyncio.run(ask())


def test_in_bfloat16_the_adapter_stays_apart_and_still_counts(folders: Folders) -> None:
    half = MODEL.model_copy(update={"dtype": "bfloat16"})

    async def scores(adapter: Path | None, model: ModelConfig) -> list[float]:
        async with open_embedded(folders, adapter=adapter, model=model) as policy:
            await draw(policy)
            return await policy.logprobs(PROMPT, OTHER)

    exact, rough = asyncio.run(scores(folders.adapter, MODEL)), asyncio.run(scores(folders.adapter, half))
    assert rough == pytest.approx(exact, abs=0.3)
    assert rough != pytest.approx(asyncio.run(scores(None, half)), abs=0.3)


def test_loading_writes_nothing_between_the_log_lines(folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    enable_progress_bar()
    open_embedded(folders, adapter=folders.adapter)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("dtype", "apart"), [("float32", False), ("bfloat16", True)])
def test_an_adapter_is_merged_in_float32_only(folders: Folders, dtype: str, apart: bool) -> None:
    """A sum in bfloat16 would round the small differences away that it makes."""
    model = load_packed_model(folders.model, folders.adapter, dtype=dtype, context_tokens=CONTEXT)
    assert any("lora_A" in name for name, _ in model._model.named_parameters()) == apart


def test_an_adapter_of_another_model_is_an_input_error(folders: Folders, tmp_path: Path) -> None:
    config = LlamaForCausalLM.from_pretrained(folders.model).config
    config.hidden_size, config.head_dim = 32, 8
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    other = Folders(tmp_path, folders.adapter, folders.other_adapter)
    with pytest.raises(InputError, match="does not fit its base model"):
        open_embedded(other, adapter=folders.adapter)


def test_a_model_with_a_sliding_window_is_refused_with_a_remedy(folders: Folders, tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        sliding_window=64, eos_token_id=2,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"windowed.*Set model\.context_tokens to at most the window, 64, or"):
        open_embedded(Folders(tmp_path, folders.adapter, folders.other_adapter))


def test_a_model_with_other_layers_than_attention_is_refused(folders: Folders, tmp_path: Path) -> None:
    """They would mix the rows that stand side by side in one forward, and keep nothing from one token to the next."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        layer_types=["conv", "full_attention"], eos_token_id=2,
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layers other than attention \(conv\).*Set policy\.backend to vllm"):
        open_embedded(Folders(tmp_path, folders.adapter, folders.other_adapter))


def test_attention_written_out_equals_the_fused_kernel() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 10, 8), torch.randn(3, 2, 10, 8)
    bias = torch.zeros(3, 1, 1, 10)
    bias[1, :, :, 6:] = -torch.inf
    for given in (None, bias):
        fused, plain = cohort._attention(query, key, value, given, 0.3), cohort.plain_attention(query, key, value, given, 0.3)
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_a_draw_inverts_the_distribution_function() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.0, 0.5, 0.3]])).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999])
    tokens, logprobs = cohort.draw_tokens(logits, torch.ones(6), uniform)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5, 0.3, 0.3])


def test_a_cold_draw_reports_logprobs_at_temperature_one() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.8], [0.2, 0.8]]))
    tokens, logprobs = cohort.draw_tokens(logits, torch.tensor([0.5, 0.0]), torch.tensor([0.05, 0.05]))
    assert tokens.tolist() == [0, 1]  # at temperature 0.5 the first option has 0.04 / 0.68 = 0.0588
    assert logprobs.exp().tolist() == pytest.approx([0.2, 0.8])
