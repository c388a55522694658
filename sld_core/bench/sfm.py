"""`sld bench sfm`: structure from motion without poses, compared with the known poses of the
frames, for several settings in one run."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from sld_core.bench.table import print_headings, print_row
from sld_core.commands.common import add_frames, add_json, list_path, write_json
from sld_core.config.settings import override
from sld_core.progress import Bar
from sld_core.runtime import temporary_folder
from sld_core.types import Frame, FrameSet, SldError

COLUMNS = (
    ("seconds", "seconds", 8, ".0f"),
    ("registered", "registered", 10, "d"),
    ("pieces", "pieces", 6, "d"),
    ("reprojection_px", "px", 6, ".3f"),
    ("median_cm", "median cm", 10, ".3g"),
    ("p90_cm", "90 % cm", 10, ".3g"),
    ("median_deg", "median deg", 10, ".3g"),
)


def add(commands) -> None:
    parser = commands.add_parser(
        "sfm",
        help="compare settings of structure from motion with known poses",
        description="Every variant solves the same frames from scratch, without their poses.",
    )
    add_frames(parser)
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="settings of one variant, such as 'mapper=global matching=exhaustive' "
        "(repeatable; default: the defaults)",
    )
    parser.add_argument(
        "--guess-intrinsics", action="store_true", help="do not use the known camera either"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    add_json(parser)
    parser.set_defaults(run=_sfm)


def _sfm(args) -> None:
    from sld_core.config.mapping import SfmConfig
    from sld_core.data.frame_folder import read_frames

    variants = {
        text or "default": override(SfmConfig(), text.split()) for text in args.variant or [""]
    }
    for name, config in variants.items():
        if config.mapper == "posed":
            raise SldError(
                f"--variant {name!r}: mapper=posed refines the poses that this benchmark keeps "
                "back to compare with; expected mapper=auto, incremental or global"
            )
    if not 0 <= args.seed < 2**31:
        raise SldError(f"--seed {args.seed}: expected a whole number from 0 to {2**31 - 1}")
    reference = read_frames(args.frames, list_path(args.list, args.frames))
    columns = (("variant", "variant", max(len(name) for name in variants), "s"), *COLUMNS)
    print_headings(columns)
    out = {}
    for name, config in variants.items():
        out[name] = measure(reference, config, not args.guess_intrinsics, args.seed)
        print_row(columns, {"variant": name} | out[name])
        if "reason" in out[name]:
            print(f"failed: {out[name]['reason']}", flush=True)
    write_json(args.json, out)


def measure(reference: list[Frame], config, intrinsics_known: bool, seed: int) -> dict:
    """Seconds, counts, and errors relative to the reference after aligning the camera positions
    with a similarity (Umeyama)."""
    from sld_core import geometry
    from sld_core.camera.calibration import guessed_camera
    from sld_core.sfm.solve import solve

    if len({f.image_path.parent for f in reference}) > 1:
        raise SldError("the frames lie in several folders; expected one")
    frames = tuple(replace(f, T_world_camera=None, depth_path=None, session="") for f in reference)
    if not intrinsics_known:
        frames = tuple(
            replace(f, camera=guessed_camera(f.camera.width, f.camera.height)) for f in frames
        )
    bar, start = Bar(), time.monotonic()
    with temporary_folder() as folder:
        try:
            result = solve(FrameSet(frames, intrinsics_known), folder, config, seed, bar)
        except SldError as error:
            return dict.fromkeys(key for key, *_ in COLUMNS) | {
                "seconds": time.monotonic() - start,
                "registered": 0,
                "reason": str(error),
            }
        finally:
            bar.done()
    true = {f.name: f.T_world_camera for f in reference}
    T = np.stack([f.T_world_camera for f in result.reconstruction.frames])
    T_true = np.stack([true[f.name] for f in result.reconstruction.frames])
    scale, R, t = geometry.similarity(T[:, :3, 3], T_true[:, :3, 3])
    aligned = [geometry.make_transform(R @ pose[:3, :3], scale * R @ pose[:3, 3] + t) for pose in T]
    metres, radians = np.array([geometry.pose_error(a, b) for a, b in zip(aligned, T_true)]).T
    return {
        "seconds": time.monotonic() - start,
        "images": len(frames),
        "registered": len(T),
        "pieces": len(result.pieces),
        "reprojection_px": result.reprojection_px,
        "points": len(result.reconstruction.points_N3),
        "median_cm": 100 * float(np.median(metres)),
        "p90_cm": 100 * float(np.percentile(metres, 90)),
        "median_deg": float(np.degrees(np.median(radians))),
    }
