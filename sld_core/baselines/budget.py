"""How long a training may take."""

from __future__ import annotations

import time
from contextlib import contextmanager


class Budget:
    """A number of steps and of seconds, whichever is used up first. The clock stands still inside
    `pause`."""

    def __init__(self, steps: int, seconds: float, clock=time.monotonic):
        self.steps, self.limit, self._clock = steps, seconds, clock
        self.step, self._paused, self._start = 0, 0.0, clock()

    @property
    def seconds(self) -> float:
        """Spent so far, pauses left out."""
        return self._clock() - self._start - self._paused

    @property
    def done(self) -> float:
        """The part of the training that lies behind, 0..1."""
        return min(1.0, max(self.step / self.steps, self.seconds / self.limit))

    @property
    def seconds_left(self) -> float:
        done = self.done
        return self.seconds * (1 - done) / done if done else self.limit

    @contextmanager
    def pause(self):
        start = self._clock()
        yield
        self._paused += self._clock() - start
