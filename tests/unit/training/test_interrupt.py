"""A polite end."""

import os
import signal
import threading

import pytest

from imgclf.training.interrupt import NAMES, graceful_interrupts

SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_counted_and_the_second_ends(number):
    before = signal.getsignal(number)
    with graceful_interrupts() as interrupts:
        assert interrupts.count == 0
        send(number)
        assert interrupts.count == 1
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert interrupts.count == 2
    assert signal.getsignal(number) is before


def test_two_kinds_of_signals_are_two_signals():
    with graceful_interrupts():
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_handler_that_was_there_is_told():
    told = []

    def terminate(number, frame):
        told.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with graceful_interrupts() as interrupts:
            send(signal.SIGTERM)
        assert (told, interrupts.count) == ([signal.SIGTERM], 1)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_program_that_leaves_at_a_signal_does_so():
    def leave(number, frame):
        raise SystemExit(3)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit), graceful_interrupts():
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_interrupts() as interrupts:
            send(signal.SIGHUP)
            assert interrupts.count == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with graceful_interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGINT), interrupts.count))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]
