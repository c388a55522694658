"""COLMAP's PatchMatch against the depth images of frames, as a script."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from sld_core.camera.images import read_depth
from sld_core.config.scene import SceneConfig
from sld_core.data.frame_folder import read_frames
from sld_core.depth.patch_match import patch_match, read_depth_map
from sld_core.files import write_atomically
from sld_core.sfm.triangulation import reconstruct_once

FRAMES = 12


def main(folder: Path, output: Path) -> None:
    """The errors of PatchMatch's depths on a folder's first frames, as JSON in `output`."""
    frames = read_frames(folder, folder / "map.txt")[:FRAMES]
    work = output.with_suffix("")
    found = reconstruct_once(frames, work / "tracks", SceneConfig().tracks, 0, lambda _: None)
    start, errors, covered = time.monotonic(), [], []
    maps = patch_match(found, work / "stereo")
    for frame in found.frames:
        ours, true = read_depth_map(maps[frame.name]), read_depth(frame.depth_path)
        true = cv2.resize(true, ours.shape[::-1], interpolation=cv2.INTER_NEAREST)
        both = (ours > 0) & (true > 0)
        errors.append(np.abs(ours - true)[both] / true[both])
        covered.append(both.sum() / (true > 0).sum())
    numbers = {
        "images": len(maps),
        "seconds": time.monotonic() - start,
        "median_error": float(np.median(np.concatenate(errors))),
        "covered": float(np.mean(covered)),
    }
    write_atomically(output, json.dumps(numbers).encode())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
