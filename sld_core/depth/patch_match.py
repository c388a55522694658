"""Multi-view stereo by COLMAP's PatchMatch (Schoenberger et al., ECCV 2016), and its depth maps."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from sld_core.data.formats.colmap_model import write_model
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

HEADER = re.compile(rb"(\d{1,5})&(\d{1,5})&1&")
ALTERNATIVES = (
    "record depth images with the camera (source sensor), or complete depth from the "
    "triangulated points with a monocular "
    "network (--model FILE.onnx, source completion)"
)


def read_depth_map(path: Path) -> np.ndarray:
    """(H, W) float32 depths along z, units of the model; 0 where there is none. From
    `stereo/depth_maps/NAME.geometric.bin`: WIDTH&HEIGHT&1&, then float32, row by row."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None
    head = HEADER.match(data)
    if head is None:
        raise SldError(f"{path}: no depth map of COLMAP (it does not begin with WIDTH&HEIGHT&1&)")
    width, height = map(int, head.groups())
    expected = head.end() + 4 * width * height
    if len(data) != expected or not expected > head.end():
        raise SldError(
            f"{path}: {len(data)} bytes; {width}x{height} pixels take {expected}: cut off while "
            "written?"
        )
    depth_HW = np.frombuffer(data, "<f4", offset=head.end()).reshape(height, width)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth_HW) & (depth_HW > 0), depth_HW, np.float32(0))


def has_cuda() -> bool:
    """Whether the installed pycolmap can run PatchMatch."""
    return bool(pycolmap.has_cuda)


def patch_match(reconstruction: Reconstruction, workspace: Path) -> dict[str, Path]:
    """Depth maps by frame name, computed into `workspace` (some 10 MB an image) on a CUDA device;
    SldError where there is none.

    Maps that are already there are kept, so that an interrupted run goes on."""
    if not has_cuda():
        raise SldError(
            "source patchmatch: COLMAP's PatchMatch needs CUDA, and the installed pycolmap is "
            "built without it; "
            f"install pycolmap with CUDA on a machine that has it, or {ALTERNATIVES}"
        )
    root = _image_root(reconstruction.frames)
    model = workspace / "sparse_in"
    write_model(model, reconstruction, root)
    try:
        if not (workspace / "stereo").is_dir():
            pycolmap.undistort_images(workspace, model, root)
        pycolmap.patch_match_stereo(workspace)
    except (ValueError, RuntimeError, OSError) as error:
        raise SldError(
            f"COLMAP's PatchMatch failed ({' '.join(str(error).split())[:200]}); {ALTERNATIVES}"
        ) from None
    return depth_maps(reconstruction.frames, root, workspace)


def depth_maps(frames: tuple[Frame, ...], root: Path, workspace: Path) -> dict[str, Path]:
    """The geometric depth maps of a COLMAP workspace whose images are named relative to `root`, by
    frame name, where they exist."""
    found = {}
    for frame in frames:
        name = frame.image_path.absolute().relative_to(root.absolute()).as_posix()
        path = workspace / "stereo/depth_maps" / f"{name}.geometric.bin"
        if path.is_file():
            found[frame.name] = path
    return found


def _image_root(frames: tuple[Frame, ...]) -> Path:
    """The deepest folder that holds all images."""
    return Path(os.path.commonpath([f.image_path.absolute().parent for f in frames]))
