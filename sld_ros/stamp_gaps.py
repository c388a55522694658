"""Images that never arrived, told by the stamps of those that did."""

from __future__ import annotations

from collections import deque

RECENT, ENOUGH = 100, 10  # intervals that say how far apart images are taken
MAX_GAP_NS = 5 * 10**9  # a longer one is a pause of the camera


class StampGaps:
    """Counts the images missing between the stamps of one camera.

    Neither publisher nor subscriber hears of what the transport loses. The period of the camera is
    taken from recent images, since cameras slow down in the dark; it is right where up to half of
    them are lost."""

    def __init__(self):
        self.received = 0
        self.missing = 0
        self._last_ns: int | None = None
        self._intervals_ns: deque[int] = deque(maxlen=RECENT)

    def add(self, stamp_ns: int) -> None:
        """Take the stamp of the next image; one that goes back in time starts again."""
        last_ns = self._last_ns
        self._last_ns = stamp_ns
        self.received += 1
        if last_ns is None or not 0 < stamp_ns - last_ns < MAX_GAP_NS:
            return
        interval_ns = stamp_ns - last_ns
        self._intervals_ns.append(interval_ns)
        if len(self._intervals_ns) >= ENOUGH:
            self.missing += max(0, round(interval_ns / self._period_ns()) - 1)

    @property
    def is_serious(self) -> bool:
        """More than one image in twenty, which no trembling of stamps explains."""
        return self.missing > 0.05 * (self.received + self.missing)

    def _period_ns(self) -> int:
        """The median, the lower of two: of every third image lost, half of the intervals are
        single."""
        return sorted(self._intervals_ns)[(len(self._intervals_ns) - 1) // 2]
