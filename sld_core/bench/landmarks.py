"""`sld bench landmarks`: how the choice of landmarks and the rule of their visibility affect
accuracy, on one set of frames.

Tracks are made once, and features once for each seed; each row of the table then costs a head and
the queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sld_core.bench.table import print_headings, print_row
from sld_core.commands.common import (
    add_device,
    add_json,
    add_path,
    add_set,
    work_folder,
    write_json,
)
from sld_core.config.scene import LabelConfig, LandmarkConfig, SceneConfig
from sld_core.config.settings import override
from sld_core.types import Frame, Labels, Landmarks, Reconstruction, SceneReport, SldError

RANDOM_WEIGHT = 1e6  # of a random number in place of matchability, so that it outweighs saliency

LABEL_RULES = {
    "tracks": {"use_depth": False, "use_normals": False},
    "tracks, depth": {"use_depth": True, "use_normals": False},
    "tracks, depth, normals": {"use_depth": True, "use_normals": True},
}
COLUMNS = (
    ("selection", "selection", 22, "s"),
    ("labels", "labels", 24, "s"),
    ("accepted", "accepted", 9, ".1f"),
    ("recall_5cm_5deg", "5cm/5deg", 9, ".1%"),
    ("recall_2cm_2deg", "2cm/2deg", 9, ".1%"),
    ("median_cm", "median cm", 10, ".2f"),
    ("wrong_fixes", "wrong", 6, ".1f"),
    ("matchability", "match", 6, ".2f"),
    ("seconds", "seconds", 8, ".1f"),
)


def add(commands) -> None:
    """`landmarks` among the subcommands of `sld bench`."""
    parser = commands.add_parser(
        "landmarks",
        help="compare rules of landmark selection and visibility",
        description="Accuracy for each selection rule and label rule. Takes about a minute per 100 "
        "images.",
    )
    add_path(parser, "--frames", "DIR", "folder of frames, as for teach", required=True)
    add_path(parser, "--map", "LIST", "names the frames to teach from", required=True)
    add_path(parser, "--query", "LIST", "names the frames to localize", required=True)
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
    add_path(parser, "--work", "DIR", "keep the reconstruction here, and reuse it")
    add_set(parser, "landmarks.count=300")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=_landmarks)


def _landmarks(args) -> None:
    from sld_core.data.frame_folder import read_frames
    from sld_core.localizer import check_device

    if args.repeat < 1 or args.samples < 0:
        raise SldError(
            f"--repeat {args.repeat} --samples {args.samples}: expected at least 1 and 0"
        )
    check_device(args.device)
    # every rule chooses as many
    config = override(SceneConfig(landmarks=LandmarkConfig(count=1000)), args.set)
    frames = read_frames(args.frames, _inside(args.map, args.frames))
    queries = read_frames(args.frames, _inside(args.query, args.frames))
    print_headings(COLUMNS)
    comparison = Comparison(
        frames, queries, config, args.samples, args.repeat, tuple(args.weights), args.device
    )
    with work_folder(args.work) as work:
        rows = compare(comparison, work, lambda row: print_row(COLUMNS, row))
    write_json(args.json, {"samples": args.samples, "rows": rows})


def _inside(path: Path, folder: Path) -> Path:
    """A list of frames as given, or inside the folder of frames."""
    return path if path.exists() else folder / path


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
    from sld_core.sfm import triangulation
    from sld_core.sfm.subset import without_frames
    from sld_core.training.run import ignore
    from sld_core.training.training_set import hold_out, moved, origin_of

    config, origin_3 = comparison.config, origin_of(comparison.frames)
    frames = [moved(f, -origin_3) for f in comparison.frames]
    whole = triangulation.reconstruct_once(frames, work, config.tracks, config.seed, ignore)
    seen = without_frames(whole, hold_out(len(frames), config.validation_fraction))
    rows: dict[tuple[str, str], list[dict]] = {}
    for seed in range(config.seed, config.seed + comparison.repeat):
        seeded = replace(comparison, config=replace(config, seed=seed))
        for row in _rows_of_seed(seeded, seen, origin_3):
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


def _rows_of_seed(
    comparison: Comparison, seen: Reconstruction, origin_3: np.ndarray
) -> Iterator[dict]:
    """One row per selection rule and label rule, for one seed."""
    from sld_core.bench.cached_backbone import CachedBackbone
    from sld_core.models.backbone import Backbone
    from sld_core.training.feature_buffer import fit_whitening
    from sld_core.training.run import Run
    from sld_core.training.training_set import TrainingSet
    from sld_core.training.working_images import upright

    config = comparison.config
    run = Run(comparison.device, config.seed)
    images = upright(seen.frames, config.image.max_side_px)
    backbone = Backbone(config.backbone, config.backbone_weights).to(run.device)
    # whitened, an image takes a third of the memory
    cached = CachedBackbone(backbone, fit_whitening(images, backbone, config.buffer, run))
    for choice in _choices(comparison, seen, images.angle_rad_F, backbone):
        known: dict[bytes, dict] = {}  # rules that label alike teach alike
        for rule, change in LABEL_RULES.items():
            labels, report = _labels(seen, choice.landmarks, replace(config.labels, **change))
            key = labels.visibility_FL.tobytes()
            if key not in known:
                training_set = TrainingSet(
                    seen.frames, choice.landmarks, labels, (), origin_3, metric=True
                )
                known[key] = _accuracy(comparison, training_set, images, cached, run)
            yield {
                "selection": choice.rule,
                "labels": rule,
                **known[key],
                **report,
                "seconds": choice.seconds + report["seconds"],
                "matchability": choice.matchability,
            }


# landmarks and labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    rule: str
    landmarks: Landmarks
    matchability: float  # mean
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


def _choices(
    comparison: Comparison, seen: Reconstruction, angle_rad_F: np.ndarray, backbone
) -> list[_Choice]:
    from sld_core.landmarks import selection
    from sld_core.landmarks.matchability import matchability

    config = comparison.config
    rng = np.random.default_rng(config.seed)
    side_px = config.image.max_side_px
    start = time.perf_counter()
    match_N = matchability(seen, backbone, side_px, config.landmarks, rng, angle_rad_F=angle_rad_F)
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


def _labels(seen: Reconstruction, landmarks: Landmarks, config: LabelConfig) -> tuple[Labels, dict]:
    """The labels, and what there is to report of them, with `seconds`."""
    from sld_core.landmarks.normals import normals_of
    from sld_core.landmarks.visibility import label_and_report

    start = time.perf_counter()
    normals_L3 = normals_of(seen, landmarks, config) if config.use_normals else None
    labels, report = label_and_report(seen, landmarks, config, normals_L3)
    return labels, asdict(report) | {"seconds": time.perf_counter() - start}


# heads and their accuracy -------------------------------------------------------------------------


def _accuracy(comparison: Comparison, training_set, images, cached, run) -> dict:
    """The accuracy on the queries of a head taught on the training set."""
    from sld_core.bench.paper.scenes import evaluate
    from sld_core.localizer import Localizer
    from sld_core.training.teach import scene_of

    head = _head(comparison, training_set, images, cached, run)
    scene = scene_of(training_set, head, comparison.config, "bench", SceneReport({}, {}, [], {}))
    localizer = Localizer(scene, comparison.device, cached)
    found = evaluate(localizer.localize, comparison.queries)
    del found["query_ms"]  # features come from the cache
    return found


def _head(comparison: Comparison, training_set, images, cached, run):
    """Prototypes, or a trained head."""
    from sld_core.models.heads import SceneHead
    from sld_core.training import feature_buffer, train_cell_head

    config, landmarks = comparison.config, len(training_set.landmarks)
    settings = replace(config.buffer, processes=1)  # the cache is in this one
    passes = settings.augmented_passes if comparison.samples else 0
    buffer, whitening = feature_buffer.fill(
        images, training_set.labels, cached, settings, passes, run
    )
    if comparison.samples:
        trained = replace(config.head, samples=comparison.samples)
        cells, _ = train_cell_head.train(buffer, landmarks, trained, run)
    else:
        cells = train_cell_head.prototypes(buffer, landmarks, config.head)
    return SceneHead(whitening.cpu(), cells)
