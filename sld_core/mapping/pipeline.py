"""Images of a place -> a labelled scene dataset: the stages of `sld map`, each in a folder of its
own in OUT/work, and the dataset in OUT."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sld_core import stages
from sld_core.config.mapping import MapConfig
from sld_core.data.sources import Source, fingerprint, settings_used
from sld_core.files import write_atomically
from sld_core.mapping import make_stages, stage_outputs
from sld_core.sfm.reconstruction_file import read_reconstruction
from sld_core.stages import IN_MAP, MARK, Done
from sld_core.types import Progress, SldError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage. `needs` names the stages it takes something from; `settings` are the groups of
    MapConfig, and other settings by the names that users give them, that its outcome depends on;
    `make` fills its folder and returns what it found; `read` gives what it left to later stages,
    and raises SldError where that is damaged."""

    name: str
    help: str
    needs: tuple[str, ...]
    settings: tuple[str, ...]
    make: Callable[[MapJob, Path], dict[str, Any]]
    read: Callable[[Path], Any]


TABLE = (
    Stage(
        "frames",
        "choose images from photographs, videos or a bag",
        needs=(),
        settings=("frames", "bag"),
        make=make_stages.make_frames,
        read=stage_outputs.read_frames,
    ),
    Stage(
        "sfm",
        "find the cameras' poses and points by structure from motion",
        needs=("frames",),
        settings=("sfm", "seed"),
        make=make_stages.make_sfm,
        read=stage_outputs.read_sfm,
    ),
    Stage(
        "metric",
        "give the map metres and an upward direction",
        needs=("sfm", "frames"),
        settings=("metric",),
        make=make_stages.make_metric,
        read=read_reconstruction,
    ),
    Stage(
        "depth",
        "depth images, from sensors or completed from points by a monocular network",
        needs=("metric",),
        settings=("depth", "seed", "--model"),
        make=make_stages.make_depth,
        read=stage_outputs.read_depths,
    ),
    Stage(
        "landmarks",
        "choose the landmarks",
        needs=("metric", "depth"),
        settings=("landmarks", "split", "image", "backbone", "seed"),
        make=make_stages.make_landmarks,
        read=stage_outputs.read_landmarks,
    ),
    Stage(
        "labels",
        "decide which image shows which landmark",
        needs=("landmarks", "depth"),
        settings=("labels",),
        make=make_stages.make_labels,
        read=stage_outputs.read_labels,
    ),
    Stage(
        "dataset",
        "write the dataset and the report",
        needs=("labels",),
        settings=(),
        make=make_stages.make_dataset,
        read=stage_outputs.check_dataset,
    ),
)
STAGES = {stage.name: stage for stage in TABLE}


class MapJob:
    """A map that is being made in the folder `output`: `run` makes one stage, `run_all` those that
    are due."""

    def __init__(
        self,
        output: Path,
        config: MapConfig = MapConfig(),
        source: Source | None = None,
        model: Path | str | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
    ):
        self.output, self.work = Path(output), Path(output) / IN_MAP
        self.config = config
        self.source = source
        self.model = model
        self.progress = progress

    def run_all(self) -> dict[str, Any]:
        """Make all stages, from the images that are there where no source is given; returns the
        summary that `sld map --json` writes."""
        reason = "" if self.source else self._damage("frames")
        if reason:
            raise SldError(
                f"{reason}: give the images again, by --images DIR, --video FILE… or --bag DIR"
            )
        for name in STAGES:
            if self.source or name != "frames":
                self.run(name)
        found, seconds = self._found(list(STAGES))
        rounded = {name: round(s, 2) for name, s in seconds.items()}
        return found | {"seconds": rounded, "output": str(self.output)}

    def run(self, name: str) -> Done:
        """Make one stage, unless it is done with these inputs and settings."""
        self._check_output()
        stage = STAGES[name]
        key = f"{self._inputs_key(name)}-{self._own_key(name)}"
        self._claim()
        with _alone(self.output / MARK):
            settings = settings_of(name, self.config, self.model)
            self._warn_of_repetition(name, key, settings)
            folder = self.work / name
            return stages.run(folder, key, lambda partial: stage.make(self, partial), settings)

    def _own_key(self, name: str) -> str:
        """Key of everything that the outcome of a stage depends on besides earlier stages."""
        settings = settings_of(name, self.config, self.model)
        files = []
        if name == "frames":
            if self.source is None:
                raise SldError(
                    "no images given: name one of --images DIR, --video FILE…, --bag DIR"
                )
            settings = settings_used(self.source, self.config.frames, self.config.bag)
            files = [self.source.with_poses, fingerprint(self.source)]
        elif name == "depth":
            del settings["--model"]  # counts by the content of its files, however it is named
            files = model_fingerprint(self.model)
        return stages.key_of(name, settings, files)

    def _inputs_key(self, name: str) -> str:
        inputs = [self.done(needed) for needed in STAGES[name].needs]
        return stages.key_of([(done.key, done.made) for done in inputs])

    def _warn_of_repetition(self, name: str, key: str, settings: Mapping[str, Any]) -> None:
        """Say if a stage is made again although nothing was changed: it is damaged, or a setting
        was not given again."""
        done = stages.read_record(self.work / name)
        # with other inputs it is made again in any case, and may name images that are gone with
        # them
        reason = self._damage(name) if done is None or done.key == key else ""
        changes = back_at_default(name, done.settings, settings) if done else []
        if reason:
            log.warning("the stage %r is damaged and is done again (%s)", name, reason)
            stages.invalidate(self.work / name)
        elif changes:
            log.warning(
                "the stage %r is done again: %s (settings are not remembered, give them each time)",
                name,
                "; ".join(changes),
            )

    # what stages leave to later ones ------------------------------------------------------------

    def done(self, name: str) -> Done:
        """The record of an earlier stage; SldError says what to run where it is not done."""
        again = f"run `sld map {name} --output {self.output}`"
        done = stages.read_record(self.work / name)
        if done is None and (self.work / name).exists():
            raise SldError(f"{self._damage(name)}; {again} again, or `sld map all`")
        if done is None:
            raise SldError(
                f"{self.output}: the stage {name!r} has not been done; {again} first, "
                "or `sld map all`"
            )
        if done.key.split("-")[0] != self._inputs_key(name):
            raise SldError(
                f"{self.output}: the stage {name!r} was done before "
                f"{' or '.join(STAGES[name].needs)} changed; {again} again, or `sld map all`"
            )
        return done

    def output_of(self, name: str) -> Any:
        """What an earlier stage left; SldError says what to run where that is damaged."""
        try:
            return STAGES[name].read(self.work / name)
        except SldError as error:
            raise SldError(
                f"{error}: `sld map {name} --output {self.output}`, or `sld map all`"
            ) from None

    def found_before(self, name: str) -> tuple[dict[str, Any], dict[str, float]]:
        """What the stages before this one found, with their notes joined, and the seconds of
        each."""
        names = list(STAGES)
        return self._found(names[: names.index(name)])

    def _found(self, names: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
        done = {name: self.done(name) for name in names}
        found: dict[str, Any] = {}
        notes: list[str] = []
        for stage in done.values():
            found |= stage.found
            notes += stage.found.get("notes", [])
        return found | {"notes": notes}, {name: stage.seconds for name, stage in done.items()}

    def _damage(self, name: str) -> str:
        """Why what the stage left cannot be used; empty where it can, or left nothing."""
        folder = self.work / name
        if not folder.exists():
            return ""
        if stages.read_record(folder) is None:
            return f"{folder / stages.RECORD}: cannot be read"
        try:
            STAGES[name].read(folder)
        except SldError as error:
            return str(error)
        return ""

    # the folder of the map ----------------------------------------------------------------------

    def _check_output(self) -> None:
        """SldError unless `output` is a map, new or empty, and apart from the images' folder."""
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
            ours = (self.output / MARK).exists()
            if self.output.exists() and not ours and any(self.output.iterdir()):
                raise SldError(
                    f"{self.output}: holds files that are not a map of sld; choose a new or "
                    "empty folder"
                )
        except OSError as error:
            raise SldError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def _claim(self) -> None:
        """Mark `output` as ours."""
        with stages.explained(self.work, "written"):
            self.work.mkdir(parents=True, exist_ok=True)
            if not (self.output / MARK).exists():
                write_atomically(self.output / MARK, json.dumps({"format": "sld map 1"}).encode())


@contextmanager
def _alone(marker: Path) -> Iterator[None]:
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


# settings of stages -------------------------------------------------------------------------------


def settings_of(name: str, config: MapConfig, model: Path | str | None) -> dict[str, Any]:
    """The settings of a stage, by the names that --set takes, such as landmarks.count."""
    values = asdict(config) | {"--model": None if model is None else str(model)}
    return _flat({key: values[key] for key in STAGES[name].settings})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def back_at_default(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that an earlier run of the stage changed and that are at their defaults now, in
    words."""
    default = settings_of(name, MapConfig(), None)
    changes = []
    for setting, value in now.items():
        if setting in before and before[setting] != value == default[setting]:
            state = "not given" if value is None else f"the default {value!r}"
            changes.append(f"{setting} was {before[setting]!r} and is {state}")
    return changes


def model_fingerprint(model: Path | str | None) -> list[Any]:
    """Identifies a monocular network: path, size and time of each of its files, with the settings
    that may lie beside an ONNX file; of one on the hub its name."""
    path = Path(model or "")
    try:
        if model is None or not path.exists():
            return [str(model)]
        files = sorted(path.iterdir()) if path.is_dir() else [path, Path(f"{path}.json")]
        return [
            (str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()
        ]
    except OSError:  # whoever loads it says why it cannot be read
        return [str(model)]
