"""Monocular depth by a transformers model; the package is optional and imported only here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sld_core.types import SldError

MODEL_TYPES = ("depth_anything", "dpt")


def predictor(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """image (H, W, 3) uint8 RGB -> inverse depth (h, w), by the model in the folder `name` or of
    that name on the hub. Runs no code of the model's author and reads weights from safetensors
    only."""
    try:
        import torch
        import transformers
    except ImportError:
        raise SldError(
            f"{name}: needs the pip package transformers (pip install transformers), "
            "or give the model as an .onnx file"
        ) from None
    safe = {"trust_remote_code": False}
    try:
        kind = transformers.AutoConfig.from_pretrained(name, **safe).model_type
        if kind not in MODEL_TYPES:
            raise SldError(f"{name}: a model of type {kind}; expected {' or '.join(MODEL_TYPES)}")
        processor = transformers.AutoImageProcessor.from_pretrained(name, **safe)
        model = transformers.AutoModelForDepthEstimation.from_pretrained(
            name, use_safetensors=True, **safe
        ).eval()
    except SldError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise SldError(_unusable(name, error)) from None
    metric = getattr(model.config, "depth_estimation_type", "relative") == "metric"

    def predict(image_HW3: np.ndarray) -> np.ndarray:
        inputs = processor(images=image_HW3, return_tensors="pt")
        with torch.inference_mode():
            depth = model(**inputs).predicted_depth[0].float().numpy()
        return 1 / np.maximum(depth, 1e-3) if metric else depth

    return predict


def _unusable(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if Path(name).is_dir():
        return (
            f"{name}: no usable transformers model ({reason}); expected config.json, "
            "preprocessor_config.json and model.safetensors"
        )
    return (
        f"{name}: no such file or folder, and it cannot be had from the hub ({reason}); copy the "
        "model here and give the path of its folder, or of its .onnx file"
    )
