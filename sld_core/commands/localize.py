"""`sld localize`: where images were taken."""

from __future__ import annotations

import json
from pathlib import Path

from sld_core.commands.common import add_device, add_path


def add(commands) -> None:
    parser = commands.add_parser(
        "localize",
        help="say where images were taken",
        description="Prints one JSON object per image: the pose (camera to world, metres) or "
        'the reason there is none. With "metric": false the scene has no scale, and poses are in '
        "its own units.",
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="colour images")
    text = (
        "calibration: a 3x3 matrix (OpenCV convention), or YAML of camera_calibration (default: "
        "the camera that the scene was taught with)"
    )
    add_path(parser, "--intrinsics", "FILE", text)
    add_device(parser)
    parser.set_defaults(run=_localize)


def _localize(args) -> None:
    from sld_core.camera.calibration import read_calibration
    from sld_core.camera.images import read_image
    from sld_core.localizer import Localizer

    localizer = Localizer.load(args.scene, args.device)
    calibration = read_calibration(args.intrinsics) if args.intrinsics else None
    for path in args.images:
        image, camera = read_image(path), localizer.scene.camera
        if calibration:
            lens = calibration.undistortion(image.shape[1], image.shape[0])
            image, camera = lens(image), lens.camera
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
