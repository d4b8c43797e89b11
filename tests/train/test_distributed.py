import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from itool.config import DpoConfig, WarmupConfig
from itool.errors import ConfigError, DependencyError, Interrupted, NumericalError
from itool.train import sft
from itool.train.distributed import ALONE, Workers, join_workers
from itool.train.hooks import TrainingHooks
from itool.train.launch import launch, worst_exit_code
from itool.train.model import load_model, new_adapter
from itool.train.preference import train_preferences
from itool.train.sft import continue_sft, sft_backward, train_sft
from tests.train.conftest import pair
from tests.train.workers import FORK, two_workers

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA forbids forked workers, and NCCL two on one GPU")

WARMUP = WarmupConfig(epochs=1, batch_examples=5, learning_rate=1e-2, batch_tokens=128)
DPO = DpoConfig(updates=4, batch_pairs=3, learning_rate=1e-2, batch_tokens=128, replay_fraction=0.4)
WEIGHTS = "adapter_model.safetensors"


def difference(one, other):
    """Largest absolute difference of two adapters' weights."""
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_rows_are_dealt_out_in_order_of_length():
    lengths = [30, 10, 50, 20, 40]
    assert [Workers(rank, 2).share(lengths) for rank in range(2)] == [[1, 0, 2], [3, 4]]
    assert [Workers(rank, 3).share([7]) for rank in range(3)] == [[0], [], []]
    assert ALONE.share(lengths) == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(2, 8))
def test_shares_hold_every_row_once_and_differ_by_one_longest_row_at_most(lengths, count):
    shares = [Workers(rank, count).share(lengths) for rank in range(count)]
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(lengths, default=0)


def test_losses_and_gradients_of_shares_add_up_to_those_of_one_process(tiny_base, lora, sequences):
    accelerator = SimpleNamespace(backward=lambda loss: loss.backward())

    def computed(*workers):
        model = new_adapter(load_model(tiny_base), lora, seed=1)
        losses = [sft_backward(accelerator, model, sequences[:5], 128, worker) for worker in workers]
        return sum(losses), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    whole, parts = computed(ALONE), computed(Workers(0, 2), Workers(1, 2))
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-7, rtol=1e-4)


@pytest.mark.slow
def test_two_workers_train_the_adapter_of_one(tiny_base, lora, sequences, adapter, pairs, tmp_path):  # noqa: PLR0917 - fixtures
    def train(name, workers):
        hooks = TrainingHooks(workers=workers)
        common = {"model": lora, "seed": 3, "hooks": hooks}
        controlled = {"adapter_in": adapter, "settings": DPO, **common}
        phases = {"easy": sequences[:7], "hard": sequences[7:]}
        return [
            train_sft(tiny_base, phases, settings=WARMUP, output=tmp_path / name / "warmup", **common),
            continue_sft(tiny_base, sequences[:9], sequences[9:], output=tmp_path / name / "control", **controlled),
            train_preferences(tiny_base, pairs, sequences, output=tmp_path / name / "dpo", **controlled),
            train_preferences(
                tiny_base,
                pairs,
                [],
                output=tmp_path / name / "one-pair",  # the second worker's shares are empty
                **controlled | {"settings": DPO.model_copy(update={"batch_pairs": 1, "label_smoothing": "visits", "nll_on": "answer"})},
            ),
        ]

    expected = train("one", ALONE)
    first, second = two_workers(lambda workers: train(f"worker-{workers.rank}", workers))
    for one, two, other in zip(expected, first, second, strict=True):
        assert [entry["loss"] for entry in two.metrics] == pytest.approx([entry["loss"] for entry in one.metrics], abs=1e-5)
        assert (two.metrics, two.tokens) == (other.metrics, one.tokens)
    for stage in ("warmup", "control", "dpo", "one-pair"):
        assert difference(tmp_path / "one" / stage, tmp_path / "worker-0" / stage) < 1e-5
        assert not (tmp_path / "worker-1" / stage).exists()


@pytest.mark.slow
def test_a_worker_that_is_stopped_stops_all_with_one_checkpoint_and_all_resume(tiny_base, lora, sequences, tmp_path):
    lora = lora.model_copy(update={"lora_dropout": 0.1})

    def train(name, hooks):
        train_sft(tiny_base, {"all": sequences}, model=lora, settings=WARMUP, seed=3, output=tmp_path / name, hooks=hooks)

    def interrupted(workers):
        def keep(folder, update):
            time.sleep(0.2)
            folder.rename(tmp_path / f"checkpoint-{update}-by-{workers.rank}")
            folder.mkdir()

        calls = iter([False, workers.rank == 1])
        hooks = TrainingHooks(should_stop=lambda: next(calls), save_checkpoint=keep, workers=workers)
        with pytest.raises(Interrupted, match="update 2 of 5"):
            train("parts", hooks)
        return (tmp_path / "checkpoint-2-by-0" / "training_log.json").exists()

    assert two_workers(interrupted) == [True, True]
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-2-by-0"]
    resumed = TrainingHooks(resume_from=tmp_path / "checkpoint-2-by-0")
    assert two_workers(lambda workers: train("parts", replace(resumed, workers=workers))) == [None, None]
    two_workers(lambda workers: train("whole", TrainingHooks(workers=workers)))
    assert (tmp_path / "parts" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_worker_that_is_stopped_stops_all_while_they_compute_the_reference(tiny_base, lora, adapter, tmp_path):
    """The one that is stopped has computed its only batch, the other has one left."""
    uneven = [pair([5] * tokens, [], [3], [4]) for tokens in (2, 100, 101)]

    def interrupted(workers):
        calls = iter([False, workers.rank == 1])
        hooks = TrainingHooks(should_stop=lambda: next(calls), save_checkpoint=lambda *_: None, workers=workers)
        with pytest.raises(Interrupted, match="before its first update"):
            train_preferences(
                tiny_base, uneven, [], adapter_in=adapter, model=lora, settings=DPO, seed=3, output=tmp_path / "out", hooks=hooks
            )
        return True

    assert two_workers(interrupted) == [True, True]


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_for_one_stops_all(tiny_base, lora, sequences, tmp_path, monkeypatch):
    def train(workers):
        if workers.rank == 1:
            monkeypatch.setattr(sft, "nll", lambda logps, tokens: logps.sum() * math.nan)
        train_sft(
            tiny_base, {"all": sequences}, model=lora, settings=WARMUP, seed=3, output=tmp_path / "x", hooks=TrainingHooks(workers=workers)
        )

    assert [type(error) for error in two_workers(train)] == [NumericalError, NumericalError]
    assert not (tmp_path / "x").exists()


def test_a_dead_worker_ends_the_others_at_once():
    def body(workers):
        if workers.rank == 1:
            os._exit(1)
        workers.sum([1.0])

    start = time.monotonic()
    error, nothing = two_workers(body, timeout_seconds=60.0)
    assert (type(error), nothing) == (DependencyError, None)
    assert "worker 0 lost the others" in str(error)
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_silent_worker_ends_the_others_within_the_timeout():
    given_up = FORK.Event()

    def body(workers):
        if workers.rank == 1:
            given_up.wait(60)
            return
        try:
            workers.sum_gradients([torch.nn.Parameter(torch.zeros(3))])
        finally:
            given_up.set()

    assert isinstance(two_workers(body, timeout_seconds=2.0)[0], DependencyError)


def test_workers_that_would_train_apart_are_told():
    errors = two_workers(lambda workers: workers.require_same("where to begin", ("plan", workers.rank)))
    assert [type(error) for error in errors] == [DependencyError, DependencyError]
    assert "do not agree on where to begin" in str(errors[0])


def test_gradients_and_signs_are_exchanged_between_all_workers():
    """The second parameter has no gradient where the share was empty, and the frozen one nowhere."""

    def body(workers):
        first, frozen, second = (torch.nn.Parameter(torch.zeros(size), requires_grad=size != 1) for size in (2, 1, 3))
        first.grad = torch.tensor([1.0, 2.0]) * (1 + workers.rank)
        if workers.rank == 0:
            second.grad = torch.tensor([5.0, 6.0, 7.0])
        workers.sum_gradients([first, frozen, second])
        flags = workers.any(workers.rank == 1), workers.any(False)
        return first.grad.tolist(), frozen.grad, second.grad.tolist(), flags, workers.sum([0.5, workers.rank])

    expected = [3.0, 6.0], None, [5.0, 6.0, 7.0], (True, False), [1.0, 1.0]
    assert two_workers(body) == [expected, expected]


def test_dropout_of_each_worker_and_update_has_a_stream_of_its_own():
    def drawn(worker, seed, update):
        worker.seed_update(seed, update)
        return torch.rand(1).item()

    with torch.random.fork_rng():
        torch.manual_seed(1)
        streams = [drawn(Workers(rank, 2), seed, update) for rank in (0, 1) for seed in (3, 4) for update in (1, 2)]
        assert len(set(streams)) == 8
        assert drawn(Workers(1, 2), 4, 2) == streams[-1]
        torch.manual_seed(1)
        alone = [drawn(ALONE, 3, 1), drawn(ALONE, 3, 1)]
        assert alone[0] != alone[1], "one process goes on with the stream that a checkpoint holds"


def test_a_process_without_torchrun_is_alone():
    assert join_workers(timeout_seconds=1.0) is ALONE
    assert ALONE.sum([0.1, 0.2]) == [0.1, 0.2]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert not torch.distributed.is_initialized()


def test_an_incomplete_environment_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but"):
        join_workers(timeout_seconds=1.0)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([75, 75], 75), ([69, 65], 65), ([-15, 76], 76), ([69, -9], 137), ([-15, 69], 69), ([-15], 143), ([1, 74], 1)],
)
def test_the_worker_that_failed_by_itself_gives_the_exit_code(codes, expected):
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=7) for rank, code in enumerate(codes)}
    assert worst_exit_code(failures) == expected


def test_a_launcher_can_hear_a_stop_signal_before_torch_is_imported():
    imports = "import sys, itool.train.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imports], check=False).returncode == 0


def test_an_unknown_launcher_is_a_configuration_error(capsys):
    assert launch(["mpirun"]) == 64
    assert "Begin with torchrun or accelerate" in capsys.readouterr().err
