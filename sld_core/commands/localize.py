"""`sld localize`: where images were taken."""

from __future__ import annotations

import json
from pathlib import Path

from sld_core.commands.common import add_device, add_path
from sld_core.types import Camera, SldError


def add(commands) -> None:
    parser = commands.add_parser(
        "localize",
        help="say where images were taken",
        description="Prints one JSON object per image: the pose (camera to world, metres) or "
        'the reason there is none. With "metric": false the scene has no scale, and poses are in '
        "its own units. An image that cannot be read is answered with the reason, and the exit "
        "status is then 2.",
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="colour images")
    text = (
        "calibration: a 3x3 matrix (OpenCV convention), or YAML of camera_calibration (default: "
        "the camera that the scene was taught with)"
    )
    add_path(parser, "--intrinsics", "FILE", text)
    parser.add_argument(
        "--focal",
        choices=["given", "unknown"],
        default="given",
        help="unknown: find the focal length of each image too, starting from that of the scene's "
        "camera; for images of any size from any camera",
    )
    add_device(parser)
    parser.set_defaults(run=_localize)


def _localize(args) -> None:
    from sld_core.camera.calibration import read_calibration
    from sld_core.localizer import Localizer

    localizer = Localizer.load(args.scene, args.device)
    calibration = read_calibration(args.intrinsics) if args.intrinsics else None
    if calibration and args.focal == "unknown":
        raise SldError("--focal unknown and --intrinsics contradict each other; give one of them")
    unusable = 0
    for path in args.images:
        try:
            answer, camera = _answer(localizer, path, calibration, args.focal == "unknown")
            out = _described(answer, camera, localizer.scene.metric)
        except SldError as error:  # the other images may be usable
            unusable += 1
            out = {"accepted": False, "reason": str(error)}
        print(json.dumps({"image": str(path)} | out), flush=True)
    if unusable:
        raise SldError(
            f"{unusable} of {len(args.images)} images could not be used, see their reasons"
        )


def _answer(localizer, path: Path, calibration, focal_unknown: bool):
    """The answer to one image, and the camera that it was asked with."""
    from sld_core.camera.images import read_image

    image, camera = read_image(path), localizer.scene.camera
    height, width = image.shape[:2]
    if focal_unknown:
        for guess in _guesses(camera, width, height):
            answer = localizer.localize(image, guess, fit_focal=True)
            if answer.pose:
                return answer, guess
        return answer, guess
    if calibration:
        lens = calibration.undistortion(width, height)
        return localizer.localize(lens(image), lens.camera), lens.camera
    if (width, height) != (camera.width, camera.height):
        raise SldError(
            f"the image is {width}x{height}, the scene's camera is {camera.width}x{camera.height}; "
            "say with --intrinsics FILE which camera took it, or give --focal unknown"
        )
    return localizer.localize(image, camera), camera


def _guesses(camera: Camera, width: int, height: int) -> list[Camera]:
    """Cameras that may have taken an image: of a usual, a shorter and a longer focal length, each
    near enough to its neighbours for the fit to get there."""
    from sld_core.camera.calibration import GUESSED_FOCAL

    usual = GUESSED_FOCAL * max(width, height)
    guess = Camera(width, height, usual, usual, width / 2, height / 2)
    first = camera if (width, height) == (camera.width, camera.height) else guess
    return [first.zoomed(factor) for factor in (1.0, 0.7, 1.45)]


def _described(answer, camera: Camera, metric: bool) -> dict:
    """An answer as plain values."""
    out = {
        "accepted": answer.accepted,
        "reason": answer.reason,
        "detections": len(answer.detections),
        "metric": metric,
    }
    pose = answer.pose
    if pose is None:
        return out
    out |= {
        "T_world_camera": pose.T_world_camera.round(6).tolist(),
        "inliers": int(pose.inlier_K.sum()),
        "reprojection_px": round(pose.reprojection_px, 3),
        "position_sigma_m": round(pose.position_sigma_m, 5),
        "rotation_sigma_rad": round(pose.rotation_sigma_rad, 6),
    }
    if pose.agreement:
        out |= {"looked_for": pose.agreement.looked_for, "found": pose.agreement.found}
    if pose.focal:
        out |= {
            "focal_px": round(camera.fx * pose.focal.factor, 2),
            "focal_sigma_px": round(camera.fx * pose.focal.factor * pose.focal.sigma, 2),
        }
    return out
