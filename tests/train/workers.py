"""Two workers as forked processes: what torchrun starts, without its seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from itool.train.distributed import Workers, join_workers

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def two_workers(body: Callable[[Workers], Any], *, timeout_seconds: float = 60.0) -> list[Any]:
    """What `body` returns in each of two workers: its value, the exception that it raised, or None for one that died."""
    port = free_port()
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_worker, args=(rank, port, body, timeout_seconds, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = [_result(pipe) for pipe in pipes]
    for process in processes:
        process.join(timeout=60)
        process.close()
    return found


def _worker(rank: int, port: int, body: Callable[[Workers], Any], timeout_seconds: float, pipe: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send(body(join_workers(timeout_seconds=timeout_seconds)))
    except Exception as error:  # noqa: BLE001 - the test looks at it
        pipe.send(error)
    os._exit(0)  # no tear-down of the test session that was forked


def _result(pipe: Any) -> Any:
    try:
        return pipe.recv() if pipe.poll(120) else None
    except EOFError:
        return None
