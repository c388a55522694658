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


class TransformError(LookupError):
    """No transform between two frames at a stamp; `reason` says of which kind."""

    def __init__(self, reason: TransformReason, text: str):
        super().__init__(text)
        self.reason = reason


@dataclass
class _Edge:
    """Poses of one frame in its parent, sorted by stamp; a static edge has one and it holds
    always."""

    parent: str
    static: bool
    stamps_ns: list[int] = field(default_factory=list)
    transforms: list[np.ndarray] = field(default_factory=list)


class TransformTree:
    """Frames and how they moved. Keeps `history_ns` of every moving frame behind its newest stamp
    (None: everything) and starts a frame again when its time jumps back by more: a recording is
    played in a loop."""

    def __init__(self, history_ns: int | None = None):
        self._history_ns = history_ns
        self._edges: dict[str, _Edge] = {}

    def insert(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        T_parent_child: np.ndarray,
        static: bool = False,
    ) -> None:
        """Add one pose of child in parent; a second one of the same stamp replaces the first."""
        edge = self._edges.get(child)
        if edge is None or static or edge.static or edge.parent != parent:
            edge = self._edges[child] = _Edge(parent, static)
        if (
            self._history_ns is not None
            and edge.stamps_ns
            and stamp_ns < edge.stamps_ns[-1] - self._history_ns
        ):
            edge.stamps_ns.clear()
            edge.transforms.clear()
        i = bisect.bisect_left(edge.stamps_ns, stamp_ns)
        if i < len(edge.stamps_ns) and edge.stamps_ns[i] == stamp_ns:
            edge.transforms[i] = T_parent_child
            return
        edge.stamps_ns.insert(i, stamp_ns)
        edge.transforms.insert(i, T_parent_child)
        if self._history_ns is not None:
            old = bisect.bisect_left(edge.stamps_ns, edge.stamps_ns[-1] - self._history_ns)
            del edge.stamps_ns[:old], edge.transforms[:old]

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> np.ndarray:
        """T_target_source at a stamp, interpolated; None is the newest stamp that every moving
        frame between them has."""
        up, down = self._path(target, source)
        if stamp_ns is None:
            newest = [self._edges[c].stamps_ns[-1] for c in up + down if not self._edges[c].static]
            stamp_ns = min(newest, default=0)
        return invert(self._climb(up, stamp_ns)) @ self._climb(down, stamp_ns)

    def frames(self) -> list[str]:
        """Every frame heard of."""
        return sorted(set(self._edges) | {edge.parent for edge in self._edges.values()})

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on to the root."""
        chain = [frame]
        while (
            chain[-1] in self._edges and self._edges[chain[-1]].parent not in chain
        ):  # a loop ends the walk
            chain.append(self._edges[chain[-1]].parent)
        return chain

    def moves(self, frame: str) -> bool:
        """Whether the frame has a parent in which it is not static."""
        return frame in self._edges and not self._edges[frame].static

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

    def _climb(self, frames: list[str], stamp_ns: int) -> np.ndarray:
        """T_ancestor_first over a chain of child frames."""
        T = np.eye(4)
        for frame in frames:
            T = self._at(frame, stamp_ns) @ T
        return T

    def _at(self, frame: str, stamp_ns: int) -> np.ndarray:
        """T_parent_frame at a stamp."""
        edge = self._edges[frame]
        if edge.static:
            return edge.transforms[0]
        i = bisect.bisect_left(edge.stamps_ns, stamp_ns)
        if i < len(edge.stamps_ns) and edge.stamps_ns[i] == stamp_ns:
            return edge.transforms[i]
        if i == 0:
            raise TransformError(
                TransformReason.TOO_OLD,
                f"{edge.parent!r} -> {frame!r} at the stamp: it is "
                f"{(edge.stamps_ns[0] - stamp_ns) / 1e9:.3f} s before the oldest transform",
            )
        if i == len(edge.stamps_ns):
            raise TransformError(
                TransformReason.TOO_NEW,
                f"{edge.parent!r} -> {frame!r} at the stamp: it is "
                f"{(stamp_ns - edge.stamps_ns[-1]) / 1e9:.3f} s after the newest transform",
            )
        before, after = edge.stamps_ns[i - 1], edge.stamps_ns[i]
        if after - before > MAX_GAP_S * 1e9:
            raise TransformError(
                TransformReason.GAP,
                f"{edge.parent!r} -> {frame!r} at the stamp: it is in a gap of "
                f"{(after - before) / 1e9:.3f} s between two transforms; at most {MAX_GAP_S} s "
                "is interpolated",
            )
        return interpolate(
            edge.transforms[i - 1], edge.transforms[i], (stamp_ns - before) / (after - before)
        )
