import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from itool.policy.model_folder import other_layers
from itool.train.model import load_model, pass_cost_tokens, response_logps
from itool.train.sequences import TokenSequence, batch_pairs, batch_pairs_apart, batch_sequences, bucket, draw, step_pair


def test_a_sequence_scores_every_response_token_and_no_prompt_token():
    batch = batch_sequences([TokenSequence([5, 6], [7, 2]), TokenSequence([5], [8])])
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch.predictors.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [7, 2, 8]
    assert batch.owners.tolist() == [0, 0, 1]


def test_log_probabilities_start_at_the_first_diverging_token():
    pair = step_pair([5, 6], [7, 8, 9], [7, 8, 3, 4])
    assert (pair.state_ids, pair.chosen_ids, pair.rejected_ids) == ([5, 6, 7, 8], [9], [3, 4])


def test_a_side_that_begins_the_other_has_nothing_to_score():
    pair = step_pair([5], [7], [7, 8])
    assert (pair.state_ids, pair.chosen_ids, pair.rejected_ids) == ([5, 7], [], [8])
    assert batch_pairs([pair]).owners.tolist() == [1]


def test_no_token_is_added_to_a_step():
    batch = batch_pairs([step_pair([5, 6], [7, 8], [9, 10, 11])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 10]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3]]
    assert batch.targets.tolist() == [7, 8, 9, 10, 11]
    assert batch.predictors.tolist() == [1, 2, 1, 3, 4]


def test_pairs_that_share_their_state_have_the_log_probabilities_of_separate_rows(tiny_base):
    model = load_model(tiny_base).eval()
    pairs = [step_pair([5, 6, 7], [8, 9, 10], [11, 12]), step_pair([20], [21], [22, 23, 24, 25]), step_pair([5, 6], [7], [7, 8])]
    rows = [TokenSequence(pair.state_ids, side) for pair in pairs for side in (pair.chosen_ids, pair.rejected_ids) if side]
    with torch.no_grad():
        together = response_logps(model, batch_pairs(pairs))
        apart = torch.cat([response_logps(model, batch_sequences([row])) for row in rows])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


RECURRENT = {
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 16,
        "moe_intermediate_size": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}


@pytest.mark.parametrize("model_type", RECURRENT)
def test_rows_apart_have_the_log_probabilities_of_separate_rows_where_a_shared_row_has_not(model_type):
    """Layers that go along a row from left to right take the chosen side for what came before the rejected one."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **shape, **RECURRENT[model_type], num_key_value_heads=1, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert other_layers(model)
    pairs = [step_pair([5, 6, 7], [8, 9, 10], [11, 12], answer=(1, [13, 2])), step_pair([20], [21], [22, 23, 24, 25])]
    rows = [TokenSequence(*row) for row in (([5, 6], [7, 8, 9, 10, 13, 2]), ([5, 6, 7], [11, 12]), ([20], [21]), ([20], [22, 23, 24, 25]))]
    shared, apart = batch_pairs(pairs), batch_pairs_apart(pairs)
    assert (apart.targets.tolist(), apart.owners.tolist(), apart.count) == (shared.targets.tolist(), shared.owners.tolist(), shared.count)
    with torch.no_grad():
        expected = torch.cat([response_logps(model, batch_sequences([row])) for row in rows])
        torch.testing.assert_close(response_logps(model, apart), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(response_logps(model, shared), expected, atol=1e-2)


def test_padding_changes_no_log_probability(tiny_base, sequences):
    model = load_model(tiny_base).eval()
    with torch.no_grad():
        together = response_logps(model, batch_sequences(sequences))
        apart = torch.cat([response_logps(model, batch_sequences([row])) for row in sequences])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 900))
def test_buckets_hold_every_sequence_once_within_the_limit(lengths, limit):
    groups = bucket(lengths, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[index] for index in group) <= limit for group in groups)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 120), st.integers(0, 60))
def test_no_other_cuts_cost_less(lengths, limit, pass_cost):
    def cost(groups):
        return sum(len(group) * max(group) + pass_cost for group in groups)

    def allowed(groups):
        return all(len(group) == 1 or len(group) * max(group) <= limit for group in groups)

    ordered = sorted(lengths)
    cuts = itertools.product([False, True], repeat=len(ordered) - 1)
    ways = [
        [ordered[start:end] for start, end in itertools.pairwise([0, *(i + 1 for i, here in enumerate(way) if here), len(ordered)])]
        for way in cuts
    ]
    groups = bucket(lengths, limit, pass_cost_tokens=pass_cost)
    assert cost([[lengths[index] for index in group] for group in groups]) == min(cost(way) for way in ways if allowed(way))


def test_equal_lengths_share_one_forward_pass_and_very_different_ones_do_not():
    assert len(bucket([10] * 32, 4096)) == 1
    assert bucket([10] * 8 + [400] * 8, 4096) == [list(range(8)), list(range(8, 16))]
    assert len(bucket([10] * 8 + [400] * 8, 8192, pass_cost_tokens=20_000)) == 1


def test_a_pass_without_gradients_costs_less(tiny_base):
    model = load_model(tiny_base)
    assert pass_cost_tokens(model, gradients=False) < pass_cost_tokens(model)


@given(st.integers(1, 20), st.integers(0, 9), st.integers(1, 30))
def test_draws_pass_over_everything_before_they_repeat(count, updates, per_update):
    drawn = draw(count, updates, per_update, seed=4, salt="x")
    flat = [row for update in drawn for row in update]
    assert [len(update) for update in drawn] == [per_update] * updates
    for start in range(0, len(flat), count):
        assert len(set(flat[start : start + count])) == len(flat[start : start + count])
    assert drawn == draw(count, updates, per_update, seed=4, salt="x")


def test_every_pass_every_seed_and_every_salt_has_an_order_of_its_own():
    orders = [*draw(20, 3, 20, seed=4, salt="x"), *draw(20, 1, 20, seed=5, salt="x"), *draw(20, 1, 20, seed=4, salt="y")]
    assert len({tuple(order) for order in orders}) == 5


def test_the_rest_of_the_right_answer_is_scored_on_no_side():
    """State [5, 6 | 7] whose last token is part of the answer, sides [8] and [9, 10], and [11, 2] that follow the chosen side."""
    batch = batch_pairs([step_pair([5, 6, 7], [8], [9, 10], answer=(1, [11, 2]))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 11, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.targets.tolist() == [7, 8, 11, 2, 9, 10]
    assert batch.predictors.tolist() == [1, 2, 3, 4, 2, 5]
    assert batch.owners.tolist() == [2, 0, 2, 2, 1, 1]


def test_a_common_beginning_of_both_sides_is_part_of_the_answer():
    assert step_pair([5, 6, 7], [8, 3], [8, 4], answer=(1, [2])).prefix_tokens == 2
