"""Camera paths through the room, and sequences of rendered frames on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sld_core.data.image_files import write_depth, write_jpeg
from sld_core.geometry import make_transform
from sld_core.synthetic.room import Room
from sld_core.types import Camera

DEMO_CAMERA = Camera(640, 480, 480.0, 480.0, 320.5, 240.5)
EYE_HEIGHT_M = 1.2


def drive(seed: int, n: int, kind: str = "map") -> list[np.ndarray]:
    """Poses (4x4, camera optical frame to world) of a smooth drive that looks around. `map` goes
    round twice and turns to see every wall; `query` goes the other way round, through other places
    of the same space."""
    if kind not in ("map", "query"):
        raise ValueError(f"drive kind {kind!r}: expected 'map' or 'query'")
    rng = np.random.default_rng([seed, kind == "query"])
    way, rounds, turns = (1, 2, 3) if kind == "map" else (-1, 1, 2)
    phase = rng.uniform(0, 2 * np.pi, 5)
    s = np.arange(n) / n * 2 * np.pi
    reach = 0.75 + 0.25 * np.cos(1.5 * rounds * s + phase[0])
    angle = way * rounds * s + phase[1]
    x, y = 1.15 * reach * np.cos(angle), 0.85 * reach * np.sin(angle)
    z = EYE_HEIGHT_M + 0.04 * np.sin(5 * s + phase[2])
    yaw = way * turns * s + phase[3] + 0.5 * np.sin(3 * s)
    pitch = np.radians(-6 + 9 * np.sin(4 * s + phase[4]))
    roll = np.radians(1.0 * np.sin(7 * s))
    turned = [looking(*angles) for angles in zip(yaw, pitch, roll)]
    return [make_transform(R, position) for R, *position in zip(turned, x, y, z)]


def looking(yaw: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """Rotation camera to world (z up): forward along `yaw` from the x axis, up by `pitch`,
    clockwise by `roll` (radians)."""
    forward = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])  # to the right
    down = np.cross(forward, level)
    right = np.cos(roll) * level + np.sin(roll) * down
    return np.stack([right, np.cross(forward, right), forward], 1)


def write_sequence(
    folder: Path,
    room: Room,
    camera: Camera,
    map_poses: list[np.ndarray],
    query_poses: list[np.ndarray],
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Render both drives into `folder`: frames/frame-NNNNNN.{color.jpg,depth.png,pose.txt},
    camera-intrinsics.txt (OpenCV convention), map.txt and query.txt. Depth is uint16, in
    millimetres."""
    folder = Path(folder)
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    opencv_K = camera.K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    np.savetxt(folder / "camera-intrinsics.txt", opencv_K, fmt="%.6f")
    poses = [*map_poses, *query_poses]
    names = [f"frames/frame-{i:06d}" for i in range(len(poses))]
    for i, (name, pose) in enumerate(zip(names, poses)):
        image, depth = room.render(camera, pose, np.random.default_rng([seed, i]))
        write_jpeg(folder / f"{name}.color.jpg", image, quality=95)
        write_depth(folder / f"{name}.depth.png", np.round(1000 * depth).astype(np.uint16))
        np.savetxt(folder / f"{name}.pose.txt", pose, fmt="%.8f")
        on_progress((i + 1) / len(poses))
    (folder / "map.txt").write_text("\n".join(names[: len(map_poses)]) + "\n")
    (folder / "query.txt").write_text("\n".join(names[len(map_poses) :]) + "\n")
