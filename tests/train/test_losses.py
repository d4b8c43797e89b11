import math

import pytest
import torch

from itool.train.losses import (
    dpo_loss,
    ipo_loss,
    kl_to_reference,
    nll,
    orpo_loss,
    simpo_loss,
    sum_by,
    visit_smoothing,
)


def one(*values):
    return [torch.tensor([value]) for value in values]


def test_sum_by_adds_the_tokens_of_each_sequence():
    assert sum_by(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 3).tolist() == [-3.0, 0.0, -4.0]


def test_nll_is_the_mean_over_the_tokens_of_the_update():
    assert nll(torch.tensor([math.log(0.5), math.log(0.25)]), 4).item() == pytest.approx(3 * math.log(2) / 4)


def test_dpo_by_hand():
    # h_w = -1 - (-2) = 1, h_l = -4 - (-3) = -1, z = 0.5 * 2 = 1, -log σ(1) = 0.3132617
    assert dpo_loss(*one(-1.0, -4.0, -2.0, -3.0), beta=0.5).item() == pytest.approx(0.3132617)
    # ε = 0.25: 0.75 * 0.3132617 + 0.25 * 1.3132617
    assert dpo_loss(*one(-1.0, -4.0, -2.0, -3.0), beta=0.5, smoothing=torch.tensor([0.25])).item() == pytest.approx(0.5632617)


def test_ipo_by_hand():
    # h_w = 1 over 2 tokens, h_l = -1 over 4 tokens: 0.5 + 0.25 - 1/(2 * 0.5) = -0.25
    lengths = {"chosen_tokens": torch.tensor([2.0]), "rejected_tokens": torch.tensor([4.0])}
    assert ipo_loss(*one(-1.0, -4.0, -2.0, -3.0), **lengths, beta=0.5).item() == pytest.approx(0.0625)
    # ε = 0.5: (0.0625 + 1.75²) / 2
    smoothing = torch.tensor([0.5])
    assert ipo_loss(*one(-1.0, -4.0, -2.0, -3.0), **lengths, beta=0.5, smoothing=smoothing).item() == pytest.approx(1.5625)


def test_simpo_by_hand():
    lengths = {"chosen_tokens": torch.tensor([2.0]), "rejected_tokens": torch.tensor([4.0])}
    # 2 * (-0.5 + 1) - 0.5 = 0.5, -log σ(0.5) = 0.4740770
    assert simpo_loss(*one(-1.0, -4.0), **lengths, beta=2.0, gamma=0.5).item() == pytest.approx(0.4740770)
    # without lengths: 2 * (-1 + 4) - 0.5 = 5.5, -log σ(5.5) = 0.0040785
    assert simpo_loss(*one(-1.0, -4.0), **lengths, beta=2.0, gamma=0.5, length_normalised=False).item() == pytest.approx(
        0.0040785, abs=1e-6
    )


def test_orpo_by_hand():
    # p_w = 0.5 (odds 1), p_l = 0.2 (odds 1/4): log odds ratio = log 4, σ = 0.8, 0.5 * -log 0.8
    lengths = {"chosen_tokens": torch.tensor([2.0]), "rejected_tokens": torch.tensor([1.0])}
    loss = orpo_loss(*one(2 * math.log(0.5), math.log(0.2)), **lengths, beta=0.5)
    assert loss.item() == pytest.approx(-0.5 * math.log(0.8), abs=1e-6)


def test_visit_smoothing_is_the_rejected_share_of_visits_and_never_above_a_half():
    assert visit_smoothing(torch.tensor([6.0, 1.0]), torch.tensor([2.0, 9.0])).tolist() == [0.25, 0.5]


def test_kl_estimate_is_zero_at_the_reference_and_positive_elsewhere():
    logps = torch.tensor([-1.0, -2.0])
    assert kl_to_reference(logps, logps).item() == 0.0
    assert kl_to_reference(logps, logps + math.log(2)).item() == pytest.approx(0.5 - 1 + math.log(2), abs=1e-6)


LOSSES = {
    "dpo": lambda w, n, k: dpo_loss(w, n, torch.full((1,), -3.0), torch.full((1,), -3.0), beta=0.1),
    "ipo": lambda w, n, k: ipo_loss(w, n, torch.full((1,), -3.0), torch.full((1,), -3.0), **k, beta=0.1),
    "simpo": lambda w, n, k: simpo_loss(w, n, **k, beta=2.0, gamma=0.5),
    "orpo": lambda w, n, k: orpo_loss(w, n, **k, beta=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_chosen_gains_and_rejected_loses(name):
    chosen, rejected = (torch.tensor([-3.0], requires_grad=True) for _ in range(2))
    lengths = {"chosen_tokens": torch.tensor([3.0]), "rejected_tokens": torch.tensor([3.0])}
    LOSSES[name](chosen, rejected, lengths).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_side_stays_finite(name):
    lengths = {"chosen_tokens": torch.tensor([0.0]), "rejected_tokens": torch.tensor([1.0])}
    chosen, rejected = torch.tensor([0.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    loss = LOSSES[name](chosen, rejected, lengths).sum()
    loss.backward()
    assert all(torch.isfinite(value).all() for value in (loss, chosen.grad, rejected.grad))
