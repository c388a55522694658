"""A scene, and the `.sld` file that holds it: magic, version, SHA-256, then safetensors (tensors
and one JSON text). No code, no image.

    bytes 0-3    "SLD" and 0x1A
    bytes 4-7    format version, little endian
    bytes 8-39   SHA-256 of everything after it
    bytes 40-    safetensors: head weights (float16; large matrices int8), landmarks (float32),
                 templates (their patches int8), metadata["scene"] = JSON

Scene files travel, so a file is checked as if it were made to harm: sizes, types and ranges of
everything that is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from sld_core.config.scene import (
    BACKBONES,
    FineConfig,
    SceneConfig,
    ScheduleConfig,
    TargetConfig,
)
from sld_core.config.settings import from_dict, to_dict
from sld_core.files import write_atomically
from sld_core.fine_pass import Templates
from sld_core.models import heads
from sld_core.models.backbone import IMAGENET, KINDS, RANDOM, weights_sha256
from sld_core.types import Camera, Landmarks, SceneReport, SldError

MAGIC, VERSION, HEADER_BYTES = b"SLD\x1a", 2, 40
READABLE = (1, 2)  # version 1 has no templates
MAX_BYTES = 256 * 2**20
MAX_LEVELS = 4
PACKED_ROWS, SCALE = 300, ".scale"
TEMPLATE_TYPES = {  # of the fields of Templates, in the file
    "patch_SLPP": np.int8,
    "zoom_S": np.float32,
    "axes_L32": np.float32,  # lengths in any unit
    "direction_L3": np.float16,
    "angle_L": np.float16,
    "near_L": np.float32,
    "far_L": np.float32,
    "views_L": np.uint8,
    "covariance_L33": np.float32,
}
REMEDY = "teach the scene again, or copy the file again"


@dataclass(frozen=True)
class Scene:
    """Everything needed to localize in one place: no image, and of the landmarks' surroundings only
    mean patches of a few pixels (`templates`, None where a scene was taught without them).

    `camera` is the one that the scene was taught with, `rolls_rad` the lowest and highest angle by
    which its images were turned upright (0, 0 when it did not roll). Landmarks are in the world, in
    metres where `metric`, else in a unit of their own."""

    name: str
    landmarks: Landmarks
    origin_3: np.ndarray  # in the world, near the landmarks: differences to it are small numbers
    head: heads.Head
    camera: Camera
    rolls_rad: tuple[float, float]
    config: SceneConfig
    report: SceneReport
    metric: bool = True
    templates: Templates | None = None


def save(scene: Scene, path: Path) -> int:
    """Write the scene; `path` holds either what it held before or the whole new file. Returns the
    number of bytes."""
    config = scene.config
    tensors = {}
    for name, weights in scene.head.state_dict().items():
        tensors |= _packed("head." + name, weights.detach().cpu())
    local_L3 = scene.landmarks.xyz_L3 - scene.origin_3
    tensors["landmarks.xyz"] = torch.from_numpy(local_L3.astype(np.float32))
    if scene.templates:
        for name, kind in TEMPLATE_TYPES.items():
            values = getattr(scene.templates, name).astype(kind)
            tensors["templates." + name] = torch.from_numpy(np.ascontiguousarray(values))
    text = json.dumps(
        {
            "name": scene.name,
            "backbone": {
                "name": config.backbone,
                "weights_sha256": weights_sha256(config.backbone, config.backbone_weights),
            },
            "camera": dataclasses.asdict(scene.camera),
            "origin": scene.origin_3.tolist(),
            "rolls_rad": list(scene.rolls_rad),
            "metric": bool(scene.metric),
            "config": to_dict(config),
            "report": dataclasses.asdict(scene.report),
        }
    )
    body = safetensors.torch.save(tensors, {"scene": text})
    header = MAGIC + VERSION.to_bytes(4, "little") + hashlib.sha256(body).digest()
    write_atomically(Path(path), header + body)
    return len(header) + len(body)


def load(path: Path) -> Scene:
    """The scene of a file; SldError in one line when it is missing, damaged, of another version or
    needs another backbone."""
    path = Path(path)
    body = _verified_body(path)
    try:
        return _parse(body, path)
    except SldError as error:
        text = str(error)
        raise SldError(text if str(path) in text else f"{path}: {text}; {REMEDY}") from None
    except (
        safetensors.SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as error:
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise SldError(f"{path}: not a readable scene ({what}); {REMEDY}") from None


def _verified_body(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not HEADER_BYTES < size <= MAX_BYTES:
            raise SldError(
                f"{path}: {size} bytes; a scene file has {HEADER_BYTES} to {MAX_BYTES}; {REMEDY}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SldError(
            f"{path}: cannot be read ({error.strerror}); expected the output of `sld teach`"
        ) from None
    if data[:4] != MAGIC:
        raise SldError(
            f"{path}: not a scene file (it does not begin like one); expected the output of "
            "`sld teach`"
        )
    version = int.from_bytes(data[4:8], "little")
    if version not in READABLE:
        raise SldError(
            f"{path}: format version {version}, this sld reads up to {VERSION}; install a "
            f"matching sld or {REMEDY}"
        )
    if hashlib.sha256(data[HEADER_BYTES:]).digest() != data[8:HEADER_BYTES]:
        raise SldError(f"{path}: damaged (its checksum does not match); {REMEDY}")
    return data[HEADER_BYTES:]


def _parse(body: bytes, path: Path) -> Scene:
    """The checksum detects corruption; the checks here also reject malicious files."""
    tensors = safetensors.torch.load(body)
    header_bytes = int.from_bytes(body[:8], "little")
    text = json.loads(json.loads(body[8 : 8 + header_bytes])["__metadata__"]["scene"])
    config = _with_weights(text["config"], text["backbone"], path)
    xyz_L3 = tensors.pop("landmarks.xyz").double().numpy()
    if xyz_L3.ndim != 2 or xyz_L3.shape[1] != 3 or len(xyz_L3) == 0:
        raise SldError(f"landmarks of shape {xyz_L3.shape}, expected (L, 3)")
    finite = all(torch.isfinite(t).all() for t in tensors.values()) and np.isfinite(xyz_L3).all()
    if not finite:
        raise SldError("weights or landmarks that are not finite")
    templates = _templates(tensors, len(xyz_L3), config.fine)
    state = _unpacked(tensors)
    head = heads.from_state(config.head, state, KINDS[config.backbone].channels, len(xyz_L3))
    low, high = (float(angle) for angle in text["rolls_rad"])
    if not -np.pi <= low <= high <= np.pi:
        raise SldError(f"rolls_rad {low}, {high}: expected a range within -pi to pi")
    origin_3 = np.array([float(v) for v in text["origin"]])
    if origin_3.shape != (3,) or not np.isfinite(origin_3).all():
        raise SldError(f"origin {text['origin']}: expected three numbers")
    metric = text.get("metric", True)  # files of the first versions do not say it, and are
    if not isinstance(metric, bool):
        raise SldError(f"metric {str(metric)[:40]!r}: expected true or false")
    return Scene(
        _name(text["name"]),
        Landmarks(xyz_L3 + origin_3, np.full(len(xyz_L3), -1)),
        origin_3,
        head,
        Camera(**text["camera"]),
        (low, high),
        config,
        _report(text["report"]),
        metric,
        templates,
    )


def _packed(name: str, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights as they are stored: float16, or of a large matrix, such as the one with a row for
    each landmark, int8 and a scale for each row."""
    if weights.ndim != 2 or len(weights) < PACKED_ROWS:
        return {name: weights.half().contiguous()}
    scale_N1 = weights.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return {name: (weights / scale_N1).round().to(torch.int8), name + SCALE: scale_N1.float()}


def _unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of the head whose weights were `_packed`."""
    state = {}
    for name, weights in tensors.items():
        if not name.endswith(SCALE):
            scale = tensors[name + SCALE].float() if weights.dtype == torch.int8 else 1.0
            state[name.removeprefix("head.")] = weights.float() * scale
    return state


def _templates(
    tensors: dict[str, torch.Tensor], landmarks: int, config: FineConfig
) -> Templates | None:
    """The templates of a file, taken out of its tensors; None where it has none."""
    if "templates.patch_SLPP" not in tensors:
        return None
    values = {name: tensors.pop("templates." + name).numpy() for name in TEMPLATE_TYPES}
    side, levels = 2 * config.radius_px + 1, len(values["zoom_S"])
    size = {"S": levels, "L": landmarks, "P": side, "3": 3, "2": 2}
    for name, kind in TEMPLATE_TYPES.items():
        shape = tuple(size[letter] for letter in name.rpartition("_")[2])
        if values[name].shape != shape or values[name].dtype != kind:
            raise SldError(
                f"templates.{name} of shape {values[name].shape}, {values[name].dtype}; expected "
                f"{shape}, {np.dtype(kind)}"
            )
    zoom_S = values["zoom_S"]
    if not 1 <= levels <= MAX_LEVELS or not ((zoom_S >= 1 / 16) & (zoom_S <= 128)).all():
        raise SldError(
            f"templates.zoom_S {zoom_S[:4].tolist()}: expected 1 to {MAX_LEVELS} numbers from 1/16 "
            "to 128"
        )
    return Templates(
        **{
            name: array if name in ("patch_SLPP", "views_L") else array.astype(float)
            for name, array in values.items()
        }
    )


def _name(value) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
        raise SldError("a scene name that is not up to 200 printable characters")
    return value


def _report(values: dict) -> SceneReport:
    curve = [(step, loss) for step, loss in values["loss_curve"]]
    report = SceneReport(**{**values, "loss_curve": curve})
    numbers = [*report.seconds.values(), *report.counts.values()]
    numbers += [value for value in report.validation.values() if value is not None]
    numbers += [number for point in curve for number in point]
    if not all(type(number) in (int, float) for number in numbers):
        raise SldError("a report whose parts are not numbers")
    if not all(isinstance(note, str) for note in report.notes):
        raise SldError("a report whose notes are not text")
    return report


def _with_weights(values: dict, backbone: dict, path: Path) -> SceneConfig:
    """The scene's configuration, once its backbone is known to be here with the same weights.

    A file of weights may have moved with the scene: it is looked for where it was, then beside the
    scene file."""
    name = backbone["name"]
    if name not in BACKBONES:
        raise SldError(
            f"{path}: needs backbone {name!r}, this sld has {', '.join(BACKBONES)}; install a "
            f"matching sld or {REMEDY}"
        )
    config = from_dict(_grouped(values), SceneConfig)
    weights = config.backbone_weights
    if weights not in ("", IMAGENET, RANDOM) and not Path(weights).is_file():
        beside = path.parent / Path(weights).name
        if not beside.is_file():
            raise SldError(
                f"{path}: needs the backbone weights {weights}, which are not here; copy that "
                f"file to {beside}"
            )
        config = dataclasses.replace(config, backbone_weights=str(beside))
    if backbone["weights_sha256"] != weights_sha256(config.backbone, config.backbone_weights):
        raise SldError(
            f"{path}: was taught with other weights of backbone {name!r}; install those "
            f"weights or {REMEDY}"
        )
    return config


def _grouped(values: dict) -> dict:
    """Settings in the groups of today: older files hold those of the groups target and schedule
    directly in head.heatmap, and the schedule's kind under the name "schedule"."""
    old = values.get("head", {}).get("heatmap", {})
    if "loss" not in old:
        return values
    groups = {"target": {}, "schedule": {"kind": old["schedule"]}}
    group_of = {f.name: "target" for f in dataclasses.fields(TargetConfig)}
    group_of |= {f.name: "schedule" for f in dataclasses.fields(ScheduleConfig)}
    heatmap = dict(groups)
    for name, value in old.items():
        if name in group_of:
            groups[group_of[name]][name] = value
        elif name != "schedule":
            heatmap[name] = value
    return values | {"head": values["head"] | {"heatmap": heatmap}}
