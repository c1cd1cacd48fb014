"""Signals that ask a command to end."""

import pickle
import signal
import subprocess
import sys

import pytest

from geoseg_gan.utils import signals
from geoseg_gan.utils.signals import SIGNALS, Stopped, noting_signals, raising_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_with_its_exit_code(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, raising_signals():
        signal.raise_signal(number)
    assert stop.value.code == 128 + number and signal.getsignal(number) == before
    again = pickle.loads(pickle.dumps(stop.value))
    assert again.number == number and again.code == 128 + number


def test_a_library_that_makes_another_error_of_a_signal_is_not_believed():
    with pytest.raises(Stopped), raising_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise ImportError("initialization failed") from None  # as of C++


def test_a_signal_is_noted_and_raised_when_the_block_ends():
    reached = False
    with pytest.raises(Stopped) as stop, noting_signals() as noted:
        signal.raise_signal(signal.SIGTERM)
        assert noted.number == signal.SIGTERM
        reached = True
    assert reached and stop.value.number == signal.SIGTERM
    with pytest.raises(Stopped, match="SIGUSR1"), noting_signals([signal.SIGUSR1]) as noted:
        signal.raise_signal(signal.SIGUSR1)


def test_a_second_ctrl_c_is_raised_at_once_but_no_other_repetition(monkeypatch):
    with pytest.raises(Stopped), noting_signals() as noted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # passed on by another process
        monkeypatch.setattr(signals, "_SAME", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert noted.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on after a second Ctrl-C")


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with raising_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_of_a_loader_go_on_for_a_while():
    code = """
import signal, time
from geoseg_gan.utils import signals
signals._GRACE = 1
signals.outlive_signals()
signal.raise_signal(signal.SIGTERM)
print("went on", flush=True)
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50)
    assert ended.stdout == b"went on\n" and ended.returncode == -signal.SIGALRM
