"""Which frames are for training, validation and test: whole sessions, or runs of frames; never
every k-th frame.

Neighbours in time are near-duplicates: a test frame between two training frames measures memory,
not localization."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from sld_core.config.mapping import SplitConfig
from sld_core.types import Frame

log = logging.getLogger(__name__)


def split(frames: Sequence[Frame], config: SplitConfig) -> tuple[str, ...]:
    """For each frame "train", "val" or "test"; the same frames and settings always give the same
    answer.

    With `config.min_sessions` sessions or more, whole sessions are held out for the test, if other
    sessions see the same places and enough frames remain for training. Otherwise, and for
    validation, runs of about `config.chunk` frames are held out, spread over the time line. If
    there are as many validation frames as test frames, they lie on both sides of each run of test
    frames, so that no test frame is next to a training frame."""
    order = sorted(
        range(len(frames)), key=lambda i: (frames[i].session, frames[i].stamp_ns, frames[i].name)
    )
    held_out = _held_out_sessions(frames, config)
    out = ["test" if f.session in held_out else "train" for f in frames]
    rest = [i for i in order if out[i] == "train"]
    test = 0 if held_out else min(round(config.test * len(frames)), len(rest) // 3)
    val = min(round(config.val * len(frames)), len(rest) // 3)
    for i, label in zip(rest, _chunked(len(rest), val, test, config.chunk)):
        out[i] = label
    log.info(
        "split: %d train, %d val, %d test%s",
        *(out.count(s) for s in ("train", "val", "test")),
        f" (sessions {', '.join(sorted(held_out))})" if held_out else "",
    )
    return tuple(out)


def _held_out_sessions(frames: Sequence[Frame], config: SplitConfig) -> set[str]:
    """The smallest sessions, as long as each brings the test nearer to its share of the frames; at
    least one."""
    counts = {s: sum(f.session == s for f in frames) for s in {f.session for f in frames}}
    chosen: set[str] = set()
    if len(counts) < config.min_sessions or config.test == 0:
        return chosen
    wanted, taken = config.test * len(frames), 0
    for session in sorted(counts, key=lambda s: (counts[s], s)):
        nearer = abs(taken + counts[session] - wanted) < abs(taken - wanted)
        enough = len(frames) - taken - counts[session] >= config.min_train * len(frames)
        if enough and (nearer or not chosen) and _is_covered(frames, chosen | {session}, config):
            chosen, taken = chosen | {session}, taken + counts[session]
    return chosen


def _is_covered(frames: Sequence[Frame], sessions: set[str], config: SplitConfig) -> bool:
    """Whether other sessions see the places of each of these sessions: three videos of three rooms
    are no test of each other."""
    if any(f.T_world_camera is None for f in frames):
        return True
    T = np.stack([f.T_world_camera for f in frames])
    position_N3, axis_N3 = T[:, :3, 3], T[:, :3, 2]
    limit = config.near * float(np.linalg.norm(np.ptp(position_N3, axis=0)))
    others = np.array([f.session not in sessions for f in frames])
    for session in sessions:
        own = np.array([f.session == session for f in frames])
        seen = [
            bool(
                (
                    (np.linalg.norm(position_N3[others] - p, axis=1) <= limit)
                    & (axis_N3[others] @ a >= np.cos(np.radians(config.near_deg)))
                ).any()
            )
            for p, a in zip(position_N3[own], axis_N3[own])
        ]
        if np.mean(seen) < config.covered:
            return False
    return True


def _chunked(count: int, val: int, test: int, chunk: int) -> list[str]:
    """Labels along a time line: evenly spread blocks val-test-val, in which the larger share has
    about `chunk` frames."""
    out = ["train"] * count
    blocks = max(1, round(max(val, test) / chunk))
    for i in range(blocks):
        n_val, n_test = ((i + 1) * total // blocks - i * total // blocks for total in (val, test))
        size = n_val + n_test
        start = min(max(round((i + 0.5) / blocks * count - size / 2), 0), count - size)
        before = n_val // 2
        out[start : start + size] = (
            ["val"] * before + ["test"] * n_test + ["val"] * (n_val - before)
        )
    return out
