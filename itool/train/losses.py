"""The equations of training, each one pure function over tensors. Shapes: N tokens, P pairs, B sequences.

Sums over tokens and means over pairs are taken by the caller's `sum_by` and the trainers, so that a batch may be cut anywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor


def sum_by(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Sum per-token `values` (N) by their owner's index (N) -> (count). The sum inside log P(y | x) = Σ_t log P(y_t | x, y_<t)."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, owners, values)


def nll(logps: Tensor, tokens: int) -> Tensor:
    """Negative log-likelihood per response token. Eq. (2)-(3), arXiv 2501.09766v1: `L_i = -Σ_{(q,y)∈D_i} log P(y | q, T)`.

    `logps` (N) are of response tokens only. Differs: divided by `tokens`, the response tokens of the whole update, so that the
    learning rate does not depend on the batch; a micro-batch passes its own `logps` and the update's `tokens`.
    """
    return -logps.sum() / max(tokens, 1)


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float, smoothing: Tensor | None = None
) -> Tensor:
    """Eq. (11), arXiv 2501.09766v1: `-log σ(β h_w - β h_l)`, h = log π / π_ref, per pair (P).

    All inputs are summed step log-probabilities (P). `smoothing` ε (P) is the chance that the label is wrong:
    `-(1-ε) log σ(z) - ε log σ(-z)`. Differs: the paper has no ε; without it (None) the equation is Eq. (11).
    """
    return _soft_label(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), smoothing)


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    smoothing: Tensor | None = None,
) -> Tensor:
    """IPO, Azar et al. 2023 Eq. (17): `(h_w / |y_w| - h_l / |y_l| - 1/(2β))²`, per pair (P).

    Differs: h is averaged over the side's tokens, as TRL does on the authors' advice, so that β does not depend on length.
    """
    margin = (chosen - ref_chosen) / chosen_tokens.clamp(min=1) - (rejected - ref_rejected) / rejected_tokens.clamp(min=1)
    target = 1 / (2 * beta)
    if smoothing is None:
        return (margin - target) ** 2
    return (1 - smoothing) * (margin - target) ** 2 + smoothing * (margin + target) ** 2


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    gamma: float,
    length_normalised: bool = True,
    smoothing: Tensor | None = None,
) -> Tensor:
    """SimPO, Meng et al. 2024 Eq. (6): `-log σ(β/|y_w| log π(y_w) - β/|y_l| log π(y_l) - γ)`, per pair (P). No reference.

    Differs: with `length_normalised=False` the lengths are dropped, which makes it a plain margin loss.
    """
    if length_normalised:
        chosen, rejected = chosen / chosen_tokens.clamp(min=1), rejected / rejected_tokens.clamp(min=1)
    return _soft_label(beta * (chosen - rejected) - gamma, smoothing)


def orpo_loss(
    chosen: Tensor, rejected: Tensor, *, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float, smoothing: Tensor | None = None
) -> Tensor:
    """ORPO's odds-ratio term, Hong et al. 2024 Eq. (6)-(7): `-λ log σ(log odds(y_w) / odds(y_l))`, per pair (P).

    odds = p / (1 - p) with p = π(y)^(1/|y|); λ is `beta`.
    The equation's first term, the NLL of the chosen side, is added by the trainer at weight 1. No reference.
    """
    mean_chosen, mean_rejected = chosen / chosen_tokens.clamp(min=1), rejected / rejected_tokens.clamp(min=1)
    return beta * _soft_label(_log_odds(mean_chosen) - _log_odds(mean_rejected), smoothing)


def visit_smoothing(chosen_visits: Tensor, rejected_visits: Tensor) -> Tensor:
    """How doubtful a pair's label is: `ε = N_l / (N_w + N_l)`, at most 0.5, per pair (P). Ours, not the paper's."""
    return (rejected_visits / (chosen_visits + rejected_visits).clamp(min=1)).clamp(max=0.5)


def kl_to_reference(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate of KL(reference ‖ policy) from tokens that the reference sampled: mean (N) of `exp(r) - 1 - r`, r = log π - log π_ref.

    The pairs' steps were sampled by the previous policy; injected ground truth makes it an approximation. Never negative.
    """
    ratio = logps - ref_logps
    return (torch.expm1(ratio) - ratio).mean() if ratio.numel() else ratio.new_zeros(())


def _soft_label(logits: Tensor, smoothing: Tensor | None) -> Tensor:
    if smoothing is None:
        return -F.logsigmoid(logits)
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log p/(1-p) of p = exp(mean log-probability); an empty side (p = 1) is kept finite."""
    mean_logps = mean_logps.clamp(max=-1e-6)
    return mean_logps - torch.log(-torch.expm1(mean_logps))
