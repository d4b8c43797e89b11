"""A Ctrl-C that comes when somebody listens: before, it would end the tests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_when_heard() -> Iterator[None]:
    """SIGINT to this process, once, as soon as something within has put a handler of its own in place."""
    before, over = signal.getsignal(signal.SIGINT), threading.Event()

    def send() -> None:
        while not over.wait(0.01):
            if signal.getsignal(signal.SIGINT) is not before:
                os.kill(os.getpid(), signal.SIGINT)
                return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
