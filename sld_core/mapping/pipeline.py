"""Images of a place -> a labelled scene dataset: the stages of `sld map`, each a folder in
OUT/work, and the dataset in OUT."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sld_core import depth, stages
from sld_core.camera.calibration import read_calibration
from sld_core.config.mapping import MapConfig, SfmConfig
from sld_core.config.scene import ImageConfig, TrackConfig
from sld_core.data import sources
from sld_core.data.formats.indoor6 import write_scene_data
from sld_core.data.formats.splits import split
from sld_core.data.sources import Source, fingerprint
from sld_core.files import write_atomically
from sld_core.landmarks import selection
from sld_core.landmarks.normals import normals_of
from sld_core.landmarks.visibility import label_and_report
from sld_core.mapping.report.report import write_map_report
from sld_core.mapping.settings import fingerprint_of, gone_back, settings_of
from sld_core.metric import align
from sld_core.sfm import triangulation
from sld_core.sfm.reconstruction_file import READ, REPORT, write_reconstruction
from sld_core.sfm.solve import solve
from sld_core.sfm.subset import without
from sld_core.stages import IN_MAP, MARK, Done
from sld_core.types import FrameSet, Progress, Reconstruction, SceneData, SldError

log = logging.getLogger(__name__)

STAGES = ("frames", "sfm", "metric", "depth", "landmarks", "labels", "dataset")


class MapJob:
    """A map under way in the folder `output`. Stages take what earlier ones left; `run` does one,
    `run_all` those that are due."""

    def __init__(
        self,
        output: Path,
        config: MapConfig = MapConfig(),
        source: Source | None = None,
        model: Path | str | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
    ):
        self.output, self.config, self.source, self.model, self.progress = (
            Path(output),
            config,
            source,
            model,
            progress,
        )
        self.work = self.output / IN_MAP

    def run_all(self) -> dict[str, Any]:
        """All stages, from the images at hand where no source is given; returns the summary that
        `sld map --json` writes."""
        if not self.source and (reason := self._damage("frames")):
            raise SldError(
                f"{reason}: give the images once more, by --images DIR, --video FILE… or --bag DIR"
            )
        for stage in STAGES if self.source else STAGES[1:]:
            self.run(stage)
        return self.summary()

    def run(self, stage: str) -> Done:
        """One stage, unless it is done with these inputs and settings."""
        self._check_output()
        key = f"{stages.key_of(self._inputs(stage))}-{stages.key_of(stage, self._settings(stage))}"
        self._claim()
        with _alone(self.output / MARK):
            named = self._tell_why(stage, key)
            return stages.run(self.work / stage, key, getattr(self, f"_{stage}"), named)

    def summary(self) -> dict[str, Any]:
        """What the stages found: images, registered, reprojection_px, metric, seconds per stage,
        and more."""
        found, seconds = self._found(STAGES)
        return found | {
            "seconds": {stage: round(s, 2) for stage, s in seconds.items()},
            "output": str(self.output),
        }

    def _tell_why(self, stage: str, key: str) -> dict[str, Any]:
        """Say what of the stage is damaged, which has it done anew, or went back to its default;
        returns its settings by name."""
        now, done = (
            settings_of(stage, self.config, self.model),
            stages.read_record(self.work / stage),
        )
        # of other inputs it is done anew in any case, and may name images that are gone with them
        if (done is None or done.key == key) and (reason := self._damage(stage)):
            log.warning("the stage %r is damaged and is done anew (%s)", stage, reason)
            stages.invalidate(self.work / stage)
        elif done and (changes := gone_back(stage, done.settings, now)):
            log.warning(
                "the stage %r is done anew: %s (settings are not remembered, give them each time)",
                stage,
                "; ".join(changes),
            )
        return now

    # stages, in order; each writes into `folder` and returns what it found, for the summary -------

    def _frames(self, folder: Path) -> dict[str, Any]:
        images = folder / "images"
        shutil.rmtree(images, ignore_errors=True)  # of a run that was killed
        try:
            found = self._read_images(images)
        except (SldError, OSError):
            shutil.rmtree(images, ignore_errors=True)  # no later run takes them
            raise
        return {
            "images": len(found.frames),
            "sessions": len({f.session for f in found.frames}),
            "intrinsics_known": found.intrinsics_known,
            "rejected": found.rejected,
            "with_pose": sum(f.T_world_camera is not None for f in found.frames),
        }

    def _read_images(self, folder: Path) -> FrameSet:
        source, config = self.source, self.config
        calibration = read_calibration(source.calibration) if source.calibration else None
        if source.bag is not None:
            return sources.from_bag(source.bag, folder, config.frames, config.bag, self.progress)
        if source.videos:
            return sources.from_videos(
                source.videos, folder, config.frames, calibration, self.progress
            )
        return sources.from_photos(
            source.images,
            folder,
            config.frames,
            calibration,
            self.progress,
            source.list_path,
            source.with_poses,
        )

    def _sfm(self, folder: Path) -> dict[str, Any]:
        frame_set, config = self._left("frames"), self.config.sfm
        if config.mapper == "posed":
            _check_posed(frame_set)
            reconstruction = triangulation.reconstruct(
                frame_set.frames, folder, _track_config(config), self.config.seed, self.progress
            )
            found = {
                "registered": len(reconstruction.frames),
                "pieces": [len(reconstruction.frames)],
                "lost": {},
                "reprojection_px": float(reconstruction.error_px_N.mean()),
                "lenses": [],
            }
        else:
            result = solve(frame_set, folder, config, self.config.seed, self.progress)
            reconstruction = result.reconstruction
            found = {
                "registered": len(reconstruction.frames),
                "pieces": list(result.pieces),
                "lost": _with_sources(result.lost, frame_set),
                "reprojection_px": result.reprojection_px,
                "agreement": result.agreement,
                "lenses": list(result.lenses),
                "notes": list(result.notes),
            }
        write_reconstruction(folder, reconstruction)
        return found | {"points": len(reconstruction.points_N3)}

    def _metric(self, folder: Path) -> dict[str, Any]:
        reconstruction, frame_set = self._left("sfm"), self._left("frames")
        alignment = align.align(reconstruction, frame_set, self.config.metric, self.progress)
        write_reconstruction(folder, align.moved(reconstruction, alignment))
        # the given poses lend their frame wherever it is not the images that say what is up
        world_frame = (
            frame_set.world_frame
            if alignment.metric and alignment.upright in ("tf", "none")
            else ""
        )
        return {
            "metric": alignment.metric,
            "scale_source": alignment.source,
            "upright": alignment.upright,
            "world_frame": world_frame,
            "residual": alignment.residual,
            "notes": list(alignment.notes),
            "alignment": alignment.to_dict(),
        }

    def _depth(self, folder: Path) -> dict[str, Any]:
        in_metres = self._done("metric").found["metric"]
        found = depth.complete(
            self._left("metric"), folder, self.config.depth, self.model, self.progress, in_metres
        ).to_dict()
        return {"notes": list(found.pop("notes")), "depth": found}

    def _landmarks(self, folder: Path) -> dict[str, Any]:
        self.progress(Progress("choosing landmarks", 0.0))
        reconstruction = self._with_depth()
        split_F = split(reconstruction.frames, self.config.split)
        training = _training(reconstruction, split_F)
        matchability_N = None
        if self.config.landmarks.matchability_weight > 0:
            matchability_N = self._matchability(training)
        chosen = selection.select(training, self.config.landmarks, matchability_N)
        np.savez(
            folder / "landmarks.npz",
            xyz_L3=chosen.xyz_L3,
            point_L=chosen.point_L,
            split_F=np.array(split_F),
        )
        return {
            "landmarks": len(chosen),
            "split": {part: split_F.count(part) for part in ("train", "val", "test")},
        }

    def _matchability(self, training: Reconstruction) -> np.ndarray:
        from sld_core.landmarks.matchability import matchability
        from sld_core.models.backbone import Backbone

        rng = np.random.default_rng(self.config.seed)
        return matchability(
            training,
            Backbone("lite0+xfeat"),
            ImageConfig(),
            "cpu",
            rng,
            self.progress,
            self.config.landmarks,
        )

    def _labels(self, folder: Path) -> dict[str, Any]:
        self.progress(Progress("labelling", 0.0))
        reconstruction, (chosen, split_F) = self._with_depth(), self._left("landmarks")
        training = _training(reconstruction, split_F)
        normals_L3 = (
            normals_of(training, chosen, self.config.labels)
            if self.config.labels.use_normals
            else None
        )
        labels, report = label_and_report(reconstruction, chosen, self.config.labels, normals_L3)
        np.savez(folder / "labels.npz", visibility_FL=labels.visibility_FL)
        return {"labels": asdict(report)}

    def _dataset(self, folder: Path) -> dict[str, Any]:
        reconstruction, (chosen, split_F) = self._with_depth(), self._left("landmarks")
        visibility_FL = self._left("labels")
        summary, seconds = self._found(STAGES[:-1])
        self.progress(Progress("writing the dataset", 0.0))
        # the dataset numbers its landmarks; `point_L` are indices of the reconstruction, which it
        # does not hold
        numbered = replace(chosen, point_L=np.arange(len(chosen)))
        write_scene_data(
            self.output,
            SceneData(
                reconstruction.frames,
                split_F,
                numbered,
                visibility_FL,
                summary["metric"],
                summary["world_frame"],
            ),
        )
        depth_folder = self.work / "depth" if summary["depth"]["source"] != "none" else None
        self.progress(Progress("drawing the report", 0.5))
        told = {
            k: v
            for k, v in summary.items()
            if k not in ("alignment", "pieces", "landmarks", "split")
        }
        told["components"] = len(summary["pieces"])
        write_map_report(
            self.output / REPORT,
            f"Map of {self.output.resolve().name}",
            told,
            self._left("frames"),
            reconstruction,
            summary["lost"],
            chosen,
            visibility_FL,
            split_F,
            depth_folder,
            seconds,
            summary["notes"],
        )
        return {}

    # what stages hand on --------------------------------------------------------------------------

    def _done(self, stage: str) -> Done:
        done = stages.read_record(self.work / stage)
        if done is None and (self.work / stage).exists():
            raise SldError(
                f"{self._damage(stage)}; run `sld map {stage} --output {self.output}` again, "
                "or `sld map all`"
            )
        if done is None:
            raise SldError(
                f"{self.output}: the stage {stage!r} has not been done; run `sld map {stage} "
                f"--output {self.output}` first, "
                "or `sld map all`"
            )
        if done.key.split("-")[0] != stages.key_of(self._inputs(stage)):
            raise SldError(
                f"{self.output}: the stage {stage!r} was done before "
                f"{' or '.join(NEEDS[stage])} changed; "
                f"run `sld map {stage} --output {self.output}` again, or `sld map all`"
            )
        return done

    def _found(self, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, float]]:
        """What these stages found, their notes joined, and the seconds of each."""
        done = {name: self._done(name) for name in names}
        found = {key: value for stage in done.values() for key, value in stage.found.items()}
        found["notes"] = [note for stage in done.values() for note in stage.found.get("notes", [])]
        return found, {name: stage.seconds for name, stage in done.items()}

    def _inputs(self, stage: str) -> list[tuple[str, str]]:
        return [(done.key, done.made) for done in map(self._done, NEEDS[stage])]

    def _left(self, stage: str) -> Any:
        """What an earlier stage left; SldError says what to run where that is damaged."""
        try:
            return READ[stage](self.work / stage)
        except SldError as error:
            raise SldError(
                f"{error}: `sld map {stage} --output {self.output}`, or `sld map all`"
            ) from None

    def _damage(self, stage: str) -> str:
        """Why what the stage left cannot be used, where it left anything."""
        folder = self.work / stage
        if folder.exists() and stages.read_record(folder) is None:
            return f"{folder / stages.RECORD}: cannot be read"
        try:
            if stage in READ and folder.exists():
                READ[stage](folder)
        except SldError as error:
            return str(error)
        return ""

    def _with_depth(self) -> Reconstruction:
        """The metric reconstruction, whose frames have the completed depth where there is one."""
        reconstruction, path_of = self._left("metric"), self._left("depth")
        return replace(
            reconstruction,
            frames=tuple(replace(f, depth_path=path_of.get(f.name)) for f in reconstruction.frames),
        )

    def _settings(self, stage: str) -> Any:
        """All that the outcome of a stage depends on besides earlier stages."""
        config = dataclasses.asdict(self.config)
        if stage == "frames":
            if self.source is None:
                raise SldError(
                    "no images given: name one of --images DIR, --video FILE…, --bag DIR"
                )
            return [
                config["frames"],
                config["bag"],
                self.source.with_poses,
                fingerprint(self.source),
            ]
        settings = [
            config.get("split") if stage == "landmarks" else None,
            config.get(stage),
            self.config.seed,
        ]
        return settings + (fingerprint_of(self.model) if stage == "depth" else [])

    def _check_output(self) -> None:
        """SldError unless `output` is ours already, new or empty, and no part of what is read."""
        read = (self.source.images, self.source.bag) if self.source else ()
        for folder in filter(None, read):
            if self.output.resolve().is_relative_to(folder.resolve()):
                raise SldError(
                    f"{self.output}: lies in {folder}, which the images are read from; choose "
                    "a folder elsewhere"
                )
            if folder.resolve().is_relative_to(self.output.resolve()):
                raise SldError(
                    f"{folder}: lies in the map {self.output} itself; without --images, `sld "
                    "map all` goes on with those it has"
                )
        try:
            if (
                self.output.exists()
                and not (self.output / MARK).exists()
                and any(self.output.iterdir())
            ):
                raise SldError(
                    f"{self.output}: holds files that are not a map of sld; choose a new or "
                    "empty folder"
                )
        except OSError as error:
            raise SldError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def _claim(self) -> None:
        """Mark `output` as ours."""
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            if not (self.output / MARK).exists():
                write_atomically(self.output / MARK, json.dumps({"format": "sld map 1"}).encode())
        except OSError as error:
            raise SldError(f"{error.filename}: cannot be written ({error.strerror})") from None


def _training(reconstruction: Reconstruction, split_F: tuple[str, ...]) -> Reconstruction:
    """The reconstruction as the training frames see it: neither landmarks nor normals may know of
    the others."""
    return without(reconstruction, [i for i, part in enumerate(split_F) if part != "train"])


def _check_posed(frame_set: FrameSet) -> None:
    """SldError unless given poses can be refined."""
    if not frame_set.intrinsics_known:
        raise SldError(
            "sfm.mapper=posed needs a calibrated camera: give --intrinsics FILE, or a bag with "
            "CameraInfo"
        )
    if lacking := [f.name for f in frame_set.frames if f.T_world_camera is None]:
        raise SldError(
            f"sfm.mapper=posed needs a pose of every image; {len(lacking)} of "
            f"{len(frame_set.frames)} have none, the first is "
            f"{lacking[0]}: give --poses, or use sfm.mapper=incremental"
        )


def _with_sources(lost: dict[str, str], frame_set: FrameSet) -> dict[str, str]:
    """The reasons, with the user's own names of the images."""
    source_of = {f.name: f.source for f in frame_set.frames}
    return {name: f"{reason} ({source_of[name]})" for name, reason in lost.items()}


@contextmanager
def _alone(marker: Path):
    """SldError while another process works in the folder that this file marks."""
    with open(marker) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SldError(
                f"{marker.parent}: another `sld map` is at work there; wait for it, or choose "
                "another folder"
            ) from None
        yield


NEEDS = {
    "frames": (),
    "sfm": ("frames",),
    "metric": ("sfm", "frames"),
    "depth": ("metric",),
    "landmarks": ("metric", "depth"),
    "labels": ("landmarks", "depth"),
    "dataset": ("labels",),
}


def _track_config(config: SfmConfig) -> TrackConfig:
    return TrackConfig(max_features=config.max_features, neighbours=config.retrieval_pairs)
