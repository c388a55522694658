"""Folders in the layout of 7-Scenes (Shotton et al., CVPR 2013).

    seq-01/frame-000000.color.png   640x480
    seq-01/frame-000000.depth.png   16 bits, millimetres, 65535 = none
    seq-01/frame-000000.pose.txt    4x4, camera to world, metres
    TrainSplit.txt, TestSplit.txt   a line "sequence1" for each sequence
    ValSplit.txt                    ours, where there are validation frames
    camera-intrinsics.txt           ours: 3x3, pixel centres at integers; with it, depth images
                                    are registered to the colour images

The original has no intrinsics: its colour camera is taken to have f = 525 px and its centre at
(320, 240) of 640x480, as is usual. Its depths come from another camera (f = 585 px, the same
centre, a few centimetres aside, never calibrated), so they are zoomed by 525/585; a shift of some
pixels between colour and depth remains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sld_core.camera.images import read_depth, read_image
from sld_core.data.formats.whole_folder import whole_folder
from sld_core.data.frame_folder import image_size, read_intrinsics, read_pose
from sld_core.files import read_text, write_atomically
from sld_core.types import Camera, Frame, SldError

COLOUR_F, DEPTH_F = 525.0, 585.0  # px, at 640x480
NO_DEPTH = 65535
LISTS = {"train": "TrainSplit.txt", "val": "ValSplit.txt", "test": "TestSplit.txt"}
IMAGE_ENDINGS = (".color.png", ".color.jpg")
INTRINSICS = "camera-intrinsics.txt"


def read_seven_scenes(
    folder: Path, depths: Path | None = None
) -> tuple[tuple[Frame, ...], tuple[str, ...]]:
    """The frames and the split of each: "train", "val" or "test"; the session is the sequence.

    Depths are left out unless `depths` names a folder, into which they are written as `Frame` has
    them: 0 is none, and aligned with the colour image as well as the files allow. SldError names
    the first file that cannot be used."""
    folder = Path(folder)
    frames: list[Frame] = []
    splits: list[str] = []
    for split, sequence in _sequences(folder):
        images = sorted(
            p for ending in IMAGE_ENDINGS for p in (folder / sequence).glob("frame-*" + ending)
        )
        if not images:
            raise SldError(
                f"{folder / sequence}: holds no frame-NNNNNN.color.png; {LISTS[split]} names it"
            )
        for path in images:
            frames.append(_frame(folder, sequence, path, depths))
            splits.append(split)
    if len({f.name for f in frames}) != len(frames):
        raise SldError(f"{folder}: an image is there both as PNG and as JPEG; expected one of them")
    return tuple(frames), tuple(splits)


def write_seven_scenes(folder: Path, frames: Sequence[Frame], split_F: Sequence[str]) -> None:
    """Write into a folder that is not there, or empty. A sequence is of frames in a row of one
    session and split, so runs of test frames become sequences. All frames need a pose and one
    camera; names, sessions and stamps are lost."""
    if (
        len({f.camera for f in frames}) != 1
        or any(f.T_world_camera is None for f in frames)
        or len(split_F) != len(frames)
    ):
        raise SldError(
            f"{len(frames)} frames of {len({f.camera for f in frames})} cameras, "
            f"{sum(f.T_world_camera is None for f in frames)} without a pose, {len(split_F)} "
            "splits: "
            "7-Scenes holds frames of one camera, each with pose and split"
        )
    if not set(split_F) <= set(LISTS):
        raise SldError(f"splits {sorted(set(split_F))}: expected {', '.join(LISTS)}")
    numbers = _sequence_numbers(frames, split_F)
    with whole_folder(folder) as staged:
        c = frames[0].camera
        (staged / INTRINSICS).write_text(
            _rows([[c.fx, 0, c.cx - 0.5], [0, c.fy, c.cy - 0.5], [0, 0, 1]])
        )
        for split, name in LISTS.items():
            own = sorted({n for n, s in zip(numbers, split_F) if s == split})
            if own or split != "val":
                (staged / name).write_text("".join(f"sequence{n}\n" for n in own))
        count: dict[int, int] = {}
        for frame, n in zip(frames, numbers):
            _write_frame(staged / f"seq-{n:02d}" / f"frame-{count.get(n, 0):06d}", frame)
            count[n] = count.get(n, 0) + 1


def _sequences(folder: Path) -> list[tuple[str, str]]:
    """(split, folder) of each sequence that the lists name."""
    out: list[tuple[str, str]] = []
    for split, name in LISTS.items():
        if split == "val" and not (folder / name).exists():
            continue
        for line in read_text(folder / name).split("\n"):
            match = re.fullmatch(r"\s*(?:sequence|seq-?)0*([0-9]{1,6})\s*", line)
            if match:
                out.append((split, f"seq-{int(match[1]):02d}"))
            elif line.strip():
                raise SldError(
                    f"{folder / name}: {line.strip()[:40]!r}; expected lines like sequence1"
                )
    if len({s for _, s in out}) != len(out) or not out:
        raise SldError(
            f"{folder}: the lists of the split name {len(out)} sequences, "
            f"{len({s for _, s in out})} different; "
            "expected each once"
        )
    return out


def _frame(folder: Path, sequence: str, image_path: Path, depths: Path | None) -> Frame:
    stem = image_path.name[: -len(IMAGE_ENDINGS[0])]
    size = image_size(image_path)
    aligned = (folder / INTRINSICS).exists()
    if not aligned and size != (640, 480):
        raise SldError(
            f"{image_path}: is {size[0]}x{size[1]}; expected 640x480 as in 7-Scenes, or a file "
            f"{INTRINSICS} in {folder}"
        )
    camera = (
        read_intrinsics(folder / INTRINSICS, *size)
        if aligned
        else Camera(640, 480, COLOUR_F, COLOUR_F, 320.0, 240.0)
    )
    depth_path = image_path.with_name(f"{stem}.depth.png")
    kept = None
    if depths is not None and depth_path.is_file():
        kept = Path(depths) / sequence / depth_path.name
        write_atomically(
            kept, _png(_aligned_depth(depth_path, None if aligned else COLOUR_F / DEPTH_F))
        )
    return Frame(
        f"{sequence}/{stem}",
        image_path,
        camera,
        read_pose(image_path.with_name(f"{stem}.pose.txt")),
        kept,
        session=sequence,
    )


def _aligned_depth(path: Path, zoom: float | None) -> np.ndarray:
    """uint16 millimetres, 0 = none; zoomed about the middle of the image."""
    if np.prod(image_size(path)) > 16384**2 // 4:
        raise SldError(f"{path}: {image_size(path)} pixels; expected a depth image")
    depth = np.round(read_depth(path) * 1000).astype(np.uint16)
    depth[depth == NO_DEPTH] = 0
    if zoom is None:
        return depth
    height, width = depth.shape
    centre = np.array([width, height]) / 2 - 0.5  # pixel centres at integers
    A = np.array([[zoom, 0, (1 - zoom) * centre[0]], [0, zoom, (1 - zoom) * centre[1]]])
    return cv2.warpAffine(depth, A, (width, height), flags=cv2.INTER_NEAREST)


def _sequence_numbers(frames: Sequence[Frame], split_F: Sequence[str]) -> list[int]:
    out: list[int] = []
    for i, (frame, split) in enumerate(zip(frames, split_F)):
        new = i == 0 or (frame.session, split) != (frames[i - 1].session, split_F[i - 1])
        out.append((out[-1] if out else 0) + new)
    return out


def _write_frame(stem: Path, frame: Frame) -> None:
    stem.parent.mkdir(exist_ok=True)
    image = read_image(frame.image_path)
    if image.shape[:2] != (frame.camera.height, frame.camera.width):
        raise SldError(
            f"{frame.image_path}: is {image.shape[1]}x{image.shape[0]}, its camera "
            f"{frame.camera.width}x{frame.camera.height}; "
            "expected the camera of this image"
        )
    stem.with_name(stem.name + ".color.png").write_bytes(
        _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    )
    stem.with_name(stem.name + ".pose.txt").write_text(_rows(frame.T_world_camera))
    if frame.depth_path:
        depth = _aligned_depth(frame.depth_path, None)
        depth[depth == 0] = NO_DEPTH
        stem.with_name(stem.name + ".depth.png").write_bytes(_png(depth))


def _rows(matrix) -> str:
    return "".join(" ".join(repr(float(v)) for v in row) + "\n" for row in matrix)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()
