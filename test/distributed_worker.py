"""What each process of test_distributed does under torchrun; the test does the same in one
process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from sld_core.config.scene import BufferConfig, HeadConfig
from sld_core.training import feature_buffer, train_cell_head
from sld_core.training.distributed import ALONE, from_main, gather, joined, mean
from sld_core.training.feature_buffer import FeatureBuffer
from sld_core.training.run import Run
from sld_core.training.working_images import unrotated
from sld_core.types import Camera, Frame, Labels, SldError

FRAMES, LANDMARKS, SIDE = 11, 6, (64, 96)
TOY = HeadConfig(
    hidden=16,
    samples=20_000,
    batch=201,
    patience=2,
    check_steps=10,
    min_gain=9.0,
    held_out_cells=300,
)  # stalls at step 30


@dataclass(frozen=True)
class ToyBackbone:
    """The means of the four quarters of each cell and colour."""

    channels: int = 12

    def features(self, image_HW3, device="cpu"):
        image = torch.from_numpy(image_HW3).permute(2, 0, 1).float()[None] / 255
        return F.pixel_unshuffle(F.avg_pool2d(image, 4), 2)[0]


def toy_place(folder: Path):
    """Frames of coloured noise in `folder` and landmarks somewhere in them."""
    rng = np.random.default_rng(5)
    frames = []
    for i in range(FRAMES):
        path = folder / f"{i:02}.png"
        if not path.exists():
            cv2.imwrite(
                str(path),
                cv2.resize(
                    rng.integers(0, 256, (8, 12, 3), np.uint8),
                    SIDE[::-1],
                    interpolation=cv2.INTER_NEAREST,
                ),
            )
        frames.append(
            Frame(path.stem, path, Camera(SIDE[1], SIDE[0], 90.0, 90.0, 48.0, 32.0), np.eye(4))
        )
    rng = np.random.default_rng(6)
    return frames, Labels(
        rng.integers(0, 3, (FRAMES, LANDMARKS), np.uint8),
        rng.uniform(0, 64, (FRAMES, LANDMARKS, 2)),
    )


def fill(folder: Path, world=ALONE, processes=1):
    frames, labels = toy_place(folder)
    config = BufferConfig(background_cells=20, channels=8, processes=processes)
    run = Run(seed=7, world=world)
    return feature_buffer.fill(unrotated(frames, 640), labels, ToyBackbone(), config, 2, run)


def toy_cells():
    """Features of ten landmarks and background, each around a place of its own, which landmark, and
    the offset."""
    generator = torch.Generator().manual_seed(1)
    centre = 2 * torch.randn(11, 8, generator=generator)
    landmark = torch.randint(0, 11, (4000,), generator=generator)
    feature = centre[landmark] + 0.5 * torch.randn(4000, 8, generator=generator)
    return feature, landmark, 0.1 * feature[:, :2] * (landmark < 10)[:, None]


def learn(world=ALONE, config=TOY):
    feature, landmark, offset = toy_cells()
    buffer = FeatureBuffer(feature.half(), landmark, offset, torch.ones(4000, dtype=torch.bool))
    return train_cell_head.train(buffer, 10, config, Run(seed=3, world=world))


def main(folder: Path) -> None:
    with joined() as world:
        part = torch.arange(world.rank + 1) + 10 * world.rank  # as many as its rank says
        results = {
            "rank": world.rank,
            "size": world.size,
            "in_a_group": torch.distributed.is_initialized(),
            "from_main": from_main(lambda: {"rank": world.rank}, world),
            "gathered": gather(part, world),
            "empty": gather(torch.empty(0, 2), world),
            "booleans": gather(torch.tensor([world.rank == 1]), world),
            "mean": mean(torch.tensor(float(world.rank)), world),
        }
        buffer, whitening = fill(folder, world)
        head, curve = learn(world)
        results |= {
            "buffer": list(vars(buffer).values()),
            "whitening": whitening.state_dict(),
            "head": head.state_dict(),
            "curve": curve,
        }
        try:
            from_main(_fail, world)
        except (SldError, SystemExit) as error:
            results["failed"] = type(error).__name__
        torch.save(results, folder / f"result{world.rank}.pt")


def _fail():
    raise SldError("no such map")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
