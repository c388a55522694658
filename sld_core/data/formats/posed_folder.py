"""Our own layout of images with poses, which is that of 7-Scenes with intrinsics beside.

camera-intrinsics.txt     3x3, pixel centres at integers
NAME.color.jpg or .png    in any subfolder, free of lens distortion
NAME.pose.txt             4x4, camera to world, metres
NAME.depth.png            optional; 16 bits, millimetres, 0 = none"""

from __future__ import annotations

from pathlib import Path

from sld_core.camera.calibration import read_intrinsics
from sld_core.camera.images import image_size
from sld_core.data.pose_files import read_pose
from sld_core.types import Camera, Frame, SldError

IMAGE_ENDINGS = ".color.jpg", ".color.png"
INTRINSICS = "camera-intrinsics.txt"


class PosedFolder:
    """A folder in this layout. A frame's name is its path in the folder without ending."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._cameras: dict[tuple[int, int], Camera] = {}

    def names(self, split: str = "") -> list[str]:
        """All frames, in order of their names: the layout has no splits."""
        found = (path for ending in IMAGE_ENDINGS for path in self.folder.rglob("*" + ending))
        ending = len(IMAGE_ENDINGS[0])
        return [str(p.relative_to(self.folder))[:-ending] for p in sorted(found) if p.is_file()]

    def named(self, line: str) -> list[str]:
        """The frames that a line of a list means."""
        return [line]

    def frame(self, name: str) -> Frame:
        """SldError names the first file of the frame that is missing or cannot be used."""
        image_path = self._image_path(name)
        size = image_size(image_path)
        if size not in self._cameras:
            self._cameras[size] = self.camera(*size)
        return Frame(
            name,
            image_path,
            self._cameras[size],
            read_pose(self.folder / f"{name}.pose.txt"),
            self.depth(name),
            session=str(Path(name).parent),
        )

    def camera(self, width: int, height: int) -> Camera:
        """The camera of all images of this size."""
        return read_intrinsics(self.folder / INTRINSICS, width, height)

    def depth(self, name: str) -> Path | None:
        """The depth image of a frame, where there is one."""
        path = self.folder / f"{name}.depth.png"
        return path if path.is_file() else None

    def _image_path(self, name: str) -> Path:
        for ending in IMAGE_ENDINGS:
            if (self.folder / (name + ending)).is_file():
                return self.folder / (name + ending)
        raise SldError(
            f"{self.folder / name}.color.jpg: no such image; frames are named without extension, "
            f"relative to {self.folder}"
        )
