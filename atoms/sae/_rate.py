"""The learning rate of each step, and until when latents may take new directions."""

from __future__ import annotations

from ._settings import Settings

SCHEDULES = ("inverse_sqrt", "constant")


class Rate:
    """Rises over the first `warmup` of the steps, falls to zero over the last `decay`: `fit`'s.

    Where the rows end before the steps do, it falls to zero over those that are left.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.last = settings.max_steps  # step
        self._seen = settings.max_steps  # step after which the end was known, if that is not max_steps

    def end(self, seen: int, last: int) -> None:
        """It has been seen after a step that there are rows for so many steps in all."""
        if last < self.last:
            self._seen, self.last = seen, last

    def __call__(self, step: int) -> float:
        """Learning rate of step 1, 2, ..."""
        s = self._settings
        warm, cool = s.warmup * s.max_steps, s.decay * s.max_steps
        factor = min(1.0, step / max(warm, 1.0))
        if cool > 0:
            factor = min(factor, (s.max_steps - step + 1) / cool)
        if step > self._seen:
            factor *= (self.last - step + 1) / (self.last - self._seen + 1)
        return float(s.learning_rate * factor)

    def revives(self, step: int) -> bool:
        """Whether dead latents may take new directions in this step: not while the rate falls."""
        s = self._settings
        return step <= s.max_steps * (1 - s.decay) and step <= self._seen


class LastingRate(Rate):
    """For steps without an end: rises as `Rate` does, then stays, or falls as the root of the steps from a quarter of
    `max_steps` on: `partial_fit`'s."""

    def __init__(self, settings: Settings, schedule: str) -> None:
        super().__init__(settings)
        self._schedule = schedule
        self.last = 0  # there is none

    def __call__(self, step: int) -> float:
        s = self._settings
        factor = min(1.0, step / max(s.warmup * s.max_steps, 1.0))
        if self._schedule == "inverse_sqrt":
            factor = min(factor, (max(0.25 * s.max_steps, 1.0) / step) ** 0.5)
        return float(s.learning_rate * factor)

    def revives(self, step: int) -> bool:
        return True
