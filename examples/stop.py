"""Ctrl-C between two training steps instead of in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """In this block the first Ctrl-C sets the event; a second one interrupts as usual."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number, frame) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
