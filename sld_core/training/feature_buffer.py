"""The feature buffer: the frozen backbone runs once over all images, plain and augmented; training
then reads cells only.

Cells within positive_radius_cell of a visible landmark are its positives; cells farther than
ignore_radius_cell from every landmark, visible or unknown, may be background."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch

from sld_core import heatmap
from sld_core.config.scene import BufferConfig
from sld_core.models.backbone import Backbone
from sld_core.models.heads import Whitening
from sld_core.spread import spread
from sld_core.training import augmentation
from sld_core.training.distributed import from_main, gather, shard
from sld_core.training.run import Run
from sld_core.training.working_images import WorkingImages
from sld_core.types import Labels, Progress, Visibility

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
    images: WorkingImages,
    labels: Labels,
    backbone: Backbone,
    config: BufferConfig,
    passes: int,
    run: Run,
) -> tuple[FeatureBuffer, Whitening]:
    """The cells of one plain pass and `passes` augmented ones, in order of images, then passes; row
    i of `labels` belongs to image i.

    The images are divided among the ranks of torchrun and, in each, among config.processes. Every
    rank returns the whole buffer, the same as one process alone fills."""
    whitening = fit_whitening(images, backbone, config, run)
    sampler = _CellSampler(
        images, labels, backbone, whitening, config, passes, run.device, run.seed
    )
    share = shard(len(images.frames), run.world)
    parts = [_no_cells(len(whitening.matrix))]  # for a rank without images
    for part in _sampled(sampler, share, config.processes):
        parts.append(part)
        run.progress(Progress("filling the feature buffer", (len(parts) - 1) / len(share)))
    columns = {
        name: gather(torch.from_numpy(column), run.world)
        for name, column in _concatenated(parts).items()
    }
    return FeatureBuffer(**columns), whitening


def fit_whitening(
    images: WorkingImages, backbone: Backbone, config: BufferConfig, run: Run
) -> Whitening:
    """The whitening of random cells of images spread over the drive, the same on every rank."""
    chosen = spread(range(len(images.frames)), WHITENING_FRAMES)
    share = shard(len(chosen), run.world)
    # starts with an empty part for a rank without images
    parts = [torch.empty(0, backbone.channels, device=run.device)]
    for i in chosen[share.start : share.stop]:
        features_NC = backbone.features(images.load(i)[0], run.device).flatten(1).T
        rng = np.random.default_rng((run.seed, i))
        picked = rng.integers(0, len(features_NC), WHITENING_CELLS)
        parts.append(features_NC[torch.from_numpy(picked).to(run.device)])
    cells_NC = gather(torch.cat(parts), run.world)
    outputs = min(config.channels, backbone.channels)
    # fitted on one rank: on different processors the same sum may end in different bits
    return from_main(lambda: Whitening.fit(cells_NC, outputs), run.world).to(run.device)


Columns = dict[str, np.ndarray]  # of a FeatureBuffer, by name


@dataclass(frozen=True)
class _CellSampler:
    """Picks the cells of one image, plain and augmented."""

    images: WorkingImages
    labels: Labels
    backbone: Backbone
    whitening: Whitening
    config: BufferConfig
    passes: int
    device: str
    seed: int

    def __call__(self, i: int) -> Columns:
        image, A = self.images.load(i)
        xy_L2 = self.labels.xy_FL2[i] @ A[:, :2].T + A[:, 2]
        return _concatenated([self._of_pass(i, n, image, xy_L2) for n in range(1 + self.passes)])

    def _of_pass(self, i: int, number: int, image: np.ndarray, xy_L2: np.ndarray) -> Columns:
        # each view has its own random generator, so that it does not depend on who makes it
        rng = np.random.default_rng((self.seed, number, i))
        if number > 0:
            image, xy_L2 = augmentation.augment(image, xy_L2, self.config, rng)
        visibility_L = self.labels.visibility_FL[i]
        cell, landmark, offset = pick_cells(image.shape[:2], xy_L2, visibility_L, self.config, rng)
        features_NC = self.backbone.features(image, self.device).flatten(1).T
        features_NC = features_NC[torch.from_numpy(cell).to(self.device)]
        return {
            "feature_NC": self.whitening(features_NC).half().cpu().numpy(),
            "landmark_N": landmark,
            "offset_N2": offset,
            "plain_N": np.full(len(cell), number == 0),
        }


def _no_cells(channels: int) -> Columns:
    return {
        "feature_NC": np.empty((0, channels), np.float16),
        "landmark_N": np.empty(0, np.int64),
        "offset_N2": np.empty((0, 2), np.float32),
        "plain_N": np.empty(0, bool),
    }


def _concatenated(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sampled(sampler: _CellSampler, rows: Sequence[int], processes: int) -> Iterator[Columns]:
    """The cells of each row, in order, computed by `processes`, which share this one's threads."""
    if processes == 1 or len(rows) < 2:
        yield from map(sampler, rows)
        return
    # pickled here: torch would send tensors through shared memory, of which many containers have
    # only 64 MB
    job = pickle.dumps(sampler)
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    threads = max(1, torch.get_num_threads() // processes)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, _begin, (job, threads, gpu))
    try:
        yield from pool.map(_work, rows)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(job: bytes, threads: int, gpu: int | None) -> None:
    """In each process of the pool: unpack the job, on the parent's GPU."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    _job = pickle.loads(job)


def _end_with_parent() -> None:
    """Also where the parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(row: int) -> Columns:
    return _job(row)


def pick_cells(
    shape_HW: tuple[int, int],
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: BufferConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the training cells of one image: flat cell index (N,), landmark (N,) with L for
    background, and offset (N, 2) in cells."""
    h, w = heatmap.grid_size(*shape_HW)
    background = len(xy_L2)
    with np.errstate(invalid="ignore"):
        inside = ((xy_L2 >= 0) & (xy_L2 < [shape_HW[1], shape_HW[0]])).all(1)
    landmark = np.flatnonzero(inside & (visibility_L != Visibility.HIDDEN))
    xy_cell = heatmap.pixel_to_cell(xy_L2[landmark])
    x, y, distance2 = _window(xy_cell, config.ignore_radius_cell)
    valid = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    cell = y * w + x
    visible = visibility_L[landmark] == Visibility.VISIBLE
    near = valid & (distance2 <= config.positive_radius_cell**2)
    row, column = np.nonzero(near & visible[:, None])
    # where two landmarks claim a cell, the nearer one has it
    order = np.argsort(distance2[row, column], kind="stable")
    row, column = row[order], column[order]
    _, first = np.unique(cell[row, column], return_index=True)
    row, column = row[first], column[first]
    offset = xy_cell[row] - np.stack([x[row, column], y[row, column]], 1)

    free = np.ones(h * w, bool)
    free[cell[valid & (distance2 <= config.ignore_radius_cell**2)]] = False
    empty = np.flatnonzero(free)
    if len(empty):
        empty = rng.choice(empty, min(config.background_cells, len(empty)), replace=False)
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
