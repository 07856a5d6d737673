"""Being told to stop: SIGTERM, as schedulers send it, and the preemption of TPU machines."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether the run is to save and end; see `watched`."""

    def __init__(self) -> None:
        self._signalled = self._saves = False

    def reached(self, step: int) -> bool:
        """Whether to end after this step; all processes are told so after the same one.

        With several processes JAX's coordination service hears of the signal that any of them got
        (and of a TPU's preemption), and settles on a step that none has passed.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled

    @contextmanager
    def saves(self) -> Iterator[None]:
        """Inside, `reached` is asked after every step; elsewhere a signal ends the process at once.

        Before the first step and after the last there is nothing that would be lost.
        """
        self._saves = True
        yield
        self._saves = False

    def _note(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if not self._saves:
            logging.info("%s: stopped outside of training; the same command goes on", name)
            sys.exit(0)
        self._signalled = True
        logging.info("%s: saving after this step", name)


@contextmanager
def watched() -> Iterator[Stop]:
    """Watches for SIGTERM while the run lasts. A run that is told to stop exits with 0."""
    stop = Stop()
    # The service of several processes has a handler of its own, which one in Python would replace;
    # and Python takes one in the main thread only.
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop._note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
