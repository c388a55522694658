"""`sld evaluate`: how well frames with known poses are localized, and whether frames of another
place are refused."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from sld_core.commands.common import (
    add_device,
    add_frames,
    add_json,
    add_path,
    list_path,
    write_json,
)
from sld_core.progress import Bar
from sld_core.spread import spread
from sld_core.types import Progress, SldError

OVERLAYS = 3  # pictures in the report


def add(commands) -> None:
    parser = commands.add_parser(
        "evaluate", help="localize frames with known poses and measure the accuracy"
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    add_frames(parser)
    add_path(
        parser,
        "--align-to",
        "SCENE_DATA_DIR",
        "the dataset that the scene was taught from: its frame and scale are first aligned with "
        "those of --frames, by the images that are in both (hall/a.jpg is photos/hall/a.jpg, but "
        "not yard/a.jpg)",
    )
    parser.add_argument(
        "--reference-noise",
        nargs=2,
        type=float,
        default=(0.0, 0.0),
        metavar=("CM", "DEG"),
        help="standard deviation of the known poses, an axis (default: they are exact): allowed "
        "for where errors are compared with their covariance",
    )
    parser.add_argument(
        "--foreign",
        action="store_true",
        help="the frames are of another place: none should be accepted. Prints how many are",
    )
    parser.add_argument(
        "--mirrored",
        action="store_true",
        help="like --foreign, with every image mirrored left to right, also of the own place",
    )
    add_json(parser)
    add_path(parser, "--report", "FILE.html", "also write a report with pictures")
    add_device(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(args) -> None:
    from sld_core.data.frame_folder import read_frames
    from sld_core.evaluation.metrics import format_table, summarize
    from sld_core.localizer import Localizer

    if not all(0 <= noise < np.inf for noise in args.reference_noise):
        raise SldError(f"--reference-noise {args.reference_noise}: expected numbers from 0 on")
    if (args.foreign or args.mirrored) and (args.report or args.align_to):
        raise SldError(
            "--report and --align-to need frames of the scene's own place; leave them out where "
            "--foreign or --mirrored only counts what is accepted"
        )
    localizer = Localizer.load(args.scene, args.device)
    scene = localizer.scene
    frames = read_frames(args.frames, list_path(args.list, args.frames), split="test")
    if args.foreign or args.mirrored:
        return _count_accepted(localizer, frames, args)
    alignment = _alignment(args, scene) if args.align_to else None
    answers, results = _localize(localizer, frames, alignment, args.reference_noise)
    metrics = summarize(results, scene.report, args.scene.stat().st_size)
    # where this is false, values in cm and recalls mean nothing
    metrics["metric"] = bool(scene.metric or alignment)
    notes = _notes(scene, alignment)
    print(format_table(metrics))
    if alignment:
        metrics |= {
            "align_images": alignment.common,
            "align_scale": alignment.scale,
            "align_median_cm": 100 * alignment.median_m,
            "align_median_deg": float(np.degrees(alignment.median_rad)),
        }
        print(notes[0])
    write_json(args.json, metrics)
    if args.report:
        _write_report(args, scene, alignment, frames, answers, results, metrics, notes)


def _count_accepted(localizer, frames, args) -> None:
    """How many frames of another place are accepted, and which."""
    accepted = [
        frame.name
        for frame, answer in _answers(localizer, frames, mirrored=args.mirrored)
        if answer.accepted
    ]
    print(f"{len(accepted)} of {len(frames)} accepted, expected none", *accepted, sep="\n  ")
    write_json(
        args.json, {"queries": len(frames), "accepted": len(accepted), "accepted_names": accepted}
    )


def _localize(localizer, frames, alignment, noise_cm_deg) -> tuple[list, list]:
    """The answer to each frame, and how it compares with the frame's own pose."""
    from sld_core.evaluation.metrics import QueryResult

    noise_m, noise_rad = noise_cm_deg[0] / 100, np.radians(noise_cm_deg[1])
    noise_66 = np.diag([noise_m**2] * 3 + [noise_rad**2] * 3)
    answers, results = [], []
    for frame, answer in _answers(localizer, frames):
        T = covariance_66 = None
        if answer.pose:
            T, covariance_66 = answer.pose.T_world_camera, answer.pose.covariance_66
            if alignment:
                T, covariance_66 = alignment.pose(T), alignment.covariance(covariance_66)
            covariance_66 = covariance_66 + noise_66
        seconds = sum(answer.seconds.values())
        results.append(
            QueryResult(frame.name, frame.T_world_camera, T, answer.reason, seconds, covariance_66)
        )
        answers.append(answer)
    return answers, results


def _answers(localizer, frames, mirrored: bool = False):
    """Every frame with the answer to it, with a progress bar."""
    from sld_core.camera.images import read_image

    show = Bar()
    for i, frame in enumerate(frames):
        image, camera = read_image(frame.image_path), frame.camera
        if mirrored:
            image = np.ascontiguousarray(image[:, ::-1])
            camera = replace(camera, cx=camera.width - camera.cx)
        yield frame, localizer.localize(image, camera)
        show(Progress("localizing", (i + 1) / len(frames)))
    show.done()


def _write_report(args, scene, alignment, frames, answers, results, metrics, notes) -> None:
    from sld_core.camera.images import read_image
    from sld_core.evaluation.report import overlay, write_report

    xyz_L3 = scene.landmarks.xyz_L3
    pictures = []
    for i in spread(range(len(frames)), OVERLAYS):
        image = read_image(frames[i].image_path)
        picture = overlay(image, frames[i].camera, answers[i], xyz_L3)
        pictures.append((f"Landmarks found in {frames[i].name}", picture))
    write_report(
        args.report,
        f"{scene.name}: {args.frames.name}",
        metrics,
        results,
        scene=scene.report,
        landmarks_L3=alignment.points(xyz_L3) if alignment else xyz_L3,
        overlays=pictures,
        notes=notes,
    )


def _notes(scene, alignment) -> list[str]:
    """Notes on the frame and the unit of the errors; a scene without scale is also reported on
    stderr."""
    if alignment:
        return [
            f"aligned by {alignment.common} images: scale {alignment.scale:.6g}, median "
            f"residual {100 * alignment.median_m:.2f} cm, "
            f"{np.degrees(alignment.median_rad):.3f} deg"
        ]
    if scene.metric:
        return []
    note = (
        f"the scene {scene.name!r} is not metric: its poses are in units of the scene, so that "
        "errors in cm, and recalls, mean nothing; compare with --align-to SCENE_DATA_DIR, or give "
        "the dataset a scale and teach it again"
    )
    print(f"warning: {note}", file=sys.stderr)
    return [note]


def _alignment(args, scene):
    """The similarity from the frame of the scene to that of --frames."""
    from sld_core.data.formats.indoor6 import read_scene_data
    from sld_core.data.frame_folder import read_frames
    from sld_core.evaluation.alignment import MIN_COMMON, align_poses, common_images

    data = read_scene_data(args.align_to, images=False)
    _check_origin(scene, data, args)
    references = read_frames(args.frames)
    paths = [f.image_path for f in references]
    pairs = common_images(
        [f.source for f in data.frames],
        [Path(os.path.relpath(p, args.frames)).as_posix() for p in paths],
        [p.resolve().as_posix() for p in paths],
    )
    if len(pairs) < MIN_COMMON:
        raise SldError(
            f"--align-to {args.align_to}: {len(pairs)} of its {len(data.frames)} images (the "
            f"first is {data.frames[0].source!r}) are among the {len(paths)} of {args.frames} (the "
            f"first is {references[0].name!r}), by the ends of their paths; expected at least "
            f"{MIN_COMMON}"
        )
    return align_poses(
        np.stack([data.frames[i].T_world_camera for i, _ in pairs]),
        np.stack([references[j].T_world_camera for _, j in pairs]),
    )


def _check_origin(scene, data, args) -> None:
    """SldError unless the scene's landmarks are the first of the dataset's: otherwise the two may
    have different frames."""
    ours, theirs = scene.landmarks.xyz_L3, data.landmarks.xyz_L3[: len(scene.landmarks)]
    tolerance = 1e-4 * np.ptp(theirs, axis=0).max()
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > tolerance:
        raise SldError(
            f"--align-to {args.align_to}: its {len(data.landmarks)} landmarks are not those of "
            f"{args.scene} ({len(ours)}); expected the dataset that the scene was taught from, as "
            "it was then: teach the scene again"
        )
