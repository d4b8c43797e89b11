"""What this processor gives the demo's shapes at best: is there a faster library, or a faster way to attend, than the one in use?

    python -m benchmarks.processor_limits [--threads 1]

Products: torch (MKL on x86) against numpy's BLAS and oneDNN, GFLOP/s. Attention: the fused kernel in use against three others written
with torch's own operations, milliseconds and ratio; forward and backward as in training, forward over a cache as in sampling. The best of
several repetitions, in CPU seconds of this process, since others may share the machine.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from itool.policy.cohort import _attention, plain_attention

HEADS, HEAD_SIZE, WIDTH, INNER, VOCABULARY = 4, 32, 128, 384, 1536
BATCH_TOKENS, ROWS = 2048, 512
SCALE = HEAD_SIZE**-0.5
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def milliseconds(work: Callable[[], object], repetitions: int = 15) -> float:
    """CPU time of the fastest of several repetitions."""
    work()
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * min(times)


@torch.no_grad()
def products() -> None:
    """The matrix products of a training pass and of a decoded token."""
    print("product (rows x in x out): GFLOP/s of torch, numpy, oneDNN")
    for rows, inner, outer in (
        (BATCH_TOKENS, WIDTH, WIDTH),
        (BATCH_TOKENS, WIDTH, INNER),
        (BATCH_TOKENS, INNER, WIDTH),
        (WIDTH, BATCH_TOKENS, INNER),
        (ROWS, WIDTH, VOCABULARY),
    ):
        left, right = torch.randn(rows, inner), torch.randn(outer, inner)
        as_numpy = left.numpy(), right.numpy().T
        ways: list[Callable[[], object]] = [
            functools.partial(F.linear, left, right),
            functools.partial(np.matmul, *as_numpy),
            functools.partial(torch.ops.mkldnn._linear_pointwise, left, right, None, "none", [], ""),
        ]
        work = 2 * rows * inner * outer / 1e6
        print(f"  {rows:5} x {inner:5} x {outer:5}: " + "  ".join(f"{work / milliseconds(way):6.1f}" for way in ways))


def training() -> None:
    """Causal attention over batches of `BATCH_TOKENS` tokens with its gradients."""
    print("attention of a training pass, forward and backward: ms (times the fused kernel)")
    for length in (100, 200, 330, 500):
        causal = torch.full((length, length), -math.inf).triu(1)

        def plain(query: Tensor, key: Tensor, value: Tensor, causal: Tensor = causal) -> Tensor:
            scores: Tensor = (query * SCALE) @ key.transpose(-1, -2) + causal
            return scores.softmax(-1) @ value

        def one_batch(query: Tensor, key: Tensor, value: Tensor, causal: Tensor = causal) -> Tensor:
            flat = [part.flatten(0, 1) for part in (query, key, value)]
            scores = torch.baddbmm(causal, flat[0], flat[1].transpose(-1, -2), alpha=SCALE)
            return torch.bmm(scores.softmax(-1), flat[2]).view_as(query)

        ways: dict[str, Attend] = {
            "fused": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            "torch's math": _math,
            "matmul": plain,
            "baddbmm": one_batch,
        }
        shape = (BATCH_TOKENS // length, length, HEADS, HEAD_SIZE)
        parts = [torch.randn(shape).transpose(1, 2).detach().requires_grad_() for _ in range(3)]

        def both(attend: Attend, parts: list[Tensor] = parts) -> object:
            output = attend(*parts)
            return torch.autograd.grad(output, parts, torch.ones_like(output))

        _compare(f"{length} tokens", {name: milliseconds(functools.partial(both, way)) for name, way in ways.items()})


def _math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


@torch.no_grad()
def sampling() -> None:
    """Attention of `ROWS` newest tokens over their own continuation, and of four samples each over their shared prompt."""
    print("attention of a decoded token: ms (times the fused kernel)")
    for name, groups, queries, length in (("own 18", ROWS, 1, 18), ("own 60", ROWS, 1, 60), ("prompt 160", ROWS // 4, 4, 160)):
        query = torch.randn(groups, HEADS, queries, HEAD_SIZE)
        key, value = (torch.randn(groups, HEADS, length, HEAD_SIZE) for _ in range(2))
        parts = (query, key, value, None, SCALE)
        ways: dict[str, Callable[..., object]] = {"fused": _attention, "matmul": plain_attention, "sums": _sums}
        _compare(name, {way: milliseconds(functools.partial(attend, *parts)) for way, attend in ways.items()})


def _sums(query: Tensor, key: Tensor, value: Tensor, _bias: None, scale: float) -> tuple[Tensor, Tensor]:
    """Without a product: elementwise, then summed."""
    scores = ((query * scale)[..., None, :] * key[:, :, None]).sum(-1)
    norm = scores.logsumexp(-1, keepdim=True)
    return ((scores - norm).exp()[..., None] * value[:, :, None]).sum(-2), norm


def _compare(name: str, found: dict[str, float]) -> None:
    fused = found["fused"]
    print(f"  {name:<12}" + "  ".join(f"{way} {ms:.2f} ({ms / fused:.2f}x)" for way, ms in found.items()))


def main() -> None:
    """Print all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(options.threads):
        print(f"numpy may use more threads: set OPENBLAS_NUM_THREADS={options.threads} to compare it")
    products()
    training()
    sampling()


if __name__ == "__main__":
    main()
