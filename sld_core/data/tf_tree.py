"""A tree of coordinate frames over time: who was where, at a stamp."""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass, field

import numpy as np

from sld_core.geometry import interpolate, invert

# The widest gap in a frame's poses that is interpolated: odometry comes at 10 Hz or more, and
# within half a second a robot still moves about straight; over more it is a guess that a map or a
# fix must not be built on.
MAX_GAP_S = 0.5


class TransformReason(enum.Enum):
    """Why a lookup failed."""

    UNKNOWN_FRAME = "unknown frame"
    DISCONNECTED = "frames are not connected"
    TOO_OLD = "stamp is before the data"
    TOO_NEW = "stamp is after the data"
    GAP = "stamp is in a gap of the data"
    NO_STAMP = "stamp is not set"
    TF2 = "tf2 refuses"


class TransformError(LookupError):
    """No transform between two frames at a stamp; `reason` says of which kind."""

    def __init__(self, reason: TransformReason, text: str):
        super().__init__(text)
        self.reason = reason


def frame_name(name: str) -> str:
    """A frame_id without the leading slash of ROS 1."""
    return name.removeprefix("/")


@dataclass
class _Edge:
    """Poses of one frame in its parent, sorted by stamp; a static edge has one, which always
    holds."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    transforms: list[np.ndarray | None] = field(default_factory=list)
    late_ns: int | None = None  # stamp of the last message, where it was older than the history


class TransformTree:
    """Frames and how they moved. It keeps `history_ns` of every moving frame before its newest
    stamp (None: everything)."""

    def __init__(self, history_ns: int | None = None):
        self._history_ns = history_ns
        self._edges: dict[str, _Edge] = {}

    def insert(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        T_parent_child: np.ndarray | None,
        static: bool = False,
    ) -> bool:
        """Add one pose of child in parent (None where nothing but `check` is asked of this tree); a
        second one of the same stamp replaces the first.

        One pose older than the history is ignored, it came late. With a second one after it time
        has jumped back, as when a recording is played in a loop: all moving frames start again, and
        the return value is true."""
        edge = self._edge(parent, child, static)
        jumped = False
        if self._history_ns is not None and edge.stamps_ns:
            late = stamp_ns < edge.stamps_ns[-1] - self._history_ns
            jumped = late and edge.late_ns is not None and stamp_ns > edge.late_ns
            edge.late_ns = stamp_ns if late else None
            if late and not jumped:
                return False
        if jumped:
            self.clear()
            edge = self._edge(parent, child, static)
        i = bisect.bisect_left(edge.stamps_ns, stamp_ns)
        if i < len(edge.stamps_ns) and edge.stamps_ns[i] == stamp_ns:
            edge.transforms[i] = T_parent_child
            return jumped
        edge.stamps_ns.insert(i, stamp_ns)
        edge.transforms.insert(i, T_parent_child)
        if self._history_ns is not None:
            old = bisect.bisect_left(edge.stamps_ns, edge.stamps_ns[-1] - self._history_ns)
            del edge.stamps_ns[:old], edge.transforms[:old]
        return jumped

    def clear(self) -> None:
        """Forget the frames that move."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> np.ndarray:
        """T_target_source at a stamp, interpolated; None is the newest stamp that every moving
        frame between them has."""
        up, down = self._path(target, source)
        if stamp_ns is None:
            stamp_ns = self._newest(up + down)
        return invert(self._climb(up, stamp_ns)) @ self._climb(down, stamp_ns)

    def check(self, target: str, source: str, stamp_ns: int | None) -> None:
        """Raise the TransformError that `lookup` would raise."""
        up, down = self._path(target, source)
        if stamp_ns is None:
            stamp_ns = self._newest(up + down)
        for frame in up + down:
            self._neighbours(frame, stamp_ns)

    def frames(self) -> list[str]:
        """Every frame heard of."""
        return sorted(set(self._edges) | {edge.parent for edge in self._edges.values()})

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on to the root."""
        chain = [frame]
        while (edge := self._edges.get(chain[-1])) and edge.parent not in chain:  # else a loop
            chain.append(edge.parent)
        return chain

    def moves(self, frame: str) -> bool:
        """Whether the frame has a parent in which it is not static."""
        return frame in self._edges and not self._edges[frame].static

    def _edge(self, parent: str, child: str, static: bool) -> _Edge:
        edge = self._edges.get(child)
        if edge is None or static or edge.static or edge.parent != parent:
            edge = self._edges[child] = _Edge(parent, static)
        return edge

    def _path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Frames from target, and from source, up to below their first common ancestor."""
        known = self.frames()
        for frame in (target, source):
            if frame not in known:
                raise TransformError(
                    TransformReason.UNKNOWN_FRAME,
                    f"frame {frame!r} is unknown; known: {', '.join(known) or 'none'}",
                )
        of_target, of_source = self.ancestors(target), self.ancestors(source)
        common = next((frame for frame in of_target if frame in of_source), None)
        if common is None:
            raise TransformError(
                TransformReason.DISCONNECTED,
                f"{target!r} and {source!r} are not connected: "
                f"{' < '.join(reversed(of_target))} and {' < '.join(reversed(of_source))}",
            )
        return of_target[: of_target.index(common)], of_source[: of_source.index(common)]

    def _newest(self, frames: list[str]) -> int:
        """The newest stamp that all of these frames have; 0 where none moves."""
        edges = [self._edges[frame] for frame in frames]
        return min((edge.stamps_ns[-1] for edge in edges if not edge.static), default=0)

    def _climb(self, frames: list[str], stamp_ns: int) -> np.ndarray:
        """T_ancestor_first over a chain of child frames."""
        T = np.eye(4)
        for frame in frames:
            T = self._at(frame, stamp_ns) @ T
        return T

    def _at(self, frame: str, stamp_ns: int) -> np.ndarray:
        """T_parent_frame at a stamp."""
        edge = self._edges[frame]
        i, j = self._neighbours(frame, stamp_ns)
        if i == j:
            return edge.transforms[i]
        before, after = edge.stamps_ns[i], edge.stamps_ns[j]
        fraction = (stamp_ns - before) / (after - before)
        return interpolate(edge.transforms[i], edge.transforms[j], fraction)

    def _neighbours(self, frame: str, stamp_ns: int) -> tuple[int, int]:
        """Which two poses of the frame a stamp is between; twice the same where one is of that
        stamp, or static."""
        edge = self._edges[frame]
        if edge.static:
            return 0, 0
        i = bisect.bisect_left(edge.stamps_ns, stamp_ns)
        if i < len(edge.stamps_ns) and edge.stamps_ns[i] == stamp_ns:
            return i, i
        at = f"{edge.parent!r} -> {frame!r} at the stamp: it is"
        if i == 0:
            seconds = (edge.stamps_ns[0] - stamp_ns) / 1e9
            text = f"{at} {seconds:.3f} s before the oldest transform"
            raise TransformError(TransformReason.TOO_OLD, text)
        if i == len(edge.stamps_ns):
            seconds = (stamp_ns - edge.stamps_ns[-1]) / 1e9
            text = f"{at} {seconds:.3f} s after the newest transform"
            raise TransformError(TransformReason.TOO_NEW, text)
        seconds = (edge.stamps_ns[i] - edge.stamps_ns[i - 1]) / 1e9
        if seconds > MAX_GAP_S:
            text = (
                f"{at} in a gap of {seconds:.3f} s between two transforms; at most {MAX_GAP_S} s "
                "is interpolated"
            )
            raise TransformError(TransformReason.GAP, text)
        return i - 1, i
