"""What a run has to notice while it works: signals, numbers that are not finite, losses that jump."""

import math
import signal
import sys
import threading
from collections import deque

from tqdm import tqdm

from tools.process import signals
from tools.errors import UserError
from train_agent.trainers import parallel


class StopSignals:
    """SIGTERM and Ctrl-C ask for a stop; the step in progress is finished and saved first. Use as a context manager."""

    def __init__(self):
        self.asked = False
        self._before = {}

    def _ask(self, *_):
        if not self.asked and parallel.is_main():
            signals.say_now("正在写完这一步并保存……")
        self.asked = signals.heard = True

    @staticmethod
    def saved(step):
        """Say, above a progress bar, that nothing is lost."""
        if parallel.is_main():
            tqdm.write(f"已保存到第 {step} 步：再运行同一条命令就接着训。", file=sys.stderr)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in signals.SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class FiniteGuard:
    """Counts skipped steps in a row; the third ends the run with exit code 5."""

    LIMIT = 3

    def __init__(self):
        self.in_a_row = 0

    def check(self, finite, scale):
        """finite: loss and gradient norm were finite; scale: the GradScaler's, 1.0 without one.

        Returns whether the step may be taken. While a scaler still backs off (scale >= 1 in fp16) a skipped step is
        normal.
        """
        if finite:
            self.in_a_row = 0
        elif scale is None or scale < 1:
            self.in_a_row += 1
        if self.in_a_row >= self.LIMIT:
            raise UserError(f"连续 {self.LIMIT} 步的损失或梯度不是有限数，训练已停止，这几步都没有更新权重。"
                            "出问题的数据行写在 log.txt 里；可调小 init_lr，或检查那几行数据，然后重新运行，会从最近的检查点继续。", 5)
        return finite


def finite(numbers):
    """The entries of a dict that may go into a checkpoint: after a skipped step its loss is no number."""
    return {name: value for name, value in numbers.items() if not isinstance(value, float) or math.isfinite(value)}


class SpikeWatch:
    """Reports a loss more than 6 standard deviations above the mean of the last steps."""

    WINDOW, WARM, SIGMAS = 100, 20, 6.0

    def __init__(self, history=()):
        self.history = deque(history, maxlen=self.WINDOW)

    def is_spike(self, loss):
        past = list(self.history)
        self.history.append(loss)
        if len(past) < self.WARM:
            return False
        mean = sum(past) / len(past)
        spread = math.sqrt(sum((x - mean) ** 2 for x in past) / len(past))
        return loss > mean + self.SIGMAS * max(spread, 1e-3 * abs(mean))


class ForgettingWatch:
    """Loss on general rows since the start of an adaptation. `warning`: what to tell the user after the last look, or
    None."""

    def __init__(self, limit, first=None):
        self.limit, self.first, self.warning = limit, first, None

    def seen(self, loss):
        """-> {"general_first", "general_loss"}, for the checkpoint; nats per target, both heads together."""
        self.first = loss if self.first is None else self.first
        rise, self.warning = loss - self.first, None
        if self.limit is not None and rise > self.limit:
            self.warning = (
                f"通用数据的损失从 {self.first:.3f} 升到 {loss:.3f}（+{rise:.3f}，超过 forget_limit {self.limit:g}）：模型在遗忘。"
                "可加大 replay_share，减小学习率或 max_steps。")
            if parallel.is_main():
                print(f"警告：{self.warning}", file=sys.stderr)
        return {"general_first": self.first, "general_loss": loss}


class Patience:
    """Best held-out loss so far, and how many evaluations in a row did not improve on it."""

    def __init__(self, threshold=0.0, best=math.inf, waited=0):
        self.threshold, self.best, self.waited, self.lowest = threshold, best, waited, best

    def state(self):
        """[best or None before the first one, waited, lowest or None]; `restore(*state)` is its inverse."""
        best, lowest = (value if math.isfinite(value) else None for value in (self.best, self.lowest))
        return [best, self.waited, lowest]

    def restore(self, best, waited, lowest=None):
        self.best, self.waited = math.inf if best is None else best, waited
        self.lowest = self.best if lowest is None else lowest

    def is_lowest(self, loss):
        """True when no loss so far was as low; the threshold has no say."""
        if not loss < self.lowest:
            return False
        self.lowest = loss
        return True

    def improved(self, loss):
        """True when `loss` beats the best by more than the threshold (or is the first)."""
        if math.isfinite(loss) and self.best - loss > self.threshold:
            self.best, self.waited = loss, 0
            return True
        self.waited += 1
        return False
