"""How long a training of many scenes takes and what memory it needs, before it is started: nothing
is trained here.

Multiplications, weights and activations are counted on the networks themselves; what no count tells
is measured, or guessed and then said to be. docs/training.md derives the formulae."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sld_core.config.scene import BACKBONES
from sld_core.config.settings import chosen, ranged
from sld_core.types import SldError

IMAGE_PX = 640 * 480  # size of image that the milliseconds below are of

# milliseconds of one image through a network, bfloat16, 2 cores (FACTS of this project; `sld bench
# backbones`)
CPU_FORWARD_MS = {
    "lite0+xfeat": 46.0,
    "efficientnet-b0": 42.0,
    "efficientnet-b4": 124.0,
    "swin-t": 65.0,
    "resnext101-layer2": 84.0,
    "resnext101-layer3": 795.0,
    "resnext101": 1193.0,
}
GPU_MACS_PER_S = (
    5e12  # a guess, in bfloat16: a hundredth to a tenth of what data sheets of GPUs promise
)
# one training step in forward passes: lite0+xfeat, patches of 96 px, CPU (34 ms forward, 121 with
# backward)
TRAINING_FORWARDS = 3.6
FLOAT32_FORWARDS = 2.0  # a forward pass in float32, in ones in bfloat16
READ_MS = 2.0  # decode one JPEG of 640x480, one core
AUGMENT_MS = 17.0  # warp, recolour and blur it, one core
MAP_S = (
    0.35 * 2
)  # core-seconds per image with known poses: tracks, landmarks, labels (300 images, 2 cores)
HEAD_S = 40.0  # a scene's default head: 4 million samples, 2 cores; a GPU is not slower
ALLREDUCE_LATENCY_MS = 0.5  # of one exchange of gradients, beside their volume
CHECK_IMAGES, CHECK_MS = (
    20,
    15.0,
)  # held-out images of each scene that are looked at after an epoch; decoding and pose of one
# of a landmark in an image: its place (two of 8 bytes) and visibility, which every process holds of
# all scenes
LABEL_BYTES = 17
ADAM_BYTES = 16  # per weight: itself, its gradient and two moments, in float32
IMAGE_BYTES = 120e3  # of a JPEG of 640x480 on disk


@dataclass(frozen=True)
class PlanConfig:
    """The training to plan, and what is known of the machines."""

    scenes: int = ranged(100, 1, 10**6)
    images: int = ranged(1000, 1, 10**7)  # of each scene
    landmarks: int = ranged(1000, 1, 20_000)  # of each scene
    gpus: int = ranged(8, 0, 10**5)  # in all; 0: one machine without
    gpus_per_machine: int = ranged(8, 1, 64)
    cores: int = ranged(8, 1, 1024)  # beside each GPU, or of the one machine without
    backbone: str = chosen("resnext101-layer2", *BACKBONES)
    epochs: int = ranged(20, 1, 10**6)
    batch: int = ranged(4, 1, 10**5)  # images of one step on one GPU
    patches: int = ranged(8, 1, 1000)  # per image
    patch_px: int = ranged(96, 32, 4096, multiple=32)
    width: int = ranged(128, 4, 4096, multiple=4)  # of the heads
    dilated: bool = True  # heads of the paper's final variant
    passes: int = ranged(3, 1, 100)  # of the feature buffer of a new scene, the plain one included
    buffer_channels: int = ranged(128, 1, 4096)
    buffer_cells: int = ranged(
        1460, 1, 100_000
    )  # of an image (kitchen, 1000 landmarks: 500 background, the rest near landmarks)
    order: str = chosen("shuffled", "rounds")  # a step is one batch, or one batch of every scene
    forward_ms: float = ranged(
        0.0, 0.0, 1e6
    )  # of an image of 640x480 through the backbone; 0: as measured or guessed here
    network_gb_s: float = ranged(
        10.0, 1e-3, 1e4
    )  # at which gradients travel: 1.2 for 10 Gb Ethernet, 100 and more for NVLink


@dataclass(frozen=True)
class Phase:
    """One stretch of work: `hours` by the clock, on `workers`, and why."""

    name: str
    workers: str
    hours: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a training takes: phases in order, `memory_gb` by place, the numbers behind them, and
    what is not measured."""

    phases: tuple[Phase, ...]
    memory_gb: dict[str, float]
    numbers: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def hours(self) -> float:
        return sum(phase.hours for phase in self.phases)


@dataclass(frozen=True)
class Counts:
    """What the networks themselves tell: multiplications of one patch, of one image of 640x480,
    weights, and bytes kept of one patch for the backward pass."""

    patch_macs: float
    image_macs: float
    weights: float
    head_macs: float  # of one patch
    head_weights: float  # of one scene's head
    patch_bytes: float  # in half precision, of backbone and head


def plan(config: PlanConfig, counts: Counts | None = None) -> Plan:
    """Hours and memory of the whole: map the scenes, train the backbone on them, then teach each
    scene a head of its own."""
    counts = counts or count(config)
    workers, cores = max(config.gpus, 1), config.cores * max(config.gpus, 1)
    forward_ms, notes = forward(config, counts)
    per_mac_ms = forward_ms / counts.image_macs

    # one step: every worker takes `batch` images of one scene ("rounds": of each scene), then
    # gradients are averaged
    per_step = 1 if config.order == "shuffled" else config.scenes
    patches = config.batch * config.patches * per_step
    compute_ms = TRAINING_FORWARDS * patches * (counts.patch_macs + counts.head_macs) * per_mac_ms
    load_ms = config.batch * per_step * (READ_MS + AUGMENT_MS) / config.cores
    exchanged = 4 * (counts.weights + per_step * counts.head_weights)
    exchange_ms = (workers > 1) * (
        ALLREDUCE_LATENCY_MS + 1e3 * ring_bytes(exchanged, workers) / (config.network_gb_s * 1e9)
    )
    step_ms = max(compute_ms, load_ms) + exchange_ms
    batches = math.ceil(config.images / (config.batch * workers))
    steps = config.epochs * batches * (config.scenes if config.order == "shuffled" else 1)

    buffer_ms = (
        READ_MS + (config.passes - 1) * AUGMENT_MS
    ) / config.cores + config.passes * forward_ms
    buffer_s = config.images * buffer_ms / 1e3  # of one scene on one worker
    check_s = CHECK_IMAGES * (READ_MS + CHECK_MS + FLOAT32_FORWARDS * forward_ms) / 1e3
    images = config.scenes * config.images
    whom = f"{config.gpus} GPUs" if config.gpus else f"{config.cores} cores"
    phases = (
        Phase(
            "map the scenes",
            f"{cores} cores",
            images * MAP_S / cores / 3600,
            f"{images} images with poses, {MAP_S:.2f} core-s each",
        ),
        Phase(
            "train the backbone",
            whom,
            steps * step_ms / 3.6e6,
            f"{steps} steps of {step_ms:.0f} ms: {compute_ms:.0f} compute, {load_ms:.0f} read "
            f"(meanwhile), {exchange_ms:.1f} exchange",
        ),
        Phase(
            "validate it",
            whom,
            config.epochs * math.ceil(config.scenes / workers) * check_s / 3600,
            f"after every epoch, {CHECK_IMAGES} images of each scene, {check_s:.1f} s a scene",
        ),
        Phase(
            "fill buffers",
            whom,
            math.ceil(config.scenes / workers) * buffer_s / 3600,
            f"a scene on each worker: {config.images * config.passes} pictures, {buffer_s:.0f} s",
        ),
        Phase(
            "train heads",
            whom,
            math.ceil(config.scenes / workers) * HEAD_S / 3600,
            f"a scene on each worker: {HEAD_S:.0f} s",
        ),
    )
    numbers = {
        "steps": steps,
        "step_ms": step_ms,
        "forward_ms": forward_ms,
        "exchanged_mb": exchanged / 1e6,
        "busy": compute_ms / step_ms,
        "gpu_hours": workers * sum(p.hours for p in phases[1:]),
    }
    if load_ms > compute_ms:
        notes = (
            *notes,
            "reading images takes longer than computing: "
            f"{math.ceil(config.cores * load_ms / compute_ms)} cores for each GPU "
            "would keep up",
        )
    return Plan(phases, memory(config, counts, workers), numbers, notes)


def forward(config: PlanConfig, counts: Counts) -> tuple[float, tuple[str, ...]]:
    """Milliseconds of one image through the backbone, and what to say about them."""
    if config.forward_ms > 0:
        return config.forward_ms, ()
    if config.gpus:
        guess = 1e3 * counts.image_macs / GPU_MACS_PER_S
        return guess, (
            f"{guess:.1f} ms per image is a guess ({counts.image_macs / 1e9:.0f} G "
            "multiplications at "
            f"{GPU_MACS_PER_S / 1e12:.0f} T a second); measure: sld bench backbones --device "
            "cuda, and give --forward-ms",
        )
    if config.backbone not in CPU_FORWARD_MS:
        raise SldError(
            f"backbone {config.backbone} was not measured without a GPU; measure it with sld "
            "bench backbones, "
            "and give --forward-ms"
        )
    return CPU_FORWARD_MS[config.backbone] * 2 / config.cores, (
        "milliseconds are of 2 cores, spread evenly over yours",
    )


def ring_bytes(exchanged: float, workers: int) -> float:
    """What each worker sends when so many average `exchanged` bytes in a ring."""
    return 2 * (workers - 1) / workers * exchanged


def memory(config: PlanConfig, counts: Counts, workers: int) -> dict[str, float]:
    """Gigabytes by place."""
    cells = (config.patch_px // 8) ** 2
    patches = (
        config.batch * config.patches
    )  # heads of "rounds" go forward and backward one scene after the other
    heatmaps = (
        patches * config.landmarks * cells * 4 * 4
    )  # scores, targets, weights and a gradient, in float32
    state = ADAM_BYTES * (counts.weights + config.scenes * counts.head_weights)
    buckets = (workers > 1) * 4 * (counts.weights + config.scenes * counts.head_weights)
    buffer = config.images * config.passes * config.buffer_cells * (2 * config.buffer_channels + 17)
    on_machine = min(config.gpus_per_machine, workers)
    return {
        "each worker: backbone, heads, optimiser": state / 1e9,
        "each worker: gradients to exchange": buckets / 1e9,
        "each worker: activations": patches * counts.patch_bytes / 1e9,
        "each worker: heatmaps": heatmaps / 1e9,
        "each machine: labels": on_machine
        * config.scenes
        * config.images
        * config.landmarks
        * LABEL_BYTES
        / 1e9,
        "each machine: feature buffers": on_machine * buffer / 1e9,
        "disk: images": config.scenes * config.images * IMAGE_BYTES / 1e9,
        "disk: one checkpoint": 0.75 * state / 1e9,
    }  # without gradients


def count(config: PlanConfig) -> Counts:
    """Of the networks as they are trained, without computing anything."""
    import torch

    from sld_core.models.backbone import RANDOM, trainable
    from sld_core.models.heatmap_head import TrainingHead
    from sld_core.models.macs import count_macs

    network = trainable(config.backbone, RANDOM).to("meta")
    patch, image = (
        torch.zeros(1, 3, h, w) for h, w in ((config.patch_px, config.patch_px), (480, 640))
    )
    features = network(patch.to("meta"))
    head = TrainingHead(features.shape[1], config.landmarks, config.width, config.dilated).to(
        "meta"
    )
    weights = lambda module: sum(p.numel() for p in module.parameters())
    kept = kept_bytes(torch.nn.Sequential(network, head), patch.to("meta")) / 2
    return Counts(
        count_macs(network, patch),
        count_macs(network, image),
        weights(network),
        count_macs(head, features.detach()),
        weights(head),
        kept,
    )


def kept_bytes(network, image_B3HW) -> int:
    """Bytes that autograd keeps of one forward pass for the backward one, weights left out."""
    import torch

    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        network(image_B3HW)
    return sum(
        {
            s._cdata: s.nbytes() for s in (t.untyped_storage() for t in kept) if s._cdata not in own
        }.values()
    )


def lines(config: PlanConfig, made: Plan) -> Sequence[str]:
    """The plan in words and columns."""
    out = [
        f"{config.scenes} scenes x {config.images} images, {config.landmarks} landmarks each; "
        f"{config.backbone}, {config.epochs} epochs"
    ]
    out += [
        f"{phase.name:20s} {phase.hours:10.2f} h  on {phase.workers:12s} {phase.reason}"
        for phase in made.phases
    ]
    out += [
        f"{'together':20s} {made.hours:10.2f} h  {made.numbers['gpu_hours']:.1f} worker-hours "
        "beside mapping, "
        f"{made.numbers['busy']:.0%} of a training step computes"
    ]
    out += [f"{gb:10.2f} GB  {place}" for place, gb in made.memory_gb.items()]
    return out + [f"note: {note}" for note in made.notes]
