"""Signals, non-finite numbers, spikes and patience, each on scripted input."""
import math
import os
import random
import signal
import threading

import pytest

from tools.errors import UserError
from train_agent.trainers.running.signals_and_guards import FiniteGuard, Patience, SpikeWatch, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_asks_says_so_once_and_the_old_handler_comes_back(number, capfd):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.asked
        os.kill(os.getpid(), number)
        assert signals.asked
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.count("正在写完这一步并保存……") == 1


def test_what_was_saved_is_said(capfd):
    StopSignals.saved(7)
    assert "已保存到第 7 步" in capfd.readouterr().err


def test_outside_the_main_thread_signals_are_left_alone():
    said = []
    def work():
        with StopSignals() as signals:
            said.append(signals.asked)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]


def checks(guard, pattern, scale=None):
    """ "ok" per finite step, else the number in a row; raises at the limit."""
    return [guard.check(finite, scale) for finite in pattern]


def test_three_skipped_steps_in_a_row_end_with_5():
    guard = FiniteGuard()
    assert checks(guard, [True, False, False, True, False, False, True]) == [True, False, False, True, False, False,
        True]
    with pytest.raises(UserError) as error:
        checks(guard, [False, False, False])
    assert error.value.code == 5


def test_a_scaler_that_still_backs_off_does_not_count():
    guard = FiniteGuard()
    assert checks(guard, [False] * 20, scale=65536.0) == [False] * 20
    assert checks(guard, [False] * 5, scale=1.0) == [False] * 5
    with pytest.raises(UserError):
        checks(guard, [False] * 3, scale=0.5)


def test_spikes_are_six_sigma_above_the_last_steps():
    rng = random.Random(0)
    watch = SpikeWatch()
    assert not any(watch.is_spike(4 + rng.gauss(0, 0.1)) for _ in range(300))
    assert watch.is_spike(4.9) and not watch.is_spike(2.0)                        # upwards only
    assert not watch.is_spike(4.1)


def test_no_spike_before_there_is_a_history_and_a_flat_loss_is_no_trap():
    watch = SpikeWatch()
    assert not any(watch.is_spike(v) for v in [1.0, 100.0] * 9)
    flat = SpikeWatch([2.0] * 50)
    assert not flat.is_spike(2.001) and flat.is_spike(2.1)


def test_spike_window_forgets_and_goes_through_a_checkpoint():
    watch = SpikeWatch()
    for i in range(250):
        watch.is_spike(float(i))
    assert list(watch.history) == [float(i) for i in range(150, 250)]
    assert list(SpikeWatch(list(watch.history)).history) == list(watch.history)


def test_E1_patience_on_scripted_losses():
    patience = Patience()
    assert [patience.improved(v) for v in (3.0, 2.5, 2.5, 2.6, 2.4, 2.4)] == [True, True, False, False, True, False]
    assert patience.best == 2.4 and patience.waited == 1


def test_E1_improvement_must_exceed_the_threshold():
    patience = Patience(threshold=0.1)
    assert [patience.improved(v) for v in (3.0, 2.95, 2.89, 2.8, 2.7)] == [True, False, True, False, True]
    assert patience.best == 2.7


def test_E1_nan_is_no_improvement():
    patience = Patience()
    assert not patience.improved(math.nan) and patience.waited == 1
    assert patience.improved(1.0) and not patience.improved(math.nan) and patience.best == 1.0
