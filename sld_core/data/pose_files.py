"""Poses and matrices in text files, as people and other programs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sld_core.files import read_text
from sld_core.types import SldError


def read_pose(path: Path) -> np.ndarray:
    """The 4x4 camera-to-world transform of a text file; SldError when it is not a rigid one."""
    T = read_matrix(path, 4, 4)
    if np.abs(T[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise SldError(f"{path}: last row {T[3].tolist()}; expected 0 0 0 1 (camera to world)")
    return rigid(T, path)


def read_matrix(path: Path, rows: int, columns: int) -> np.ndarray:
    """The rows x columns finite numbers of a text file."""
    text = read_text(path)
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise SldError(f"{path}: {error}; expected {rows}x{columns} numbers") from None
    if values.size != rows * columns or not np.isfinite(values).all():
        raise SldError(
            f"{path}: {values.size} numbers ({np.isfinite(values).sum()} finite); expected "
            f"{rows}x{columns} finite ones"
        )
    return values.reshape(rows, columns)


def rigid(T: np.ndarray, path: Path) -> np.ndarray:
    """The 4x4 transform with its rotation made exact, since text files round. SldError, with the
    `path` it came from, where it is not a rotation to within 1 %."""
    R = T[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-2 or np.linalg.det(R) < 0:
        raise SldError(f"{path}: not a rigid transform: its 3x3 part is no rotation")
    out = T.copy()
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-9:
        U, _, Vt = np.linalg.svd(R)
        out[:3, :3] = U @ Vt
    return out
