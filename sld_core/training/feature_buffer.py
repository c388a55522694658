"""The feature buffer: the frozen backbone runs once over all images, plain and augmented; training
then sees only cells.

Cells within positive_radius_cell of a visible landmark are its positives; cells farther than
ignore_radius_cell from every landmark, seen or unknown, may be background."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch

from sld_core import heatmap
from sld_core.camera.images import load_upright
from sld_core.config.scene import BufferConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.spread import spread
from sld_core.training import augmentation
from sld_core.training.distributed import ALONE, World, from_main, gather, shard
from sld_core.types import Frame, Labels, Progress, Visibility

WHITENING_FRAMES, WHITENING_CELLS = 60, 600
GPU_SHARE = 0.5  # of the free memory of a GPU that a buffer may take; training needs the rest


@dataclass(frozen=True)
class FeatureBuffer:
    """Training cells of all passes: whitened `feature_NC` (float16), `landmark_N` (L for
    background), `offset_N2` (cells, from the cell's centre to the landmark; 0 for background) and
    `plain_N`, true for cells of unaugmented images."""

    feature_NC: torch.Tensor
    landmark_N: torch.Tensor
    offset_N2: torch.Tensor
    plain_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.landmark_N)

    def to(self, device: str) -> FeatureBuffer:
        """The same in the memory of a GPU, if it has room for it."""
        tensors = [getattr(self, f.name) for f in fields(self)]
        if not fits_on_gpu(sum(t.nbytes for t in tensors), device):
            return self
        return FeatureBuffer(*(t.to(device) for t in tensors))


def fits_on_gpu(size_bytes: int, device: str) -> bool:
    """Whether `device` is a GPU with room for a buffer of this size."""
    if torch.device(device).type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= GPU_SHARE * free


def fill(
    frames: Sequence[Frame],
    labels: Labels,
    angle_rad_F: np.ndarray,
    backbone: Backbone,
    config: BufferConfig,
    max_side_px: int,
    device: str,
    seed: int,
    passes: int,
    progress: Callable[[Progress], None],
    world: World = ALONE,
) -> tuple[FeatureBuffer, Whitening]:
    """One plain pass and `passes` augmented ones over `frames`, each turned upright by its angle;
    row i of `labels` belongs to frame i. Cells are in order of frames, then passes.

    Each rank of `world`, and in it each of `config.processes`, fills its share of the frames; every
    rank returns the whole, which is what one process alone fills."""
    whitening = fit_whitening(
        frames, angle_rad_F, backbone, config, max_side_px, device, seed, world
    )
    cells_of = partial(
        _cells_of_frame,
        frames,
        labels,
        angle_rad_F,
        backbone,
        whitening,
        config,
        max_side_px,
        device,
        seed,
        passes,
    )
    share = shard(len(frames), world)
    parts = [_no_cells(len(whitening.matrix))]
    for part in _each(cells_of, share, config.processes):
        parts.append(part)
        progress(Progress("filling the feature buffer", (len(parts) - 1) / len(share)))
    columns = zip(*([getattr(part, f.name) for f in fields(part)] for part in parts))
    return FeatureBuffer(
        *(gather(torch.from_numpy(np.concatenate(column)), world) for column in columns)
    ), whitening


def fit_whitening(
    frames: Sequence[Frame],
    angle_rad_F: np.ndarray,
    backbone: Backbone,
    config: BufferConfig,
    max_side_px: int,
    device: str,
    seed: int,
    world: World = ALONE,
) -> Whitening:
    """Whitening of random cells of frames spread over the whole drive, the same on every rank of
    `world`."""
    chosen = np.array(spread(range(len(frames)), WHITENING_FRAMES))
    cells = [torch.empty(0, backbone.channels, device=device)]  # for a rank without a frame
    for i in chosen[shard(len(chosen), world)]:
        features_NC = (
            backbone.features(load_upright(frames[i], max_side_px, angle_rad_F[i])[0], device)
            .flatten(1)
            .T
        )
        picked = np.random.default_rng((seed, i)).integers(0, len(features_NC), WHITENING_CELLS)
        cells.append(features_NC[torch.from_numpy(picked).to(device)])
    cells_NC = gather(torch.cat(cells), world)
    # fitted once: on processors that differ the same sum may end in other bits
    return from_main(
        lambda: Whitening.fit(cells_NC, min(config.channels, backbone.channels)), world
    ).to(device)


def _cells_of_frame(
    frames, labels, angle_rad_F, backbone, whitening, config, max_side_px, device, seed, passes, i
) -> FeatureBuffer:
    """The cells of frame i in numpy arrays, plain and augmented. Each picture has a random
    generator of its own, so that it is the same whoever makes it."""
    image, A = load_upright(frames[i], max_side_px, angle_rad_F[i])
    xy_L2 = labels.xy_FL2[i] @ A[:, :2].T + A[:, 2]
    parts = []
    for number in range(1 + passes):
        rng = np.random.default_rng((seed, number, i))
        seen, seen_xy_L2 = (
            augmentation.augment(image, xy_L2, config, rng) if number else (image, xy_L2)
        )
        cell, landmark, offset = pick_cells(
            seen.shape[:2], seen_xy_L2, labels.visibility_FL[i], config, rng
        )
        features_NC = (
            backbone.features(seen, device).flatten(1).T[torch.from_numpy(cell).to(device)]
        )
        parts.append(
            (
                whitening(features_NC).half().cpu().numpy(),
                landmark,
                offset,
                np.full(len(cell), number == 0),
            )
        )
    return FeatureBuffer(*map(np.concatenate, zip(*parts)))


def _no_cells(channels: int) -> FeatureBuffer:
    return FeatureBuffer(
        np.empty((0, channels), np.float16),
        np.empty(0, np.int64),
        np.empty((0, 2), np.float32),
        np.empty(0, bool),
    )


def _each(
    cells_of: Callable[[int], FeatureBuffer], rows: Sequence[int], processes: int
) -> Iterator[FeatureBuffer]:
    """`cells_of` each row, in order, computed by so many processes, which share this one's
    threads."""
    if processes == 1 or len(rows) < 2:
        yield from map(cells_of, rows)
        return
    # pickled here: the way in which torch sends tensors takes shared memory, 64 MB in many
    # containers
    job, gpu = (
        pickle.dumps(cells_of),
        torch.cuda.current_device() if torch.cuda.is_initialized() else None,
    )
    threads = max(1, torch.get_num_threads() // processes)
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _begin, (job, threads, gpu)
    )
    try:
        yield from pool.map(_work, rows)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(job: bytes, threads: int, gpu: int | None) -> None:
    """In each process of the pool: unpack the job, on the parent's GPU, and end when the parent
    ends, however it does."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(
        target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True
    ).start()
    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    _job = pickle.loads(job)


def _work(row: int) -> FeatureBuffer:
    return _job(row)


def pick_cells(
    shape_HW: tuple[int, int],
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: BufferConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat cell index (N,), landmark (N,) with L for background, and offset (N, 2) in cells, of one
    image."""
    h, w = heatmap.grid_size(*shape_HW)
    background = len(xy_L2)
    with np.errstate(invalid="ignore"):
        inside = ((xy_L2 >= 0) & (xy_L2 < [shape_HW[1], shape_HW[0]])).all(1) & (
            visibility_L != Visibility.HIDDEN
        )
    landmark = np.flatnonzero(inside)
    xy_cell = heatmap.pixel_to_cell(xy_L2[landmark])
    x, y, distance2 = _window(xy_cell, config.ignore_radius_cell)
    valid = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = y * w + x
    free = np.ones(h * w, bool)
    free[cell[valid & (distance2 <= config.ignore_radius_cell**2)]] = False
    positive = (
        valid
        & (distance2 <= config.positive_radius_cell**2)
        & (visibility_L[landmark] == Visibility.VISIBLE)[:, None]
    )
    row, column = np.nonzero(positive)
    # where two landmarks claim a cell, the nearer one has it
    order = np.argsort(distance2[row, column], kind="stable")
    row, column = row[order], column[order]
    _, first = np.unique(cell[row, column], return_index=True)
    row, column = row[first], column[first]
    offset = xy_cell[row] - np.stack([x[row, column], y[row, column]], 1)
    empty = np.flatnonzero(free)
    empty = (
        rng.choice(empty, min(config.background_cells, len(empty)), replace=False)
        if len(empty)
        else empty
    )
    return (
        np.concatenate([cell[row, column], empty]).astype(np.int64),
        np.concatenate([landmark[row], np.full(len(empty), background)]).astype(np.int64),
        np.concatenate([offset, np.zeros((len(empty), 2))]).astype(np.float32),
    )


def _window(xy_cell_K2: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells around each position: columns x (K, W), rows y (K, W) and squared distances (K, W)."""
    reach = int(np.ceil(radius))
    dy, dx = (g.ravel() for g in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    centre = np.round(xy_cell_K2).astype(int)
    x, y = centre[:, :1] + dx, centre[:, 1:] + dy
    return x, y, (x - xy_cell_K2[:, :1]) ** 2 + (y - xy_cell_K2[:, 1:]) ** 2
