"""Processes that read for another one end with it, and leave signals to it."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def live_with_the_parent(*ignored: signal.Signals) -> None:
    """In a process of its own, at its start: the `ignored` signals are for the parent to act on.

    A signal to the whole group (Ctrl-C, or a scheduler's before it preempts) would else end what a
    parent that means to save still waits for, and children outlive a parent that is killed.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
