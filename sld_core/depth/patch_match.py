"""Multi-view stereo by COLMAP's PatchMatch (Schoenberger et al., ECCV 2016), and its depth and
normal maps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sld_core.data.formats.colmap_model import write_model
from sld_core.files import write_atomically
from sld_core.optional import pycolmap
from sld_core.types import Frame, Reconstruction, SldError

MAX_SIDE_PX, MAX_CHANNELS, HEADER_BYTES = 16384, 16, 32
HEADER = re.compile(rb"(\d{1,5})&(\d{1,5})&(\d{1,2})&")
ALTERNATIVES = (
    "record depth images with the camera (source sensor), or complete depth from the "
    "triangulated points with a monocular "
    "network (--model FILE.onnx, source completion)"
)


def read_depth_map(path: Path) -> np.ndarray:
    """(H, W) float32 depths along z, units of the model; 0 where there is none. From
    `stereo/depth_maps/NAME.geometric.bin`."""
    array_CHW = _read_array(Path(path))
    if len(array_CHW) != 1:
        raise SldError(f"{path}: {len(array_CHW)} channels; expected 1, a depth map")
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(array_CHW[0]) & (array_CHW[0] > 0), array_CHW[0], np.float32(0))


def read_normal_map(path: Path) -> np.ndarray:
    """(H, W, 3) float32 unit normals in camera axes; 0 where there is none. From
    `stereo/normal_maps/NAME.geometric.bin`."""
    array_CHW = _read_array(Path(path))
    if len(array_CHW) != 3:
        raise SldError(f"{path}: {len(array_CHW)} channels; expected 3, a normal map")
    return np.where(np.isfinite(array_CHW).all(0), array_CHW, np.float32(0)).transpose(1, 2, 0)


def write_map(path: Path, array: np.ndarray) -> None:
    """A depth map (H, W) or normal map (H, W, 3) as COLMAP writes it: "W&H&C&", then float32, x
    fastest, then y, then channel."""
    array_HWC = np.atleast_3d(np.asarray(array, "<f4"))
    height, width, channels = array_HWC.shape
    write_atomically(
        Path(path),
        f"{width}&{height}&{channels}&".encode() + array_HWC.transpose(2, 0, 1).tobytes(),
    )


def _read_array(path: Path) -> np.ndarray:
    """(C, H, W) float32; sizes are checked against the file's before any memory is taken."""
    try:
        with open(path, "rb") as file:
            head = HEADER.match(file.read(HEADER_BYTES))
            if head is None:
                raise SldError(
                    f"{path}: no map of COLMAP's (it does not begin with WIDTH&HEIGHT&CHANNELS&)"
                )
            width, height, channels = map(int, head.groups())
            if not (
                0 < width <= MAX_SIDE_PX
                and 0 < height <= MAX_SIDE_PX
                and 0 < channels <= MAX_CHANNELS
            ):
                raise SldError(
                    f"{path}: {width}x{height} with {channels} channels; expected sides of 1 "
                    f"to {MAX_SIDE_PX}"
                )
            expected, size = head.end() + 4 * width * height * channels, path.stat().st_size
            if size != expected:
                raise SldError(
                    f"{path}: {size} bytes; {width}x{height} with {channels} channels take "
                    f"{expected}: cut off while written?"
                )
            file.seek(head.end())
            return np.fromfile(file, "<f4", width * height * channels).reshape(
                channels, height, width
            )
    except OSError as error:
        raise SldError(f"{path}: cannot be read ({error.strerror})") from None


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
    except (ValueError, RuntimeError) as error:
        raise SldError(
            f"COLMAP's PatchMatch failed ({' '.join(str(error).split())[:200]}); {ALTERNATIVES}"
        ) from None
    return depth_maps(reconstruction.frames, root, workspace)


def depth_maps(frames: tuple[Frame, ...], root: Path, workspace: Path) -> dict[str, Path]:
    """The geometric depth maps of a COLMAP workspace whose images are named relative to `root`, by
    frame name, where they exist."""
    paths = {
        f.name: workspace
        / "stereo/depth_maps"
        / f"{f.image_path.absolute().relative_to(root.absolute()).as_posix()}.geometric.bin"
        for f in frames
    }
    return {name: path for name, path in paths.items() if path.is_file()}


def _image_root(frames: tuple[Frame, ...]) -> Path:
    """The deepest folder that holds all images."""
    parents = [f.image_path.absolute().parent for f in frames]
    root = parents[0]
    while not all(parent.is_relative_to(root) for parent in parents):
        root = root.parent
    return root
