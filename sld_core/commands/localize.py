"""`sld localize`: where images were taken."""

from __future__ import annotations

import json
from pathlib import Path

from sld_core.commands.common import add_device


def add(commands) -> None:
    parser = commands.add_parser(
        "localize",
        help="say where images were taken",
        description="Prints one JSON object per image: the pose (camera to world, metres) or "
        "the reason there is none. "
        'With "metric": false the scene has no scale: its unit takes the place of the metre.',
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--intrinsics",
        type=Path,
        metavar="FILE",
        help="3x3 camera matrix, OpenCV convention (default: the camera that the scene was "
        "taught with)",
    )
    add_device(parser)
    parser.set_defaults(run=_localize)


def _localize(args) -> None:
    from sld_core.camera.images import read_image
    from sld_core.data.frame_folder import read_intrinsics
    from sld_core.localizer import Localizer

    localizer = Localizer.load(args.scene, args.device)
    for path in args.images:
        image = read_image(path)
        height, width = image.shape[:2]
        camera = (
            read_intrinsics(args.intrinsics, width, height)
            if args.intrinsics
            else localizer.scene.camera
        )
        answer = localizer.localize(image, camera)
        out = {
            "image": str(path),
            "accepted": answer.accepted,
            "reason": answer.reason,
            "detections": len(answer.detections),
            "metric": localizer.scene.metric,
        }
        if answer.pose:
            out |= {
                "T_world_camera": answer.pose.T_world_camera.round(6).tolist(),
                "inliers": int(answer.pose.inlier_K.sum()),
                "reprojection_px": round(answer.pose.reprojection_px, 3),
                "position_sigma_m": round(answer.pose.position_sigma_m, 5),
                "rotation_sigma_rad": round(answer.pose.rotation_sigma_rad, 6),
            }
        print(json.dumps(out), flush=True)
