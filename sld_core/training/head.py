"""The recipe: a buffer of cells -> a head. One page, top to bottom."""
from __future__ import annotations

import math
import time
from typing import Callable

import torch
import torch.nn.functional as F

from sld_core.config import HeadConfig
from sld_core.models.heads import MAX_LOG_B, MIN_LOG_B, CellHead, PrototypeHead
from sld_core.training.buffer import FeatureBuffer
from sld_core.types import Progress


def prototypes(buffer: FeatureBuffer, landmarks: int, config: HeadConfig) -> PrototypeHead:
    """The first state of a scene: each landmark is the mean of its unit features; usable without any training."""
    head = PrototypeHead(buffer.feature_NC.shape[1], landmarks, config.prototype_temperature)
    near = (buffer.landmark_N < landmarks) & (buffer.offset_N2.abs().amax(1) <= 0.75)
    unit = F.normalize(buffer.feature_NC[near].float(), dim=1)
    head.prototype.index_add_(0, buffer.landmark_N[near], unit)
    head.prototype.copy_(F.normalize(head.prototype, dim=1))
    return head


def train(buffer: FeatureBuffer, landmarks: int, config: HeadConfig, seed: int, device: str,
          progress: Callable[[Progress], None]) -> tuple[CellHead, list[tuple[int, float]]]:
    """Cross-entropy with label smoothing over L landmarks + background, and the Laplace likelihood of the offset where
    there is a landmark. AdamW on a one-cycle schedule. Returns the head and the loss curve as (step, mean loss)."""
    torch.manual_seed(seed)
    head = CellHead(buffer.feature_NC.shape[1], config.hidden, landmarks).to(device)
    steps = max(1, config.samples // config.batch)
    optimizer = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=config.warm_up)
    generator = torch.Generator().manual_seed(seed)
    curve, running, start = [], 0.0, time.monotonic()
    order = torch.randperm(len(buffer), generator=generator)
    for step in range(steps):
        at = step * config.batch % max(1, len(buffer) - config.batch + 1)
        if step and at < config.batch:  # a new round over the buffer
            order = torch.randperm(len(buffer), generator=generator)
        pick = order[at : at + config.batch]
        feature, landmark, offset = (t[pick].to(device) for t in (buffer.feature_NC, buffer.landmark_N, buffer.offset_N2))
        with torch.autocast(device, torch.bfloat16):
            logits, located = head(feature.to(torch.bfloat16))
        loss = F.cross_entropy(logits.float(), landmark, label_smoothing=config.label_smoothing)
        positive = landmark < landmarks
        loss = loss + config.offset_weight * laplace_nll(located.float()[positive], offset[positive])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            curve.append((step, running))
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            progress(Progress("training the head", (step + 1) / steps, running, left))
    if not math.isfinite(running):
        raise ValueError(f"the training diverged (loss {running}); lower head.learning_rate from {config.learning_rate}")
    return head.cpu().eval(), curve


def laplace_nll(located_N3: torch.Tensor, offset_N2: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of offsets under Laplace distributions centred at located (x, y) with scale b."""
    if len(located_N3) == 0:
        return located_N3.sum()
    log_b = located_N3[:, 2].clamp(MIN_LOG_B, MAX_LOG_B)
    distance = (located_N3[:, :2] - offset_N2).abs().sum(1)
    return (distance * (-log_b).exp() + 2 * log_b).mean()
