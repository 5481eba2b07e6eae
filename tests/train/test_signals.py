"""The effect of signals on a training process."""

import signal
import threading

import pytest

from train import signals
from train.signals import StopRequest


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_the_first_signal_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest("It stops") as stop:
        assert stop.name is None
        signal.raise_signal(number)
        assert stop.name == number.name
        signal.raise_signal(number)  # a launcher passing the same one on
        assert stop.name == number.name
    assert signal.getsignal(number) is before


def test_a_later_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", -1.0)
    with StopRequest("It stops"):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nohup_still_ignores_a_closed_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest("It stops") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_may_train_too() -> None:
    names: list[str | None] = []

    def train() -> None:
        with StopRequest("It stops") as stop:
            names.append(stop.name)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert names == [None]
