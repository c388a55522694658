"""The recipe of the default head: a buffer of cells -> a cell classifier. One page, top to
bottom."""

from __future__ import annotations

import logging
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

from sld_core.config.scene import HeadConfig
from sld_core.models.heads import MAX_LOG_B, MIN_LOG_B, CellHead, PrototypeHead, limited
from sld_core.models.precision import autocast, conv_dtype
from sld_core.training.distributed import mean, parallel, shard
from sld_core.training.feature_buffer import FeatureBuffer
from sld_core.training.run import Run
from sld_core.training.training_set import hold_out
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)
HELD_OUT_CHUNK = 1000  # cells, about those of one image


def prototypes(buffer: FeatureBuffer, landmarks: int, config: HeadConfig) -> PrototypeHead:
    """The head that needs no training: each landmark is the mean of its unit features."""
    head = PrototypeHead(buffer.feature_NC.shape[1], landmarks, config.prototype_temperature)
    near = (buffer.landmark_N < landmarks) & (buffer.offset_N2.abs().amax(1) <= 0.75)
    unit = F.normalize(buffer.feature_NC[near].float(), dim=1)
    head.prototype.index_add_(0, buffer.landmark_N[near], unit)
    head.prototype.copy_(F.normalize(head.prototype, dim=1))
    return head


def train(
    buffer: FeatureBuffer, landmarks: int, config: HeadConfig, run: Run
) -> tuple[CellHead, list[tuple[int, float]]]:
    """Train a head, and return it with the loss curve as (step, mean loss).

    The loss is the cross-entropy with label smoothing over L landmarks and background, and the
    Laplace likelihood of the offset where there is a landmark. AdamW on a one-cycle schedule; with
    `config.patience` the learning rate runs down as soon as the loss on held-out cells stalls.

    Every rank has the whole buffer, computes its share of each batch, and ends with the head that
    one process trains."""
    torch.manual_seed(run.seed)
    buffer = buffer.to(run.device)
    head = CellHead(buffer.feature_NC.shape[1], config.hidden, landmarks).to(run.device)
    learned, held_out = split_cells(len(buffer), config)
    batch = min(config.batch, len(learned))
    if batch < run.world.size:
        raise SldError(
            f"batches of {batch} cells cannot be shared among {run.world.size} processes; "
            "start fewer"
        )
    model = parallel(head, run.world)
    steps = max(1, config.samples // config.batch)
    optimizer = torch.optim.AdamW(
        head.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=config.warm_up
    )
    generator = torch.Generator().manual_seed(run.seed)
    stall = Stall(config.patience, config.min_gain)
    curve, running, step, start = [], 0.0, 0, time.monotonic()
    while step < steps:
        at = step * config.batch % max(1, len(learned) - batch + 1)
        if step == 0 or at < config.batch:  # a new round over the buffer
            order = learned[torch.randperm(len(learned), generator=generator)]
        loss = loss_of(model, buffer, order[at : at + batch], landmarks, config, run)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss = mean(loss, run.world).item()
        running = loss if step == 0 else 0.95 * running + 0.05 * loss
        step += 1
        if step % 20 == 1 or step == steps:
            curve.append((step - 1, running))
            seconds_left = (time.monotonic() - start) / step * (steps - step)
            run.progress(Progress("training the head", step / steps, running, seconds_left))
        if config.patience and step % config.check_steps == 0 and step < steps and not stall.over:
            with torch.no_grad():
                loss = loss_of(model, buffer, held_out, landmarks, config, run)
            stall.add(mean(loss, run.world).item())
            rest = max(1, round(config.cool_down * step))
            if stall.over and rest < steps - step:
                log.info(
                    "step %d of %d: the loss on held-out cells stalls at %.3f; %d more steps",
                    step,
                    steps,
                    stall.best,
                    rest,
                )
                steps = step + rest
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest)
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
    run: Run,
) -> torch.Tensor:
    """The loss of these cells. Each rank computes that of its share, weighted so that the mean over
    ranks is the loss of all."""
    mine = shard(len(cell_B), run.world)
    cell_B = cell_B.to(buffer.landmark_N.device)
    share = cell_B[mine.start : mine.stop]
    feature = buffer.feature_NC[share].to(run.device)
    landmark = buffer.landmark_N[share].to(run.device)
    offset = buffer.offset_N2[share].to(run.device)
    with autocast(run.device):
        logits, located = model(feature.to(conv_dtype(feature.device.type)))
    positive = landmark < landmarks
    located_share = positive.sum() / (buffer.landmark_N[cell_B] < landmarks).sum().clamp_min(1)
    classification = F.cross_entropy(
        logits.float(), landmark, label_smoothing=config.label_smoothing
    ) * (len(share) / len(cell_B))
    location = laplace_nll(located.float()[positive], offset[positive]) * located_share
    return (classification + config.offset_weight * location) * run.world.size


def split_cells(count: int, config: HeadConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells to learn from, and cells held out to detect a stall: none without patience.

    Cells are in order of frames, so short runs of them spread over the buffer are frames, or parts
    of frames, with all their augmented copies."""
    held_out = torch.zeros(count, dtype=torch.bool)
    if config.patience:
        fraction = min(config.held_out_cells / count, 0.1)
        held_out[hold_out(count, fraction, chunk=HELD_OUT_CHUNK)] = True
    return torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]


class Stall:
    """Detects that a loss has not fallen by `min_gain` below its best for `patience` checks."""

    def __init__(self, patience: int, min_gain: float):
        self.patience, self.min_gain = patience, min_gain
        self.best, self.checks_since_best = math.inf, 0

    @property
    def over(self) -> bool:
        return self.checks_since_best >= self.patience

    def add(self, loss: float) -> None:
        """The loss of one more check."""
        if loss < self.best - self.min_gain:
            self.best, self.checks_since_best = loss, 0
        else:
            self.checks_since_best += 1


def laplace_nll(located_N3: torch.Tensor, offset_N2: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of offsets under Laplace distributions centred at located (x, y)
    with scale b."""
    if len(located_N3) == 0:
        return located_N3.sum()
    log_b = limited(located_N3[:, 2], MIN_LOG_B, MAX_LOG_B)
    distance = (located_N3[:, :2] - offset_N2).abs().sum(1)
    return (distance * (-log_b).exp() + 2 * log_b).mean()
