"""In which precision networks multiply: bfloat16 where a device does it natively."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch


@lru_cache
def conv_dtype(device: str) -> torch.dtype:
    """bfloat16 where a device of this type multiplies it natively (twice as fast, same accuracy),
    else float32: processors that emulate bfloat16 take ten times as long for it."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            return torch.float32
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if native else torch.float32


def autocast(device: str | torch.device, enabled: bool = True) -> torch.autocast:
    """Multiply in `conv_dtype` of the device, which inputs must have or be cast to."""
    kind = torch.device(device).type
    native = conv_dtype(kind) is torch.bfloat16
    return torch.autocast(kind, torch.bfloat16, enabled=enabled and native)
