"""The recipe: many scenes -> one backbone. Each scene has a head of its own; all share the
backbone, which learns with them. One page, top to bottom: `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sld_core.config.settings import to_dict
from sld_core.config.training import BackboneTrainingConfig
from sld_core.models.heatmap_head import TrainingHead
from sld_core.training import checkpoint, distributed, targets
from sld_core.training.channel_normalization import NormalizedBackbone
from sld_core.training.distributed import ALONE, World
from sld_core.training.logbook import ALL, Logbook
from sld_core.training.scene_batches import SceneBatches, Step
from sld_core.training.scene_images import Patches, SceneImages, ahead
from sld_core.training.training_set import TrainingSet
from sld_core.training.validate_backbone import ValidationResult, check
from sld_core.types import Progress, SldError

LAST, BEST = "last.pt", "best.pt"  # checkpoints in the work folder
STANDARD_IMAGES = 100  # of all scenes together, that tell the scale of the backbone's channels


@dataclass(frozen=True)
class Trained:
    """The best backbone of a run by validation, the head of each scene (its features_BChw ->
    logits_BLhw, decoded as backbone_check does), and what the run was: `record` is plain JSON."""

    network: nn.Module
    heads: dict[str, nn.Module]
    record: dict[str, Any]


def train(
    training_sets: Mapping[str, TrainingSet],
    network: nn.Module,
    config: BackboneTrainingConfig,
    work: Path,
    device: str = "cpu",
    world: World = ALONE,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Train `network` (image_B3HW in 0..1 -> features_BChw at stride 8, `.channels`) with a head
    per scene (paper, backbone training): every batch is of one scene; a step updates the backbone
    and the heads of the scenes it saw.

    `work` keeps log.csv and checkpoints; with `resume` a run that was killed there goes on as if it
    had not been. Under torchrun every rank calls this with its `world` and takes its share of each
    batch."""
    plan = _plan(training_sets, config, work, resume)
    torch.manual_seed(config.scene.seed)
    scenes = [
        SceneImages(training_set, i, config)
        for i, training_set in enumerate(training_sets.values())
    ]
    backbone = NormalizedBackbone(_learning(network)).to(device)
    heads = nn.ModuleList(
        TrainingHead(network.channels, len(s.training_set.landmarks), config.width, config.dilated)
        for s in scenes
    ).to(device)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(backbone.parameters()), "lr": config.backbone_learning_rate},
            {"params": list(heads.parameters()), "lr": config.learning_rate},
        ],
        weight_decay=config.weight_decay,
    )
    batches = SceneBatches(
        [len(s.training_set.frames) for s in scenes], config.batch, config.scene.seed, config.order
    )
    steps = config.epochs * batches.steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        [lambda step: backbone_rate(step / steps, config), lambda step: rate(step / steps, config)],
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
        state = _resumed(work / LAST, plan)
        for name, part in learned.items():
            part.load_state_dict(state[name])
        batches.restore(state["batches"])
        checkpoint.restore_random(state["random"])
        step, seconds_before, best = state["step"], state["seconds"], state["best"]
    if len(set(found := distributed.all_of(step, world))) > 1:
        raise SldError(
            f"{work / LAST}: processes find other steps in it ({found}); --work must be one "
            "folder that all machines see"
        )
    if not step:
        backbone.fit(_samples(scenes, config, device))
    book = Logbook(work, step) if world.is_main else None
    shared, own = (
        distributed.parallel(backbone, world),
        [distributed.parallel(head, world) for head in heads],
    )
    start = time.monotonic()

    for job, drawn in ahead(
        _jobs(batches, config.epochs), lambda job: _draw(job, scenes, world), config.loaders
    ):
        optimizer.zero_grad(
            set_to_none=True
        )  # None: the heads of other scenes then stay as they are
        losses = []
        for batch, patches, share in zip(job.step, *drawn):
            with _quiet(
                shared, batch is not job.step[-1]
            ):  # the backbone's gradients are exchanged once a step
                loss = (
                    share
                    / len(job.step)
                    * patch_loss(shared, own[batch.scene], patches, config, device)
                )
                scaler.scale(loss).backward()
            losses.append(loss.detach() * len(job.step))
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        step, epoch, seconds = step + 1, job.epoch + 1, seconds_before + time.monotonic() - start

        if step % config.log_every == 0 or job.ends_epoch:
            values = distributed.mean(torch.stack(losses), world).tolist()
            _stop_if_diverged(values, step, config, scaler)
            for batch, value in zip(job.step, values if book else ()):
                book.write(
                    step,
                    step / batches.steps_per_epoch,
                    seconds,
                    plan["scenes"][batch.scene]["name"],
                    loss=value,
                    learning_rate=schedule.get_last_lr()[1],
                )
            progress(
                Progress(
                    "training the backbone",
                    step / steps,
                    sum(values) / len(values),
                    (steps - step) * seconds / step,
                )
            )
        if job.ends_epoch and (epoch % config.check_every == 0 or epoch == config.epochs):
            found = _validate(backbone, heads, scenes, config, device, world)
            for name, row in _rows(found, plan) if book else ():
                book.write(step, epoch, seconds, name, **asdict(row))
            if best is None or _score(found) >= best["score"]:
                best = {
                    "score": _score(found),
                    "epoch": epoch,
                    "scenes": {name: asdict(row) for name, row in _rows(found, plan)},
                }
                if book:
                    checkpoint.save(
                        work / BEST,
                        {
                            "backbone": backbone.state_dict(),
                            "heads": heads.state_dict(),
                            "best": best,
                        },
                    )
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
    distributed.barrier(world)  # the main rank has written the best one
    state = checkpoint.load(work / BEST)
    backbone.load_state_dict(state["backbone"])
    heads.load_state_dict(state["heads"])
    record = plan | {
        "best": state["best"],
        "steps": step,
        "seconds": seconds_before + time.monotonic() - start,
        "processes": world.size,
    }
    return Trained(
        network.eval(),
        {
            name: nn.Sequential(backbone.standard, head).eval()
            for name, head in zip(training_sets, heads)
        },
        record,
    )


def patch_loss(
    backbone: nn.Module,
    head: nn.Module,
    patches: Patches,
    config: BackboneTrainingConfig,
    device: str,
) -> torch.Tensor:
    """The loss of one scene's patches: a sum per patch, mean over them."""
    image_N3PP = torch.from_numpy(patches.image_NPP3).to(device).permute(0, 3, 1, 2).float() / 255
    with torch.autocast(
        torch.device(device).type,
        getattr(torch, config.precision),
        enabled=config.precision != "float32",
    ):
        logits_NLhw = head(backbone(image_N3PP))
    xy_NL2, visibility_NL = (
        torch.from_numpy(array).to(device) for array in (patches.xy_NL2, patches.visibility_NL)
    )
    target, weight = targets.render(
        xy_NL2, visibility_NL, logits_NLhw.shape[2:], config.sigma_px, config.floor
    )
    return targets.loss(logits_NLhw.float(), target, weight, config.loss, config.positive_weight)


def rate(done: float, config: BackboneTrainingConfig) -> float:
    """The learning rate when `done` (0..1) of a run is behind, as part of the highest: a linear
    rise, then a cosine or steps."""
    if done < config.warm_up:
        return (done + 0.01 * config.warm_up) / (1.01 * config.warm_up)
    if config.schedule == "step":
        return 0.5 ** min(int(done * (config.halvings + 1)), config.halvings)
    return 0.5 * (1 + math.cos(math.pi * (done - config.warm_up) / (1 - config.warm_up)))


def backbone_rate(done: float, config: BackboneTrainingConfig) -> float:
    """The same of the backbone: it waits for the heads, then goes through the whole schedule in
    what is left of the run."""
    return (
        0.0
        if done < config.heads_first
        else rate((done - config.heads_first) / (1 - config.heads_first), config)
    )


# what a step is made of ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A step of an epoch, and the position in the run once it is done."""

    epoch: int
    step: Step
    after: dict[str, int]

    @property
    def ends_epoch(self) -> bool:
        return self.after["position"] == 0


def _jobs(batches: SceneBatches, epochs: int) -> Iterator[Job]:
    """What is left of the run. Jobs are taken ahead of their time, so that each knows the position
    itself."""
    while batches.epoch < epochs:
        yield Job(batches.epoch, batches.next(), batches.state())


def _draw(job: Job, scenes: list[SceneImages], world: World) -> tuple[list[Patches], list[float]]:
    """This rank's patches of each batch, and by how much their mean loss counts so that the mean
    over ranks is that of all."""
    drawn, shares = [], []
    for batch in job.step:
        mine = [batch.items[i] for i in distributed.shard(len(batch.items), world)]
        drawn.append(
            scenes[batch.scene].draw(mine or batch.items[:1], job.epoch)
        )  # with nothing to do it still takes part
        shares.append(world.size * len(mine) / len(batch.items))
    return drawn, shares


def _samples(
    scenes: list[SceneImages], config: BackboneTrainingConfig, device: str
) -> Iterator[torch.Tensor]:
    """Patches of images spread over all scenes, drawn as in no epoch of the run."""
    each = max(1, STANDARD_IMAGES // len(scenes))
    for scene in scenes:
        for item in range(
            0, len(scene.training_set.frames), -(-len(scene.training_set.frames) // each)
        ):
            yield (
                torch.from_numpy(scene.draw([item], config.epochs).image_NPP3)
                .to(device)
                .permute(0, 3, 1, 2)
                .float()
                / 255
            )


def _learning(network: nn.Module) -> nn.Module:
    """In training mode; batch normalisation keeps its statistics, for those of a batch would be of
    one scene, and of one rank; and no block is left out at random, which ranks would have to agree
    on."""
    network.train()
    for module in network.modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            or type(module).__name__ == "StochasticDepth"
        ):  # torchvision's
            module.eval()
    return network


def _quiet(module: nn.Module, quiet: bool):
    return module.no_sync() if quiet and hasattr(module, "no_sync") else nullcontext()


# validation ---------------------------------------------------------------------------------------


def _validate(
    backbone: nn.Module,
    heads: nn.ModuleList,
    scenes: list[SceneImages],
    config: BackboneTrainingConfig,
    device: str,
    world: World,
) -> dict[int, ValidationResult]:
    """What each scene that has a validation says; each rank asks every so-manieth of them."""
    backbone.eval(), heads.eval()
    judged = [(scene, head) for scene, head in zip(scenes, heads) if scene.training_set.validation][
        world.rank :: world.size
    ]
    mine = {
        scene.number: check(backbone, head, scene.training_set, config, device)
        for scene, head in judged
    }
    _learning(backbone), heads.train()
    return dict(sorted(item for part in distributed.all_of(mine, world) for item in part.items()))


def _rows(
    found: dict[int, ValidationResult], plan: dict[str, Any]
) -> list[tuple[str, ValidationResult]]:
    """Every scene by name, and their mean."""
    rows = [(plan["scenes"][number]["name"], one) for number, one in found.items()]
    if len(rows) > 1:
        rows.append(
            (
                ALL,
                ValidationResult(
                    *(
                        float(np.nanmean([getattr(one, f.name) for one in found.values()]))
                        for f in fields(ValidationResult)
                    )
                ),
            )
        )
    return rows


def _score(found: dict[int, ValidationResult]) -> list[float]:
    """The higher the better: mean recall, then the share of landmarks found; without a validation
    the latest is taken."""
    recalls = [one.recall for one in found.values() if not math.isnan(one.recall)]
    return [
        sum(recalls) / max(1, len(recalls)),
        sum(one.found for one in found.values()) / max(1, len(found)),
    ]


# what a run is ------------------------------------------------------------------------------------


def _plan(
    training_sets: Mapping[str, TrainingSet],
    config: BackboneTrainingConfig,
    work: Path,
    resume: bool,
) -> dict[str, Any]:
    """What a run depends on, as plain JSON; raises where it cannot be."""
    check_work(work, resume)
    scenes = [
        {"name": name, "frames": len(one.frames), "landmarks": len(one.landmarks)}
        for name, one in training_sets.items()
    ]
    return {"scenes": scenes, "config": to_dict(config)}


def check_work(work: Path, resume: bool) -> None:
    """SldError where a run would be written over."""
    if (work / LAST).exists() and not resume:
        raise SldError(
            f"{work} holds a training run already; resume it, or name another work folder"
        )


def _resumed(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint, if it is one of this very run."""
    state = checkpoint.load(path)
    before = state.get("plan", {})
    if before != plan:
        what = "settings" if before.get("scenes") == plan["scenes"] else "scenes"
        raise SldError(
            f"{path} is of a run with other {what}; give the same ones to resume it, or name "
            "another work folder"
        )
    return state


def _stop_if_diverged(
    losses: list[float], step: int, config: BackboneTrainingConfig, scaler: torch.amp.GradScaler
) -> None:
    # with float16 such a step is left out and the scale of losses halved, which once in a while is
    # no harm
    if not all(map(math.isfinite, losses)) and not (scaler.is_enabled() and scaler.get_scale() > 1):
        raise SldError(
            f"the training diverged at step {step}; lower learning_rate from "
            f"{config.learning_rate} or "
            f"backbone_learning_rate from {config.backbone_learning_rate}"
        )
