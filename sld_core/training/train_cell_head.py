"""The recipe: a buffer of cells -> a head. One page, top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.config.scene import HeadConfig
from sld_core.models.heads import MAX_LOG_B, MIN_LOG_B, CellHead, PrototypeHead, limited
from sld_core.training.distributed import ALONE, World, mean, parallel, shard
from sld_core.training.feature_buffer import FeatureBuffer
from sld_core.training.training_set import hold_out
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)
HELD_OUT_CHUNK = 1000  # cells, about those of one picture


def prototypes(buffer: FeatureBuffer, landmarks: int, config: HeadConfig) -> PrototypeHead:
    """The first state of a scene: each landmark is the mean of its unit features; usable without
    any training."""
    head = PrototypeHead(buffer.feature_NC.shape[1], landmarks, config.prototype_temperature)
    near = (buffer.landmark_N < landmarks) & (buffer.offset_N2.abs().amax(1) <= 0.75)
    unit = F.normalize(buffer.feature_NC[near].float(), dim=1)
    head.prototype.index_add_(0, buffer.landmark_N[near], unit)
    head.prototype.copy_(F.normalize(head.prototype, dim=1))
    return head


def train(
    buffer: FeatureBuffer,
    landmarks: int,
    config: HeadConfig,
    seed: int,
    device: str,
    progress: Callable[[Progress], None],
    world: World = ALONE,
) -> tuple[CellHead, list[tuple[int, float]]]:
    """Cross-entropy with label smoothing over L landmarks + background, and the Laplace likelihood
    of the offset where there is a landmark. AdamW on a one-cycle schedule; with `config.patience`
    the learning rate runs down as soon as the loss on held-out cells stalls. Returns the head and
    the loss curve as (step, mean loss).

    Every rank of `world` has the whole buffer, computes its share of each batch, and ends with the
    head that one process trains."""
    torch.manual_seed(seed)
    buffer = buffer.to(device)
    head = CellHead(buffer.feature_NC.shape[1], config.hidden, landmarks).to(device)
    learned, judge = split_cells(len(buffer), config)
    batch = min(config.batch, len(learned))
    if batch < world.size:
        raise SldError(
            f"batches of {batch} cells cannot be shared among {world.size} processes; start fewer"
        )
    model = parallel(head, world)
    steps, step = max(1, config.samples // config.batch), 0
    optimizer = torch.optim.AdamW(
        head.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=config.warm_up
    )
    generator = torch.Generator().manual_seed(seed)
    stall = Stall(config.patience, config.min_gain)
    curve, running, start = [], 0.0, time.monotonic()
    while step < steps:
        at = step * config.batch % max(1, len(learned) - batch + 1)
        if step == 0 or at < config.batch:  # a new round over the buffer
            order = learned[torch.randperm(len(learned), generator=generator)]
        loss = loss_of(model, buffer, order[at : at + batch], landmarks, config, device, world)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss = mean(loss, world).item()
        running = loss if step == 0 else 0.95 * running + 0.05 * loss
        step += 1
        if step % 20 == 1 or step == steps:
            curve.append((step - 1, running))
            progress(
                Progress(
                    "training the head",
                    step / steps,
                    running,
                    (time.monotonic() - start) / step * (steps - step),
                )
            )
        if config.patience and step % config.check_steps == 0 and step < steps and not stall.over:
            with torch.no_grad():
                stalled = stall(
                    mean(
                        loss_of(model, buffer, judge, landmarks, config, device, world), world
                    ).item()
                )
            if stalled and (rest := max(1, round(config.cool_down * step))) < steps - step:
                log.info(
                    "step %d of %d: the loss on held-out cells stalls at %.3f; %d more",
                    step,
                    steps,
                    stall.best,
                    rest,
                )
                steps, schedule = (
                    step + rest,
                    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest),
                )
    if not math.isfinite(running):
        raise SldError(
            f"the training diverged (loss {running}); lower head.learning_rate from "
            f"{config.learning_rate}"
        )
    return head.cpu().eval(), curve


def loss_of(
    model: nn.Module,
    buffer: FeatureBuffer,
    cell_B: torch.Tensor,
    landmarks: int,
    config: HeadConfig,
    device: str,
    world: World,
) -> torch.Tensor:
    """The loss of these cells; on each rank that of its share, weighted so that the mean over ranks
    is the loss of all."""
    mine = shard(len(cell_B), world)
    cell_B = cell_B.to(buffer.landmark_N.device)
    share = cell_B[mine.start : mine.stop]
    feature, landmark, offset = (
        t[share].to(device) for t in (buffer.feature_NC, buffer.landmark_N, buffer.offset_N2)
    )
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        logits, located = model(feature.to(torch.bfloat16))
    positive = landmark < landmarks
    located_share = positive.sum() / (buffer.landmark_N[cell_B] < landmarks).sum().clamp_min(1)
    classification = F.cross_entropy(
        logits.float(), landmark, label_smoothing=config.label_smoothing
    ) * (len(share) / len(cell_B))
    location = laplace_nll(located.float()[positive], offset[positive]) * located_share
    return (classification + config.offset_weight * location) * world.size


def split_cells(count: int, config: HeadConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells to learn from and cells to judge by: none without patience. As cells are in order of
    frames, short runs of them spread over the buffer are frames or parts of frames with all their
    augmented copies."""
    held_out = torch.zeros(count, dtype=torch.bool)
    if config.patience:
        held_out[hold_out(count, min(config.held_out_cells / count, 0.1), chunk=HELD_OUT_CHUNK)] = (
            True
        )
    return torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]


class Stall:
    """Tells when a loss has not fallen by `min_gain` below its best for `patience` checks."""

    def __init__(self, patience: int, min_gain: float):
        self.patience, self.min_gain = patience, min_gain
        self.best, self.since = math.inf, 0

    @property
    def over(self) -> bool:
        return self.since >= self.patience

    def __call__(self, loss: float) -> bool:
        """Whether it stalls, this loss included."""
        self.best, self.since = (
            (loss, 0) if loss < self.best - self.min_gain else (self.best, self.since + 1)
        )
        return self.over


def laplace_nll(located_N3: torch.Tensor, offset_N2: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of offsets under Laplace distributions centred at located (x, y)
    with scale b."""
    if len(located_N3) == 0:
        return located_N3.sum()
    log_b = limited(located_N3[:, 2], MIN_LOG_B, MAX_LOG_B)
    distance = (located_N3[:, :2] - offset_N2).abs().sum(1)
    return (distance * (-log_b).exp() + 2 * log_b).mean()
