"""`sld bench landmarks`: how the choice of landmarks and the rule of their visibility affect
accuracy, on one set of frames.

Reconstruction and features are computed once; each row of the table then costs a head and the
queries."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sld_core.commands.common import add_device
from sld_core.config.scene import LabelConfig, LandmarkConfig, SceneConfig
from sld_core.config.settings import override
from sld_core.types import Frame, Labels, Landmarks, Progress, Reconstruction, SldError

RANDOM_WEIGHT = 1e6  # of a random number in place of matchability, so that it outweighs saliency

LABEL_RULES = {
    "tracks": {"use_depth": False, "use_normals": False},
    "tracks, depth": {"use_depth": True, "use_normals": False},
    "tracks, depth, normals": {"use_depth": True, "use_normals": True},
}
COLUMNS = (  # key of a row, heading, how to print the value; headings are aligned like values
    ("selection", "selection", "{:22s}", "{:22s}"),
    ("labels", "labels", "{:24s}", "{:24s}"),
    ("accepted", "accepted", "{:9.1f}", "{:>9s}"),
    ("recall_5cm_5deg", "5cm/5deg", "{:9.1%}", "{:>9s}"),
    ("recall_2cm_2deg", "2cm/2deg", "{:9.1%}", "{:>9s}"),
    ("median_cm", "median cm", "{:10.2f}", "{:>10s}"),
    ("wrong_fixes", "wrong", "{:6.1f}", "{:>6s}"),
    ("matchability", "match", "{:6.2f}", "{:>6s}"),
    ("seconds", "seconds", "{:8.1f}", "{:>8s}"),
)


def add(commands) -> None:
    """`landmarks` among the subcommands of `sld bench`."""
    parser = commands.add_parser(
        "landmarks",
        help="compare rules of landmark selection and visibility",
        description="Accuracy for each selection rule and label rule. Takes about a minute per 100 "
        "images.",
    )
    parser.add_argument(
        "--frames", type=Path, required=True, metavar="DIR", help="folder of frames, as for teach"
    )
    parser.add_argument(
        "--map", type=Path, required=True, metavar="LIST", help="names the frames to teach from"
    )
    parser.add_argument(
        "--query", type=Path, required=True, metavar="LIST", help="names the frames to localize"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="train each head on N samples (default 0: prototypes)",
    )
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="average over N seeds (default 1)"
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="W",
        help="weights of matchability to compare (default 1)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the reconstruction here, and reuse it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="change a setting (repeatable)",
    )
    add_device(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.set_defaults(run=_landmarks)


def _landmarks(args) -> None:
    from sld_core.commands.common import check_writable, work_folder
    from sld_core.data.frame_folder import read_frames
    from sld_core.localizer import check_device

    if args.repeat < 1 or args.samples < 0:
        raise SldError(
            f"--repeat {args.repeat} --samples {args.samples}: expected at least 1 and 0"
        )
    check_device(args.device)
    if args.json:
        check_writable(args.json, "--json")
    config = override(SceneConfig(), args.set)
    frames = read_frames(args.frames, _inside(args.map, args.frames))
    queries = read_frames(args.frames, _inside(args.query, args.frames))
    print(" ".join(form.format(heading) for _, heading, _, form in COLUMNS))
    comparison = Comparison(
        frames, queries, config, args.samples, args.repeat, tuple(args.weights), args.device
    )
    with work_folder(args.work) as work:
        rows = compare(comparison, work, _print_row)
    if args.json:
        from sld_core.files import write_atomically

        out = {"samples": args.samples, "rows": rows}
        write_atomically(args.json, (json.dumps(out, indent=2) + "\n").encode())


def _inside(path: Path, folder: Path) -> Path:
    """A list of frames as given, or inside the folder of frames."""
    return path if path.exists() else folder / path


def _print_row(row: dict) -> None:
    values = {key: math.nan if value is None else value for key, value in row.items()}
    print(" ".join(form.format(values[key]) for key, _, form, _ in COLUMNS), flush=True)


@dataclass(frozen=True)
class Comparison:
    """What to compare: heads taught from `frames`, each trained on `samples` samples (0:
    prototypes), over `repeat` seeds and these weights of matchability, on `queries`."""

    frames: Sequence[Frame]
    queries: Sequence[Frame]
    config: SceneConfig
    samples: int
    repeat: int
    weights: tuple[float, ...]
    device: str


def compare(comparison: Comparison, work: Path, on_row: Callable[[dict], None]) -> list[dict]:
    """One row per selection rule and label rule, means over the seeds; `on_row` gets each as soon
    as it is complete."""
    from sld_core.bench.cached_backbone import CachedBackbone
    from sld_core.models.backbone import Backbone
    from sld_core.sfm import triangulation
    from sld_core.sfm.subset import without_frames
    from sld_core.training.feature_buffer import fit_whitening
    from sld_core.training.run import Run
    from sld_core.training.training_set import hold_out
    from sld_core.training.working_images import upright

    config, frames = comparison.config, comparison.frames
    whole = triangulation.reconstruct_once(frames, work, config.tracks, config.seed, _silent)
    seen = without_frames(whole, hold_out(len(frames), config.validation_fraction))
    images = upright(seen.frames, config.image.max_side_px)
    backbone = Backbone(config.backbone, config.backbone_weights).to(comparison.device)
    run = Run(comparison.device, config.seed)
    cached = CachedBackbone(backbone, fit_whitening(images, backbone, config.buffer, run))
    rows: dict[tuple[str, str], list[dict]] = {}
    for seed in range(config.seed, config.seed + comparison.repeat):
        seeded = replace(comparison, config=replace(config, seed=seed))
        for row in _rows_of_seed(seeded, seen, images, cached):
            rule = row["selection"], row["labels"]
            rows.setdefault(rule, []).append(row)
            if len(rows[rule]) == comparison.repeat:
                on_row(_mean(rows[rule]))
    return [_mean(found) for found in rows.values()]


def _mean(rows: list[dict]) -> dict:
    """The mean of every number; None where one of them is None."""
    means = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(first, str):
            means[key] = first
        else:
            means[key] = None if None in values else float(np.mean(values))
    return means


def _rows_of_seed(comparison: Comparison, seen: Reconstruction, images, cached):
    """One row per selection rule and label rule, for one seed."""
    config = comparison.config
    choices = _choices(comparison, seen, images, cached.backbone)
    labels = {}
    for choice in choices:
        for rule, change in LABEL_RULES.items():
            labels[choice.rule, rule] = _labels(seen, choice, replace(config.labels, **change))
    xy_FL2 = [labels[choice.rule, "tracks"].labels.xy_FL2 for choice in choices]
    views = _views(comparison, images, xy_FL2, cached)
    for k, choice in enumerate(choices):
        known: dict[bytes, dict] = {}  # rules that label alike teach alike
        for rule in LABEL_RULES:
            made = labels[choice.rule, rule]
            visibility_FL = made.labels.visibility_FL
            key = visibility_FL.tobytes()
            if key not in known:
                head = _head(comparison, views, k, visibility_FL, len(choice.landmarks))
                known[key] = _accuracy(comparison, head, choice.landmarks, images, cached)
            yield {
                "selection": choice.rule,
                "labels": rule,
                **known[key],
                **made.report,
                "seconds": choice.seconds + made.seconds,
                "matchability": choice.matchability,
            }


def _silent(_: Progress) -> None:
    pass


# landmarks and labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    rule: str
    landmarks: Landmarks
    matchability: float  # mean
    seconds: float


@dataclass(frozen=True)
class _RuleLabels:
    labels: Labels
    report: dict
    seconds: float


def selection_rules(config: LandmarkConfig, weights: Sequence[float]) -> dict[str, LandmarkConfig]:
    """The rules by name; all but "random" rank by saliency."""
    saliency = replace(config, matchability_weight=0.0)
    rules = {
        "random, spread": replace(config, matchability_weight=RANDOM_WEIGHT),
        "saliency": replace(saliency, first_spacing=0.0),
        "saliency, spread": saliency,
    }
    return rules | {
        f"+ matchability x {w:g}": replace(config, matchability_weight=w) for w in weights
    }


def _choices(comparison: Comparison, seen: Reconstruction, images, backbone) -> list[_Choice]:
    from sld_core.landmarks import selection
    from sld_core.landmarks.matchability import matchability

    config = comparison.config
    rng = np.random.default_rng(config.seed)
    start = time.perf_counter()
    match_N = matchability(
        seen,
        backbone,
        config.image.max_side_px,
        config.landmarks,
        rng,
        angle_rad_F=images.angle_rad_F,
    )
    match_s = time.perf_counter() - start
    out = []
    for rule, settings in selection_rules(config.landmarks, comparison.weights).items():
        score_N = rng.random(len(match_N)) if rule.startswith("random") else match_N
        start = time.perf_counter()
        landmarks = selection.select(seen, settings, score_N)
        seconds = time.perf_counter() - start
        if "matchability" in rule:
            seconds += match_s
        out.append(_Choice(rule, landmarks, float(match_N[landmarks.point_L].mean()), seconds))
    return out


def _labels(seen: Reconstruction, choice: _Choice, config: LabelConfig) -> _RuleLabels:
    from sld_core.landmarks.normals import normals_of
    from sld_core.landmarks.visibility import label_and_report

    start = time.perf_counter()
    normals_L3 = normals_of(seen, choice.landmarks, config) if config.use_normals else None
    labels, report = label_and_report(seen, choice.landmarks, config, normals_L3)
    return _RuleLabels(labels, asdict(report), time.perf_counter() - start)


# heads and their accuracy -------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """One image of the buffer: its frame, its features, its size, and the landmarks' pixels of each
    choice (L, 2)."""

    frame: int
    feature_NC: object
    shape_HW: tuple[int, int]
    xy_L2: list[np.ndarray]


def _views(comparison: Comparison, images, xy_FL2: list[np.ndarray], cached) -> list[_View]:
    """Plain and augmented images, the same for all choices of landmarks."""
    from sld_core.training import augmentation

    config, device = comparison.config, comparison.device
    passes = config.buffer.augmented_passes if comparison.samples else 0

    ends = np.cumsum([xy.shape[1] for xy in xy_FL2])[:-1]
    views = []
    for number in range(1 + passes):
        for i in range(len(images.frames)):
            image, A = images.load(i)
            xy = np.concatenate([xy[i] for xy in xy_FL2]) @ A[:, :2].T + A[:, 2]
            if number > 0:
                rng = np.random.default_rng((config.seed, number, i))
                image, xy = augmentation.augment(image, xy, config.buffer, rng)
            # only plain images come again, with the next seed
            features_of = cached.compute if number > 0 else cached.features
            feature_NC = features_of(image, device).flatten(1).T.half().cpu()
            views.append(_View(i, feature_NC, image.shape[:2], np.split(xy, ends)))
    return views


def _head(
    comparison: Comparison,
    views: list[_View],
    choice: int,
    visibility_FL: np.ndarray,
    landmarks: int,
):
    """A head of whitened features: prototypes, or trained."""
    import torch

    from sld_core.models.heads import SceneHead, Whitening
    from sld_core.training import train_cell_head
    from sld_core.training.feature_buffer import FeatureBuffer, pick_cells
    from sld_core.training.run import Run

    config, rng = comparison.config, np.random.default_rng(comparison.config.seed)
    features, cells, offsets, plain = [], [], [], []
    for k, view in enumerate(views):
        cell, landmark, offset = pick_cells(
            view.shape_HW, view.xy_L2[choice], visibility_FL[view.frame], config.buffer, rng
        )
        features.append(view.feature_NC[torch.from_numpy(cell)])
        cells.append(torch.from_numpy(landmark))
        offsets.append(torch.from_numpy(offset))
        plain.append(torch.full((len(cell),), k < len(visibility_FL)))
    buffer = FeatureBuffer(
        torch.cat(features), torch.cat(cells), torch.cat(offsets), torch.cat(plain)
    )
    if comparison.samples:
        settings = replace(config.head, samples=comparison.samples)
        run = Run(comparison.device, config.seed)
        head, _ = train_cell_head.train(buffer, landmarks, settings, run)
    else:
        head = train_cell_head.prototypes(buffer, landmarks, config.head)
    channels = buffer.feature_NC.shape[1]
    identity = Whitening(channels, channels)  # the features are whitened already
    identity.matrix.copy_(torch.eye(channels))
    return SceneHead(identity, head)


def _accuracy(comparison: Comparison, head, landmarks: Landmarks, images, cached) -> dict:
    from sld_core.camera.images import read_image
    from sld_core.evaluation.metrics import QueryResult, accuracy
    from sld_core.localizer import Localizer
    from sld_core.scene_file import Scene
    from sld_core.training.training_set import origin_of
    from sld_core.types import SceneReport

    scene = Scene(
        "bench",
        landmarks,
        origin_of(images.frames),
        head,
        images.frames[0].camera,
        (float(images.angle_rad_F.min()), float(images.angle_rad_F.max())),
        comparison.config,
        SceneReport({}, {}, [], {}),
    )
    localizer = Localizer(scene, comparison.device, cached)
    results = []
    for frame in comparison.queries:
        pose = localizer.localize(read_image(frame.image_path), frame.camera).pose
        T = pose.T_world_camera if pose else None
        results.append(QueryResult(frame.name, frame.T_world_camera, T))
    return accuracy(results)
