"""The scenes of `sld bench paper`: recorded sets of a folder and rendered rooms, what is learned
from each, and queries."""

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
    """What every measurement needs: where the recorded sets lie, where results go, the scale, the
    device and whom to tell."""

    data: Path
    output: Path
    preset: Preset
    device: str = "cpu"
    show: Callable[[Progress], None] = lambda _: None
    training_sets: dict[str, TrainingSet] = field(default_factory=dict)  # made so far

    def place(self, name: str) -> BenchmarkScene:
        """The scene of that name."""
        work = self.output / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        number = name.removeprefix(ROOM)
        if number != name and number.isdecimal():
            return self._rendered(int(number), work)
        return recorded(self.data / name, work, self.preset)

    def training_set(self, name: str) -> TrainingSet:
        """What all methods are taught of the scene of that name."""
        if name not in self.training_sets:
            place = self.place(name)
            self.training_sets[name] = from_frames(
                place.frames, place.work, self.preset.scene, self.backbone(), self.show
            )
        return self.training_sets[name]

    def backbone(self) -> Backbone:
        """The default one, frozen."""
        return Backbone(self.preset.scene.backbone, self.preset.scene.backbone_weights).to(
            self.device
        )

    def _rendered(self, number: int, work: Path) -> BenchmarkScene:
        name, sizes = f"{ROOM}{number}", (self.preset.room_frames, self.preset.room_queries)

        def render(partial: Path) -> dict:
            drives = (drive(number, n, kind) for n, kind in zip(sizes, ("map", "query")))
            write_sequence(
                partial,
                Room.make(number),
                DEMO_CAMERA,
                *drives,
                number,
                lambda p: self.show(Progress(f"rendering {name}", p)),
            )
            return {}

        folder = stages.run(
            self.output / "rooms" / name, stages.key_of(number, sizes), render
        ).folder
        return recorded(folder, work, self.preset)


def recorded(folder: Path, work: Path, preset: Preset) -> BenchmarkScene:
    """The set of a folder: camera-intrinsics.txt, and map.txt and query.txt that name its frames;
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
    """Accuracy over the queries (evaluate.accuracy) and the median `query_ms`. `localize` answers
    in coordinates less `origin_3`."""
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
