"""The recipe of the backbone: many scenes -> one backbone. Each scene has its own training head;
all share the backbone, which learns with them. One page, top to bottom: `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sld_core.config.settings import to_dict
from sld_core.config.training import BackboneTrainingConfig
from sld_core.models.heatmap_head import TrainingHead
from sld_core.models.precision import conv_dtype
from sld_core.training import checkpoint, distributed, targets
from sld_core.training.channel_normalization import NormalizedBackbone
from sld_core.training.distributed import World
from sld_core.training.logbook import ALL, Logbook
from sld_core.training.run import Run
from sld_core.training.scene_batches import SceneBatches, Step
from sld_core.training.scene_images import Patches, SceneImages, ahead
from sld_core.training.schedule import rate
from sld_core.training.training_set import TrainingSet
from sld_core.training.validate_backbone import validate
from sld_core.training.validation import ValidationResult
from sld_core.types import Progress, SldError

LAST, BEST = "last.pt", "best.pt"  # checkpoints in the work folder
NORMALIZATION_IMAGES = 100  # of all scenes together, that measure the backbone's channels


@dataclass(frozen=True)
class TrainedBackbone:
    """The best backbone of a run by validation, the head of each scene (from its features_BChw to
    logits_BLhw, see validate_backbone.score_maps), and a `record` of the run as plain JSON."""

    network: nn.Module
    heads: dict[str, nn.Module]
    record: dict[str, Any]


def train(
    training_sets: Mapping[str, TrainingSet],
    network: nn.Module,
    config: BackboneTrainingConfig,
    work: Path,
    run: Run,
    resume: bool = False,
) -> TrainedBackbone:
    """Train `network` (image_B3HW in 0..1 -> features_BChw at stride 8, `.channels`) with a head
    per scene (the paper's backbone training): every batch is of one scene; a step updates the
    backbone and the heads of its scenes. The seed is config.scene.seed.

    `work` keeps log.csv and checkpoints; with `resume` a killed run continues exactly. Under
    torchrun every rank calls this and takes its share of each batch."""
    device, world = run.device, run.world
    plan = _plan(training_sets, config, work, resume)
    names = list(training_sets)
    torch.manual_seed(config.scene.seed)
    scenes = [
        SceneImages(training_set, i, config)
        for i, training_set in enumerate(training_sets.values())
    ]
    backbone = NormalizedBackbone(_set_training(network)).to(device)
    heads = nn.ModuleList(
        TrainingHead(network.channels, len(s.training_set.landmarks), config.width, config.dilated)
        for s in scenes
    ).to(device)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(backbone.parameters()), "lr": config.backbone_learning_rate},
            {"params": list(heads.parameters()), "lr": config.schedule.learning_rate},
        ],
        weight_decay=config.schedule.weight_decay,
    )
    sizes = [len(s.training_set.frames) for s in scenes]
    batches = SceneBatches(sizes, config.batch, config.scene.seed, config.order)
    steps = config.epochs * batches.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        [
            lambda step: backbone_rate(step / steps, config),
            lambda step: rate(step / steps, config.schedule),
        ],
    )
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=config.precision == "float16")
    learned = {
        "backbone": backbone,
        "heads": heads,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
    }

    step, seconds_before, best = 0, 0.0, None
    if resume and (work / LAST).exists():
        state = _checkpoint_of(work / LAST, plan)
        for name, part in learned.items():
            part.load_state_dict(state[name])
        batches.restore(state["batches"])
        checkpoint.restore_random(state["random"])
        step, seconds_before, best = state["step"], state["seconds"], state["best"]
    steps_of_ranks = distributed.all_of(step, world)
    if len(set(steps_of_ranks)) > 1:
        raise SldError(
            f"{work / LAST}: processes find different steps in it ({steps_of_ranks}); --work must "
            "be one folder that all machines see"
        )
    if step == 0:
        backbone.fit(_samples(scenes, config, device))
    book = Logbook(work, step) if world.is_main else None
    shared = distributed.parallel(backbone, world)
    own = [distributed.parallel(head, world) for head in heads]
    start = time.monotonic()

    jobs = _jobs(batches, config.epochs)
    for job, (patches, shares) in ahead(
        jobs, lambda job: _draw(job, scenes, world), config.loaders
    ):
        optimizer.zero_grad(set_to_none=True)  # None leaves the heads of other scenes as they are
        losses = []
        for batch, drawn, share in zip(job.step, patches, shares):
            # the backbone's gradients are exchanged once a step, with those of the last batch
            with _without_exchange(shared, batch is not job.step[-1]):
                loss = patch_loss(shared, own[batch.scene], drawn, config, device)
                loss = share / len(job.step) * loss
                scaler.scale(loss).backward()
            losses.append(loss.detach() * len(job.step))
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        step, epoch = step + 1, job.epoch + 1
        seconds = seconds_before + time.monotonic() - start

        if step % config.log_every == 0 or job.ends_epoch:
            values = distributed.mean(torch.stack(losses), world).tolist()
            _stop_if_diverged(values, step, config, scaler)
            if book:
                learning_rate = schedule.get_last_lr()[1]
                for batch, loss in zip(job.step, values):
                    book.write(
                        step,
                        step / batches.steps_per_epoch,
                        seconds,
                        names[batch.scene],
                        loss=loss,
                        learning_rate=learning_rate,
                    )
            seconds_left = (steps - step) * seconds / step
            mean_loss = sum(values) / len(values)
            run.progress(Progress("training the backbone", step / steps, mean_loss, seconds_left))
        if job.ends_epoch and (epoch % config.check_every == 0 or epoch == config.epochs):
            results = _validate(backbone, heads, scenes, config, run)
            rows = {name: asdict(result) for name, result in _by_name(results, names)}
            if book:
                for name, row in rows.items():
                    book.write(step, epoch, seconds, name, **row)
            if best is None or _score(results) >= best["score"]:
                best = {"score": _score(results), "epoch": epoch, "scenes": rows}
                if book:
                    state = {"backbone": backbone.state_dict(), "heads": heads.state_dict()}
                    checkpoint.save(work / BEST, state | {"best": best})
        if book and (job.ends_epoch or step % config.save_every == 0):
            checkpoint.save(
                work / LAST,
                {name: part.state_dict() for name, part in learned.items()}
                | {
                    "plan": plan,
                    "batches": job.after,
                    "random": checkpoint.random_state(),
                    "step": step,
                    "best": best,
                    "seconds": seconds_before + time.monotonic() - start,
                },
            )

    if book:
        book.close()
    distributed.barrier(world)  # until rank 0 has written the best one
    state = checkpoint.load(work / BEST)
    backbone.load_state_dict(state["backbone"])
    heads.load_state_dict(state["heads"])
    record = plan | {
        "best": state["best"],
        "steps": step,
        "seconds": seconds_before + time.monotonic() - start,
        "processes": world.size,
    }
    trained_heads = {
        name: nn.Sequential(backbone.normalization, head).eval() for name, head in zip(names, heads)
    }
    return TrainedBackbone(network.eval(), trained_heads, record)


def patch_loss(
    backbone: nn.Module,
    head: nn.Module,
    patches: Patches,
    config: BackboneTrainingConfig,
    device: str,
) -> torch.Tensor:
    """The loss of one scene's patches: summed over each, averaged over all."""
    kind = torch.device(device).type
    automatic = config.precision == "auto"
    precision = conv_dtype(kind) if automatic else getattr(torch, config.precision)
    with torch.autocast(kind, precision, enabled=precision is not torch.float32):
        logits_NLhw = head(backbone(_to_image(patches, device)))
    xy_NL2 = torch.from_numpy(patches.xy_NL2).to(device)
    visibility_NL = torch.from_numpy(patches.visibility_NL).to(device)
    return targets.heatmap_loss(logits_NLhw, xy_NL2, visibility_NL, config.target)


def _to_image(patches: Patches, device: str) -> torch.Tensor:
    """image_N3PP in 0..1."""
    return torch.from_numpy(patches.image_NPP3).to(device).permute(0, 3, 1, 2).float() / 255


def backbone_rate(done: float, config: BackboneTrainingConfig) -> float:
    """The relative learning rate of the backbone: zero while only the heads learn, then the whole
    schedule in the rest of the run."""
    if done < config.heads_first:
        return 0.0
    return rate((done - config.heads_first) / (1 - config.heads_first), config.schedule)


# the steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A step of an epoch, and the position in the run after it."""

    epoch: int
    step: Step
    after: dict[str, int]

    @property
    def ends_epoch(self) -> bool:
        return self.after["position"] == 0


def _jobs(batches: SceneBatches, epochs: int) -> Iterator[Job]:
    """The rest of the run. Jobs are loaded ahead of the training, so each carries its position."""
    while batches.epoch < epochs:
        yield Job(batches.epoch, batches.next(), batches.state())


def _draw(job: Job, scenes: list[SceneImages], world: World) -> tuple[list[Patches], list[float]]:
    """This rank's patches of each batch, and the weights of their mean losses with which the mean
    over ranks is the mean over all patches."""
    drawn, shares = [], []
    for batch in job.step:
        mine = [batch.items[i] for i in distributed.shard(len(batch.items), world)]
        # a rank without images computes one with weight 0, because every rank must take part
        drawn.append(scenes[batch.scene].draw(mine or batch.items[:1], job.epoch))
        shares.append(world.size * len(mine) / len(batch.items))
    return drawn, shares


def _samples(
    scenes: list[SceneImages], config: BackboneTrainingConfig, device: str
) -> Iterator[torch.Tensor]:
    """Patches of images spread over all scenes, drawn for an epoch that the run does not have."""
    each = max(1, NORMALIZATION_IMAGES // len(scenes))
    for scene in scenes:
        frames = len(scene.training_set.frames)
        for item in range(0, frames, math.ceil(frames / each)):
            yield _to_image(scene.draw([item], config.epochs), device)


def _set_training(network: nn.Module) -> nn.Module:
    """Put the network in training mode, except for two kinds of layers. Batch normalization keeps
    its statistics: those of a batch would be of one scene and one rank. Stochastic depth stays
    off: ranks would have to agree on the blocks to leave out."""
    network.train()
    for module in network.modules():
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_batch_norm or type(module).__name__ == "StochasticDepth":  # torchvision's
            module.eval()
    return network


def _without_exchange(module: nn.Module, quiet: bool) -> AbstractContextManager:
    """A backward pass that keeps gradients on this rank, where `quiet` and there are others."""
    return module.no_sync() if quiet and hasattr(module, "no_sync") else nullcontext()


# validation ---------------------------------------------------------------------------------------


def _validate(
    backbone: nn.Module,
    heads: nn.ModuleList,
    scenes: list[SceneImages],
    config: BackboneTrainingConfig,
    run: Run,
) -> dict[int, ValidationResult]:
    """The results of all scenes with validation frames, by number. The scenes are divided among the
    ranks."""
    backbone.eval()
    heads.eval()
    validated = [scene for scene in scenes if scene.training_set.validation]
    mine = {
        scene.number: validate(
            backbone, heads[scene.number], scene.training_set, config, run.device
        )
        for scene in validated[run.world.rank :: run.world.size]
    }
    _set_training(backbone)
    heads.train()
    parts = distributed.all_of(mine, run.world)
    return dict(sorted(item for part in parts for item in part.items()))


def _by_name(
    results: dict[int, ValidationResult], names: list[str]
) -> Iterable[tuple[str, ValidationResult]]:
    """The result of every scene, and the mean of several."""
    for number, result in results.items():
        yield names[number], result
    if len(results) > 1:
        means = {
            f.name: float(np.nanmean([getattr(result, f.name) for result in results.values()]))
            for f in fields(ValidationResult)
        }
        yield ALL, ValidationResult(**means)


def _score(results: dict[int, ValidationResult]) -> list[float]:
    """Higher is better: mean recall, then the mean fraction of landmarks found. All runs without
    validation score the same, so that the latest is taken."""
    recalls = [result.recall for result in results.values() if not math.isnan(result.recall)]
    found = [result.found for result in results.values()]
    return [sum(recalls) / max(1, len(recalls)), sum(found) / max(1, len(found))]


# the run ------------------------------------------------------------------------------------------


def _plan(
    training_sets: Mapping[str, TrainingSet],
    config: BackboneTrainingConfig,
    work: Path,
    resume: bool,
) -> dict[str, Any]:
    """Everything that a run depends on, as plain JSON."""
    check_work(work, resume)
    scenes = [
        {"name": name, "frames": len(one.frames), "landmarks": len(one.landmarks)}
        for name, one in training_sets.items()
    ]
    return {"scenes": scenes, "config": to_dict(config)}


def check_work(work: Path, resume: bool) -> None:
    """Raise SldError where a run would be overwritten."""
    if (work / LAST).exists() and not resume:
        raise SldError(
            f"{work} already holds a training run; resume it, or name another work folder"
        )


def _checkpoint_of(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint, if it is one of this run."""
    state = checkpoint.load(path)
    before = state.get("plan", {})
    if before != plan:
        what = "settings" if before.get("scenes") == plan["scenes"] else "scenes"
        raise SldError(
            f"{path} is of a run with other {what}, or of another version of sld; give the same "
            "ones to resume it, or name another work folder"
        )
    return state


def _stop_if_diverged(
    losses: list[float], step: int, config: BackboneTrainingConfig, scaler: torch.amp.GradScaler
) -> None:
    """With float16, a step that is not finite is skipped and the scale of losses halved, which is
    harmless as long as the scale can fall."""
    can_recover = scaler.is_enabled() and scaler.get_scale() > 1
    if not all(math.isfinite(loss) for loss in losses) and not can_recover:
        raise SldError(
            f"the training diverged at step {step}; lower schedule.learning_rate from "
            f"{config.schedule.learning_rate} or backbone_learning_rate from "
            f"{config.backbone_learning_rate}"
        )
