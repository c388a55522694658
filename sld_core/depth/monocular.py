"""Relative inverse depth of one image from a frozen network: an ONNX file, or a transformers model.

The networks this is meant for are Depth-Anything V1 and V2 small (Yang et al., CVPR and NeurIPS
2024): as an ONNX file that the user supplies, or by transformers from a folder or a hub name such
as depth-anything/Depth-Anything-V2-Small-hf."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sld_core.types import SldError

log = logging.getLogger(__name__)
MAX_MODEL_BYTES = 4 * 2**30
MAX_INPUT_SIDE_PX = 4096
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # of inputs
HUB_EXAMPLE = "depth-anything/Depth-Anything-V2-Small-hf"


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of its image: values (rgb / divisor - mean) / std of 0..255 RGB, and,
    where the network takes any size, a shorter side of `short_side_px` with both sides multiples of
    `multiple_px`."""

    divisor: float
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    short_side_px: int = 0  # 0: the image's own size
    multiple_px: int = 1
    interpolation: int = cv2.INTER_AREA

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the input of a network that takes any size; the aspect is kept but for
        rounding to multiples. As Depth-Anything does it: each side to the nearest multiple (halves
        to even), the shorter one never below."""
        scale = self.short_side_px / min(width, height) if self.short_side_px else 1.0
        least = max(self.short_side_px, self.multiple_px)
        return tuple(self._to_multiple(side * scale, least) for side in (width, height))

    def _to_multiple(self, side: float, least: int) -> int:
        nearest = round(side / self.multiple_px) * self.multiple_px
        if nearest >= least:
            return nearest
        return math.ceil(least / self.multiple_px) * self.multiple_px

    def values(self, image_HW3: np.ndarray, width: int, height: int) -> np.ndarray:
        """(height, width, 3) float32 as the network wants it."""
        image = image_HW3.astype(np.float32) / np.float32(self.divisor)
        if (width, height) != image_HW3.shape[1::-1]:
            image = cv2.resize(image, (width, height), interpolation=self.interpolation)
        return (image - np.float32(self.mean)) / np.float32(self.std)


PREPROCESSING = {
    # TCMonoDepth and MiDaS conversions that hold their own normalisation
    "raw255": Preprocessing(1.0),
    # Depth-Anything V1 and V2
    "imagenet": Preprocessing(
        255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 518, 14, cv2.INTER_CUBIC
    ),
}
# input name and shape of networks that are known; every other one is taken for a Depth-Anything
KNOWN_INPUTS = {("input", (1, 3, 192, 320)): "raw255"}  # TCMonoDepth small


class MonocularDepth:
    """A monocular depth network, loaded once.

    `model` is an ONNX file, a folder of a transformers model, or its name on the hub.
    `preprocessing` is "raw255", "imagenet" or "auto": what `FILE.onnx.json` beside an ONNX file
    says ({"preprocessing": "raw255"}), else by name and shape of the input (KNOWN_INPUTS), else
    "imagenet"; transformers models bring their own."""

    def __init__(self, model: str | Path, preprocessing: str = "auto"):
        if preprocessing not in ("auto", *PREPROCESSING):
            raise SldError(
                f"preprocessing {preprocessing!r}: expected auto or one of "
                f"{', '.join(PREPROCESSING)}"
            )
        if str(model).endswith(".onnx"):
            self._predict = _onnx(Path(model), preprocessing)
        elif Path(model).is_file():
            raise SldError(
                f"{model}: expected an .onnx file, a folder of a transformers model or a name "
                f"such as {HUB_EXAMPLE}"
            )
        else:
            from sld_core.depth.transformers_depth import predictor

            self._predict = predictor(str(model))
        self.name = str(model)

    def __call__(self, image_HW3: np.ndarray) -> np.ndarray:
        """(H, W) float32 relative inverse depth of an (H, W, 3) uint8 RGB image: near is large,
        scale and shift unknown."""
        if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3:
            raise ValueError(f"image {image_HW3.dtype} {image_HW3.shape}: expected uint8 (H, W, 3)")
        mono = _one_plane(np.asarray(self._predict(image_HW3), np.float32))
        if mono.ndim != 2 or not np.isfinite(mono).all():
            raise SldError(
                f"{self.name}: its output has shape {mono.shape}, {np.isfinite(mono).mean():.0%} "
                "finite; expected one finite number per pixel: is it a depth network, with the "
                "right `preprocessing`?"
            )
        return cv2.resize(mono, image_HW3.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _one_plane(output: np.ndarray) -> np.ndarray:
    """(h, w) of an output of 1xhxw, 1x1xhxw or 1xhxwx1; others stay as they are."""
    while output.ndim > 2 and output.shape[0] == 1:
        output = output[0]
    return output[..., 0] if output.ndim == 3 and output.shape[-1] == 1 else output


def _onnx(path: Path, preprocessing: str) -> Callable[[np.ndarray], np.ndarray]:
    session = _session(path)
    inputs, output = session.get_inputs(), session.get_outputs()[0].name
    name, shape, kind = inputs[0].name, inputs[0].shape, inputs[0].type
    is_image = len(shape) == 4 and 3 in (shape[1], shape[3]) and kind in DTYPES
    if len(inputs) != 1 or not is_image:
        takes = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise SldError(f"{path}: takes {takes}; expected one image, float, 1x3xHxW or 1xHxWx3")
    channels_first = shape[1] == 3
    wanted = PREPROCESSING[_chosen_preprocessing(path, name, shape, preprocessing)]
    fixed = [
        side if isinstance(side, int) and side > 0 else None
        for side in (shape[2:] if channels_first else shape[1:3])
    ]
    if max(side or 0 for side in fixed) > MAX_INPUT_SIDE_PX:
        raise SldError(f"{path}: takes images of {shape}; expected sides up to {MAX_INPUT_SIDE_PX}")

    def predict(image_HW3: np.ndarray) -> np.ndarray:
        width, height = wanted.size(*image_HW3.shape[1::-1])
        x = wanted.values(image_HW3, fixed[1] or width, fixed[0] or height).astype(DTYPES[kind])
        x = x.transpose(2, 0, 1) if channels_first else x
        try:
            return session.run([output], {name: np.ascontiguousarray(x[None])})[0]
        except Exception as error:  # onnxruntime has no common class of its own
            raise SldError(
                f"{path}: cannot be run on an input of {x.shape} ({_first_line(error)})"
            ) from None

    return predict


def _session(path: Path):
    import onnxruntime

    try:
        size = path.stat().st_size
    except OSError as error:
        raise SldError(
            f"{path}: cannot be read ({error.strerror}); expected the ONNX file of a monocular "
            "depth network"
        ) from None
    if not path.is_file() or not 0 < size <= MAX_MODEL_BYTES:
        raise SldError(
            f"{path}: {size} bytes; expected an ONNX file of 1 to {MAX_MODEL_BYTES} bytes"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class of its own
        raise SldError(f"{path}: not a usable ONNX network ({_first_line(error)})") from None


def _chosen_preprocessing(path: Path, name: str, shape: list, preprocessing: str) -> str:
    if preprocessing != "auto":
        return preprocessing
    beside = path.with_name(path.name + ".json")
    if beside.is_file():
        return _read_preprocessing(beside)
    found = KNOWN_INPUTS.get((name, tuple(shape)), "imagenet")
    log.info("%s: preprocessing %s (input %s %s)", path.name, found, name, shape)
    return found


def _read_preprocessing(path: Path) -> str:
    try:
        if path.stat().st_size > 2**16:
            raise ValueError("too large")
        value = json.loads(path.read_text())["preprocessing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SldError(f'{path}: {error}; expected {{"preprocessing": "imagenet"}}') from None
    if not isinstance(value, str) or value not in PREPROCESSING:
        raise SldError(
            f"{path}: preprocessing {str(value)[:40]!r}; expected one of {', '.join(PREPROCESSING)}"
        )
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
