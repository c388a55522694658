"""Folders in the layout of 7-Scenes (Shotton et al., CVPR 2013).

seq-01/frame-000000.color.png     640x480
seq-01/frame-000000.depth.png     16 bits, millimetres, 65535 = none
seq-01/frame-000000.pose.txt      4x4, camera to world, metres
TrainSplit.txt, TestSplit.txt     a line "sequence1" for each sequence

The original has no intrinsics: its colour camera is taken to have f = 525 px and its centre at
(320, 240), as is usual. Its depths come from another camera (f = 585 px, the same centre, a few
centimetres aside, never calibrated), so they are scaled up by 525/585; a shift of some pixels
between colour and depth remains. Where camera-intrinsics.txt lies in the folder, it is used, and
depths are taken to fit the colour images."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import cv2
import numpy as np

from sld_core.camera.encodings import encode_png
from sld_core.camera.images import read_depth
from sld_core.data.formats.posed_folder import INTRINSICS, PosedFolder
from sld_core.files import read_text, write_atomically
from sld_core.types import Camera, SldError

log = logging.getLogger(__name__)

SIZE = 640, 480
COLOUR_F, DEPTH_F = 525.0, 585.0  # px
NO_DEPTH = 65535
LISTS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}


def is_seven_scenes(folder: Path) -> bool:
    """Whether a folder has a list of sequences, or sequences."""
    return any((folder / name).exists() for name in LISTS.values()) or any(
        folder.glob("seq-[0-9]*")
    )


class SevenScenes(PosedFolder):
    """A folder in this layout; the session of a frame is its sequence. Depth images are written
    into `depths` as `Frame` has them: 0 is none, and aligned with the colour image as well as the
    files allow. They are left out where it is None."""

    def __init__(self, folder: Path, depths: Path | None = None):
        super().__init__(folder)
        self.depths = depths
        self.calibrated = (folder / INTRINSICS).exists()

    def names(self, split: str = "") -> list[str]:
        """The frames of the sequences that the list of this split ("train" or "test") names; all
        frames without a split, or without lists."""
        path = self.folder / LISTS.get(split, "")
        if not path.is_file():
            return super().names()
        lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        return [name for line in lines for name in self.named(line)]

    def named(self, line: str) -> list[str]:
        """A line of a list is a frame or a whole sequence, such as sequence1 or seq-01."""
        match = re.fullmatch(r"(?:sequence|seq-)0*([0-9]{1,6})", line)
        if match is None:
            return [line]
        sequence = f"seq-{int(match[1]):02d}"
        names = PosedFolder(self.folder / sequence).names()
        if not names:
            raise SldError(f"{self.folder / sequence}: holds no frame-NNNNNN.color.png")
        return [f"{sequence}/{name}" for name in names]

    def camera(self, width: int, height: int) -> Camera:
        if self.calibrated:
            return super().camera(width, height)
        if (width, height) != SIZE:
            raise SldError(
                f"{self.folder}: has images of {width}x{height}; expected 640x480 as in 7-Scenes, "
                f"or a file {INTRINSICS} in it"
            )
        log.warning(
            "%s: has no %s: its camera is taken to be that of 7-Scenes, f = 525 px and the centre "
            "at (320, 240)",
            self.folder,
            INTRINSICS,
        )
        return Camera(*SIZE, COLOUR_F, COLOUR_F, SIZE[0] / 2, SIZE[1] / 2)

    def depth(self, name: str) -> Path | None:
        source = super().depth(name)
        if source is None or self.depths is None:
            return None
        target = self.depths / f"{name}.depth.png"
        if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
            write_atomically(target, encode_png(self._aligned_depth(source)))
        return target

    def _aligned_depth(self, path: Path) -> np.ndarray:
        """uint16 millimetres, 0 = none; scaled about the middle of the image where it comes from
        the depth camera."""
        depth = np.round(read_depth(path) * 1000).astype(np.uint16)
        depth[depth == NO_DEPTH] = 0
        if self.calibrated:
            return depth
        height, width = depth.shape
        zoom = COLOUR_F / DEPTH_F
        centre = np.array([width, height]) / 2 - 0.5  # pixel centres at integers
        A = np.array([[zoom, 0, (1 - zoom) * centre[0]], [0, zoom, (1 - zoom) * centre[1]]])
        return cv2.warpAffine(depth, A, (width, height), flags=cv2.INTER_NEAREST)
