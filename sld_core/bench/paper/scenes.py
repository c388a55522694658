"""The scenes of `sld bench paper`: recorded sets in a folder, and rendered rooms."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sld_core import stages
from sld_core.bench.paper.presets import Preset
from sld_core.camera.images import read_image
from sld_core.data.frame_folder import read_frames
from sld_core.evaluation.metrics import QueryResult, accuracy
from sld_core.models.backbone import Backbone
from sld_core.spread import spread
from sld_core.synthetic import DEMO_CAMERA, Room, drive, write_sequence
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet, from_frames
from sld_core.types import Camera, Frame, Localization, Progress, SldError

ROOM = "room"  # rendered scenes are called room1, room2 ...


@dataclass(frozen=True)
class BenchmarkScene:
    """A scene to compare methods on: `frames` to learn from and `queries` of another drive, all
    with poses; `work` keeps tracks."""

    name: str
    frames: tuple[Frame, ...]
    queries: tuple[Frame, ...]
    work: Path


@dataclass(frozen=True)
class Bench:
    """What every measurement needs: the folder of the recorded sets, the folder of the results, the
    scale, and where it runs."""

    data: Path
    output: Path
    preset: Preset
    run: Run = Run()
    training_sets: dict[str, TrainingSet] = field(default_factory=dict)  # made so far

    def scene(self, name: str) -> BenchmarkScene:
        """The scene of that name."""
        work = self.output / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        number = name.removeprefix(ROOM)
        if number != name and number.isdecimal():
            return recorded(self._rendered_room(int(number)), work, self.preset)
        return recorded(self.data / name, work, self.preset)

    def training_set(self, name: str) -> TrainingSet:
        """What all methods learn from in the scene of that name."""
        if name not in self.training_sets:
            scene = self.scene(name)
            self.training_sets[name] = from_frames(
                scene.frames, scene.work, self.preset.scene, self.backbone(), self.run.progress
            )
        return self.training_sets[name]

    def backbone(self) -> Backbone:
        """The frozen one of the preset."""
        scene = self.preset.scene
        return Backbone(scene.backbone, scene.backbone_weights).to(self.run.device)

    def _rendered_room(self, number: int) -> Path:
        name = f"{ROOM}{number}"
        sizes = (self.preset.room_frames, self.preset.room_queries)

        def progress(fraction: float) -> None:
            self.run.progress(Progress(f"rendering {name}", fraction))

        def render(folder: Path) -> dict:
            room = Room.make(number)
            frames, queries = (drive(number, n, kind) for n, kind in zip(sizes, ("map", "query")))
            write_sequence(folder, room, DEMO_CAMERA, frames, queries, number, progress)
            return {}

        key = stages.key_of(number, sizes)
        return stages.run(self.output / "rooms" / name, key, render).folder


def recorded(folder: Path, work: Path, preset: Preset) -> BenchmarkScene:
    """The set in a folder: camera-intrinsics.txt, and map.txt and query.txt that name its frames;
    thinned evenly to the preset."""
    lists = [folder / f"{kind}.txt" for kind in ("map", "query")]
    for path in lists:
        if not path.is_file():
            raise SldError(
                f"{path}: no such file; expected a set of frames with map.txt and query.txt; "
                "name others by --data and --scenes"
            )
    frames, queries = (read_frames(folder, path) for path in lists)
    return BenchmarkScene(
        folder.name,
        tuple(spread(frames, preset.max_frames)),
        tuple(spread(queries, preset.max_queries)),
        work,
    )


def evaluate(
    localize: Callable[[np.ndarray, Camera], Localization],
    queries: Sequence[Frame],
    origin_3: np.ndarray | float = 0.0,
) -> dict:
    """Accuracy over the queries (evaluation.metrics.accuracy), and the median `query_ms`. The poses
    of `localize` are relative to `origin_3`."""
    results = []
    for frame in queries:
        image, start = read_image(frame.image_path), time.perf_counter()
        answer = localize(image, frame.camera)
        seconds, pose = time.perf_counter() - start, None
        if answer.pose is not None:
            pose = answer.pose.T_world_camera.copy()
            pose[:3, 3] += origin_3
        results.append(QueryResult(frame.name, frame.T_world_camera, pose, answer.reason, seconds))
    return accuracy(results) | {"query_ms": 1000 * float(np.median([r.seconds for r in results]))}
