"""`sld bench landmarks`: what the choice of landmarks and the rule of their visibility do to
accuracy, on one set of frames.

Reconstruction and features are computed once; each cell of the table then costs a head and the
queries."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sld_core.camera.images import load_upright
from sld_core.config.scene import LabelConfig, LandmarkConfig, SceneConfig
from sld_core.config.settings import override
from sld_core.runtime import temporary_folder
from sld_core.types import Frame, Landmarks, Progress, Reconstruction, SldError

RANDOM_WEIGHT = 1e6  # of a random number beside the saliency

LABEL_RULES: dict[str, Callable[[LabelConfig], LabelConfig]] = {
    "tracks": lambda c: replace(c, use_depth=False, use_normals=False),
    "tracks, depth": lambda c: replace(c, use_depth=True, use_normals=False),
    "tracks, depth, normals": lambda c: replace(c, use_depth=True, use_normals=True),
}
COLUMNS = {
    "selection": "{:22s}",
    "labels": "{:24s}",
    "accepted": "{:9.1f}",
    "recall_5cm_5deg": "{:9.1%}",
    "recall_2cm_2deg": "{:9.1%}",
    "median_cm": "{:10.2f}",
    "wrong_fixes": "{:6.1f}",
    "matchability": "{:6.2f}",
    "seconds": "{:8.1f}",
}
HEADINGS = (
    "selection",
    "labels",
    "accepted",
    "5cm/5deg",
    "2cm/2deg",
    "median cm",
    "wrong",
    "match",
    "seconds",
)


def add(commands) -> None:
    """The benchmark as a subcommand."""
    parser = commands.add_parser(
        "landmarks",
        help="compare rules of landmark selection and visibility",
        description="Accuracy for each selection rule and label rule. About a minute per 100 "
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
        help="of matchability (default 1)",
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
    parser.add_argument("--device", default="cpu", help="torch device, cpu (default) or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.set_defaults(run=_landmarks)


def _landmarks(args) -> None:
    from sld_core.commands.common import check_writable
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
    inside = lambda path: path if path.exists() else args.frames / path
    frames, queries = (read_frames(args.frames, inside(path)) for path in (args.map, args.query))
    print(" ".join(_width(form).format(name) for name, form in zip(HEADINGS, COLUMNS.values())))
    number = lambda value: np.nan if value is None else value
    show = lambda row: print(
        " ".join(form.format(number(row[key])) for key, form in COLUMNS.items()), flush=True
    )
    with temporary_folder() as temporary:
        work = args.work or temporary
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SldError(f"--work {work}: cannot be made a folder ({error.strerror})") from None
        rows = ablate(
            frames,
            queries,
            work,
            config,
            args.samples,
            args.repeat,
            args.weights,
            args.device,
            show,
        )
    if args.json:
        from sld_core.files import write_atomically

        write_atomically(
            args.json,
            (json.dumps({"samples": args.samples, "rows": rows}, indent=2) + "\n").encode(),
        )


def _width(form: str) -> str:
    width = form[2:].split(".")[0].rstrip("s}")
    return f"{{:{'' if form.endswith('s}') else '>'}{width}s}}"


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


def ablate(
    frames: Sequence[Frame],
    queries: Sequence[Frame],
    work: Path,
    config: SceneConfig,
    samples: int,
    repeat: int,
    weights: Sequence[float],
    device: str,
    show: Callable[[dict], None],
) -> list[dict]:
    """One row per selection rule and label rule, means over `repeat` seeds, each shown as soon as
    it is there."""
    from sld_core.models.backbone import Backbone
    from sld_core.sfm import triangulation
    from sld_core.sfm.subset import without_frames
    from sld_core.training.training_set import hold_out, upright_angles

    whole = triangulation.reconstruct_once(frames, work, config.tracks, config.seed, _silent)
    seen = without_frames(whole, hold_out(len(frames), config.validation_fraction))
    angle_rad_F = upright_angles(seen.frames)
    cached = CachedBackbone(
        Backbone(config.backbone, config.backbone_weights).to(device),
        seen.frames,
        angle_rad_F,
        config,
        device,
    )
    rows: dict[tuple[str, str], list[dict]] = {}
    for seed in range(config.seed, config.seed + repeat):
        choices = _choices(
            seen, angle_rad_F, cached.backbone, replace(config, seed=seed), weights, device
        )
        labels = {
            (c.rule, rule): _labels(seen, c, change(config.labels))
            for c in choices
            for rule, change in LABEL_RULES.items()
        }
        views = _views(
            seen.frames,
            [labels[c.rule, "tracks"][0].xy_FL2 for c in choices],
            angle_rad_F,
            cached,
            config,
            config.buffer.augmented_passes if samples else 0,
            seed,
        )
        for k, choice in enumerate(choices):
            same: dict[bytes, dict] = {}  # rules that label alike teach alike
            for rule in LABEL_RULES:
                made, report, seconds = labels[choice.rule, rule]
                if (key := made.visibility_FL.tobytes()) not in same:
                    head = _head(
                        views,
                        k,
                        made.visibility_FL,
                        len(choice.landmarks),
                        replace(config, seed=seed),
                        samples,
                        device,
                    )
                    same[key] = _accuracy(
                        head,
                        choice.landmarks,
                        seen.frames,
                        angle_rad_F,
                        queries,
                        cached,
                        config,
                        device,
                    )
                row = {
                    **same[key],
                    **asdict(report),
                    "seconds": choice.seconds + seconds,
                    "matchability": choice.matchability,
                }
                rows.setdefault((choice.rule, rule), []).append(row)
                if len(rows[choice.rule, rule]) == repeat:
                    show(_mean(choice.rule, rule, rows[choice.rule, rule]))
    return [_mean(*key, found) for key, found in rows.items()]


def _mean(selection: str, labels: str, rows: list[dict]) -> dict:
    value = lambda key: (
        None
        if any(row[key] is None for row in rows)
        else float(np.mean([row[key] for row in rows]))
    )
    return {"selection": selection, "labels": labels, **{key: value(key) for key in rows[0]}}


def _silent(_: Progress) -> None:
    pass


@dataclass(frozen=True)
class _Choice:
    rule: str
    landmarks: Landmarks
    matchability: float  # mean
    seconds: float


def _choices(
    seen: Reconstruction,
    angle_rad_F: np.ndarray,
    backbone,
    config: SceneConfig,
    weights: Sequence[float],
    device: str,
) -> list[_Choice]:
    from sld_core.landmarks import selection as landmarking
    from sld_core.landmarks.matchability import matchability

    rng = np.random.default_rng(config.seed)
    start = time.perf_counter()
    match_N = matchability(
        seen, backbone, config.image.max_side_px, config.landmarks, rng, _silent, angle_rad_F
    )
    match_s = time.perf_counter() - start
    out = []
    for rule, settings in selection_rules(config.landmarks, weights).items():
        score_N = rng.random(len(match_N)) if rule.startswith("random") else match_N
        start = time.perf_counter()
        landmarks = landmarking.select(seen, settings, score_N)
        seconds = time.perf_counter() - start + (match_s if "matchability" in rule else 0.0)
        out.append(_Choice(rule, landmarks, float(match_N[landmarks.point_L].mean()), seconds))
    return out


def _labels(seen: Reconstruction, choice: _Choice, config: LabelConfig):
    """Labels, their report, and the seconds they took."""
    from sld_core.landmarks.normals import normals_of
    from sld_core.landmarks.visibility import label_and_report

    start = time.perf_counter()
    normals_L3 = normals_of(seen, choice.landmarks, config) if config.use_normals else None
    return *label_and_report(
        seen, choice.landmarks, config, normals_L3
    ), time.perf_counter() - start


# features, once -----------------------------------------------------------------------------------


class CachedBackbone:
    """A backbone that gives whitened features and remembers those of every image it saw."""

    def __init__(
        self,
        backbone,
        frames: Sequence[Frame],
        angle_rad_F: np.ndarray,
        config: SceneConfig,
        device: str,
    ):
        from sld_core.training.feature_buffer import fit_whitening

        self.backbone, self.device = backbone, device
        self.whitening = fit_whitening(
            frames,
            angle_rad_F,
            backbone,
            config.buffer,
            config.image.max_side_px,
            device,
            config.seed,
        )
        self.known: dict[bytes, object] = {}

    def to(self, device: str) -> CachedBackbone:
        return self

    def features(self, image_HW3: np.ndarray, device: str):
        """features_Chw after the whitening."""
        key = hashlib.sha1(np.ascontiguousarray(image_HW3)).digest() + bytes(
            str(image_HW3.shape), "ascii"
        )
        if key not in self.known:
            features_Chw = self.backbone.features(image_HW3, device)
            self.known[key] = (
                self.whitening(features_Chw.flatten(1).T)
                .T.unflatten(1, features_Chw.shape[1:])
                .half()
            )
        return self.known[key].float()


@dataclass(frozen=True)
class _View:
    """One image of the buffer: its frame, its features (n, C), its size and where the landmarks of
    each choice are (L, 2)."""

    frame: int
    feature_NC: object
    shape_HW: tuple[int, int]
    xy_L2: list[np.ndarray]


def _views(
    frames: Sequence[Frame],
    xy_FL2: list[np.ndarray],
    angle_rad_F: np.ndarray,
    cached: CachedBackbone,
    config: SceneConfig,
    passes: int,
    seed: int,
) -> list[_View]:
    """Plain and augmented images, the same for all choices of landmarks."""
    from sld_core.training import augmentation

    ends = np.cumsum([xy.shape[1] for xy in xy_FL2])[:-1]
    out = []
    for p in range(1 + passes):
        for i, frame in enumerate(frames):
            image, A = load_upright(frame, config.image.max_side_px, angle_rad_F[i])
            xy = np.concatenate([xy[i] for xy in xy_FL2]) @ A[:, :2].T + A[:, 2]
            if p:
                image, xy = augmentation.augment(
                    image, xy, config.buffer, np.random.default_rng((seed, p, i))
                )
            feature_NC = cached.features(image, cached.device).flatten(1).T.half().cpu()
            out.append(_View(i, feature_NC, image.shape[:2], np.split(xy, ends)))
    return out


# one cell of the table ----------------------------------------------------------------------------


def _head(
    views: list[_View],
    choice: int,
    visibility_FL: np.ndarray,
    landmarks: int,
    config: SceneConfig,
    samples: int,
    device: str,
):
    """A head of whitened features: prototypes, or trained on that many samples."""
    import torch

    from sld_core.models.heads import SceneHead, Whitening
    from sld_core.training import train_cell_head as recipe
    from sld_core.training.feature_buffer import FeatureBuffer, pick_cells

    rng, chunks = np.random.default_rng(config.seed), []
    for k, view in enumerate(views):
        cell, landmark, offset = pick_cells(
            view.shape_HW, view.xy_L2[choice], visibility_FL[view.frame], config.buffer, rng
        )
        chunks.append(
            (
                view.feature_NC[torch.from_numpy(cell)],
                landmark,
                offset,
                np.full(len(cell), k < len(visibility_FL)),
            )
        )
    feature, *rest = zip(*chunks)
    buffer = FeatureBuffer(
        torch.cat(feature), *(torch.from_numpy(np.concatenate(part)) for part in rest)
    )
    if samples:
        cells, _ = recipe.train(
            buffer, landmarks, replace(config.head, samples=samples), config.seed, device, _silent
        )
    else:
        cells = recipe.prototypes(buffer, landmarks, config.head)
    channels = buffer.feature_NC.shape[1]
    identity = Whitening(channels, channels)
    identity.matrix.copy_(torch.eye(channels))
    return SceneHead(identity, cells)


def _accuracy(
    head,
    landmarks: Landmarks,
    frames: Sequence[Frame],
    angle_rad_F: np.ndarray,
    queries: Sequence[Frame],
    cached: CachedBackbone,
    config: SceneConfig,
    device: str,
) -> dict:
    from sld_core.camera.images import read_image
    from sld_core.evaluation.metrics import QueryResult, accuracy
    from sld_core.localizer import Localizer
    from sld_core.scene_file import Scene
    from sld_core.types import SceneReport

    origin_3 = np.mean([f.T_world_camera[:3, 3] for f in frames], axis=0).round()
    rolls_rad = float(angle_rad_F.min()), float(angle_rad_F.max())
    scene = Scene(
        "bench",
        landmarks,
        origin_3,
        head,
        frames[0].camera,
        rolls_rad,
        config,
        SceneReport({}, {}, [], {}),
    )
    localizer = Localizer(scene, device, cached)
    results = []
    for frame in queries:
        pose = localizer.localize(read_image(frame.image_path), frame.camera).pose
        results.append(
            QueryResult(frame.name, frame.T_world_camera, pose.T_world_camera if pose else None)
        )
    return accuracy(results)
