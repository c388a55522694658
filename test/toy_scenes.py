"""Scenes of coloured discs, and a network of two layers: multi-scene training in seconds. As a
script it trains on them, and may be killed on the way: `python toy_scenes.py WORK [setting=value
...]`, with `torchrun` for several processes."""

import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from sld_core import geometry
from sld_core.config.settings import override
from sld_core.config.training import BackboneTrainingConfig
from sld_core.training.training_set import TrainingSet
from sld_core.types import Camera, Frame, Labels, Landmarks, Visibility

CAMERA = Camera(96, 64, 80.0, 80.0, 48.0, 32.0)
QUICK = [
    "batch=4",
    "patches=1",
    "patch_px=64",
    "epochs=3",
    "width=16",
    "precision=float32",
    "log_every=1",
    "save_every=1",
    "schedule.learning_rate=0.01",
    "backbone_learning_rate=0.003",
    "heads_first=0",
    "scene.buffer.max_rotation_deg=5",
    "scene.buffer.min_scale=0.9",
    "scene.buffer.max_scale=1.1",
    "scene.buffer.blur_probability=0",
    "scene.pnp.min_inliers=6",
    "scene.decode.min_score=0.15",
]


class Toy(nn.Module):
    """image_B3HW -> features_B8hw at stride 8."""

    channels = 12

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 12, 8, 8), nn.ReLU(), nn.Conv2d(12, self.channels, 1)
            )

    def forward(self, image_B3HW):
        return self.layers(image_B3HW)


def config(*settings):
    return override(BackboneTrainingConfig(), [*QUICK, *settings])


def training_set(folder, frames, seed, landmarks=8, validation=3):
    """A scene of its own: discs of other colours at other places, seen by a camera that moves
    sideways."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    hues = np.uint8([[[180 * i // landmarks, 255, 255] for i in range(landmarks)]])
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0][rng.permutation(landmarks)]
    columns = rng.permutation(np.arange(landmarks) % 4) * 0.55 - 0.85
    xyz_L3 = np.column_stack(
        [columns, np.sort(rng.uniform(-0.55, 0.55, landmarks)), rng.uniform(1.9, 2.6, landmarks)]
    )
    shot = [shoot(folder, i, xyz_L3, colours, rng) for i in range(frames + validation)]
    xy_FL2 = np.stack([xy for _, xy in shot])
    inside = ((xy_FL2 >= 0) & (xy_FL2 < [CAMERA.width, CAMERA.height])).all(2)
    visibility_FL = np.where(inside, Visibility.VISIBLE, Visibility.HIDDEN).astype(np.uint8)
    all_frames = tuple(frame for frame, _ in shot)
    return TrainingSet(
        all_frames[:frames],
        Landmarks(xyz_L3, np.arange(landmarks)),
        Labels(visibility_FL[:frames], xy_FL2[:frames]),
        all_frames[frames:],
        np.zeros(3),
        True,
    )


def shoot(folder, i, xyz_L3, colours, rng):
    T = geometry.make_transform(np.eye(3), rng.uniform([-0.15, -0.1, -0.1], [0.15, 0.1, 0.1]))
    xy_L2, _ = geometry.project(CAMERA, geometry.invert(T), xyz_L3)
    image = rng.integers(100, 130, (CAMERA.height, CAMERA.width, 3)).astype(np.uint8)
    for (x, y), colour in zip(xy_L2, colours):
        cv2.circle(
            image,
            (round((x - 0.5) * 16), round((y - 0.5) * 16)),
            5 * 16,
            tuple(map(int, colour)),
            -1,
            cv2.LINE_AA,
            4,
        )
    path = folder / f"{i}.png"
    cv2.imwrite(str(path), image[..., ::-1])
    return Frame(str(i), path, CAMERA, T), xy_L2


def training_sets(folder, sizes=(10, 6)):
    return {
        f"scene{i}": training_set(Path(folder) / f"scene{i}", size, seed=i)
        for i, size in enumerate(sizes)
    }


def main(work, *settings):
    from sld_core.training import distributed
    from sld_core.training.run import Run
    from sld_core.training.train_backbone import train

    torch.set_num_threads(1)
    with distributed.joined() as world:
        (Path(work) / f"images{world.rank}").mkdir(parents=True, exist_ok=True)
        steps = iter(range(10**6))

        def progress(_):
            at, rank = map(int, os.environ.get("KILL_AT_STEP_AND_RANK", "-1 0").split())
            if (
                next(steps) == at
                and world.rank == rank
                and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0
            ):
                os.kill(os.getpid(), signal.SIGKILL)

        trained = train(
            training_sets(Path(work) / f"images{world.rank}"),
            Toy(),
            config(*settings),
            Path(work),
            Run(world=world, progress=progress),
            resume=True,
        )
        if world.is_main:
            torch.save(
                {
                    "network": trained.network.state_dict(),
                    "head": trained.heads["scene1"].state_dict(),
                },
                Path(work) / "final.pt",
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
