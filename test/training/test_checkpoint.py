"""What a training run leaves on disk: checkpoints, the log, its curves, and the weights file of
`sld train backbone`."""

import json
import pickle
from dataclasses import replace

import cv2
import pytest
import safetensors
import torch
import toy_scenes

from sld_core import cli
from sld_core.data.formats.indoor6 import write_scene_data
from sld_core.models.backbone import Backbone
from sld_core.training import checkpoint, logbook
from sld_core.training.logbook import Logbook
from sld_core.types import SceneData, SldError


def test_a_checkpoint_comes_back_equal_and_the_generators_with_it(tmp_path):
    torch.manual_seed(3)
    checkpoint.save(
        tmp_path / "new" / "a.pt",
        {
            "weights": torch.arange(3.0),
            "step": 7,
            "best": None,
            "random": checkpoint.random_state(),
        },
    )
    drawn = torch.rand(4)
    state = checkpoint.load(tmp_path / "new" / "a.pt")
    assert state["weights"].tolist() == [0, 1, 2] and state["step"] == 7 and state["best"] is None
    checkpoint.restore_random(state["random"])
    assert torch.equal(torch.rand(4), drawn)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"step": 2, "bad": lambda: 0})
    assert checkpoint.load(path) == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"step": 1})

    def full(state, file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            text = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
            raise RuntimeError(text)  # noqa: B904 (as torch does)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        SldError, match="a.pt: cannot be written .No space left on device.; free some space"
    ):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1} and len(list(tmp_path.iterdir())) == 1


class Malice:
    def __reduce__(self):
        return print, ("never run",)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "list"])
def test_damaged_checkpoints_are_named_in_one_line(tmp_path, damage, capsys):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"weights": torch.rand(1000)})
    if damage in ("pickle", "list"):
        torch.save(Malice() if damage == "pickle" else [1], path, pickle_module=pickle)
    else:
        path.write_bytes({"empty": b"", "cut": path.read_bytes()[:2000], "text": b"hello"}[damage])
    with pytest.raises(
        SldError, match="a.pt: not a checkpoint of a training run, or damaged"
    ) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""
    with pytest.raises(SldError, match="cannot be read"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_log_resumed_drops_what_came_after_and_a_line_cut_short(tmp_path):
    book = Logbook(tmp_path)
    for step in (1, 2, 3):
        book.write(step, step / 2, step * 10.0, "a room, with a comma", loss=1 / step)
    book.write(2, 1, 25, "hall", pixel_error=3.5, found=0.5, recall=0.25)
    with open(tmp_path / "log.csv", "a") as file:
        file.write("4,2.0,4")
    Logbook(tmp_path, resume_step=2).write(3, 1.5, 99, "hall", loss=0.125)
    rows = logbook.read(tmp_path / "log.csv")
    assert [(row["step"], row["scene"], row["loss"], row["recall"]) for row in rows] == [
        ("1", "a room, with a comma", "1.0", ""),
        ("2", "a room, with a comma", "0.5", ""),
        ("2", "hall", "", "0.25"),
        ("3", "hall", "0.125", ""),
    ]
    assert len(logbook.read(Logbook(tmp_path).path)) == 0  # a new run


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "PNG\n"])
def test_what_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(SldError, match="expected a table with the columns step, epoch"):
        logbook.read(tmp_path / "log.csv")


def test_curves_are_means_of_neighbours_and_leave_out_what_is_no_number(tmp_path):
    for run, scenes in (("one", 2), ("many", 9)):
        book = Logbook(tmp_path / run)
        for step in range(1, 121):
            for scene in range(scenes):
                book.write(step, step / 10, step, f"scene{scene}", loss=float(step))
        book.write(120, 12, 120, "scene0", pixel_error=float("inf"), recall=0.5)
        book.write(120, 12, 120, logbook.ALL, pixel_error=2.0, recall=0.5)
    lines = logbook._lines([tmp_path / "one" / "log.csv"], "loss")
    x, y = lines["scene1"]
    assert (
        len(x) == 40 and (x[0], y[0]) == pytest.approx((0.2, 2)) and y[-1] == pytest.approx(119)
    )  # means of three
    assert not logbook._lines([tmp_path / "one" / "log.csv"], "pixel_error")
    files = [tmp_path / run / "log.csv" for run in ("one", "many")]
    assert set(logbook._lines(files, "loss")) == {f"one: scene{i}" for i in range(2)} | {
        f"many: scene{i}" for i in range(9)
    }
    at, mean = logbook._mean(logbook._lines(files, "loss"))
    assert mean == pytest.approx(at * 10)
    for several in (files[:1], files):
        logbook.curves(several, tmp_path / "out" / "curves.png")
        picture = cv2.imread(str(tmp_path / "out" / "curves.png"))
        assert (
            picture.shape[1] == 1440
            and len(set(map(tuple, picture[::3, ::3].reshape(-1, 3).tolist()))) > 20
        )


# the command line ---------------------------------------------------------------------------------

SETTINGS = [
    f"--set={text}"
    for text in (
        "epochs=1",
        "patches=1",
        "patch_px=64",
        "width=8",
        "batch=3",
        "precision=float32",
        "scene.image.max_side_px=96",
    )
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two scenes of discs as `sld map` would write them."""
    root = tmp_path_factory.mktemp("datasets")
    folders = []
    for i in range(2):
        training_set = toy_scenes.training_set(
            root / f"images{i}", 8, seed=i, landmarks=24, validation=0
        )
        frames = tuple(replace(f, name=f"image-{k:06d}") for k, f in enumerate(training_set.frames))
        folders.append(root / f"room{i}")
        split = ("train",) * 6 + ("val",) * 2
        write_scene_data(
            folders[-1],
            SceneData(
                frames,
                split,
                training_set.landmarks,
                training_set.labels.visibility_FL,
                True,
                "map",
            ),
        )
    return folders


def test_the_command_writes_weights_that_a_scene_can_name(datasets, tmp_path, capsys):
    output, work = tmp_path / "weights.safetensors", tmp_path / "work"
    given = [word for folder in datasets for word in ("--scene-data", str(folder))]
    command = [
        "train",
        "backbone",
        *given,
        "--backbone",
        "xfeat",
        "--landmarks",
        "20",
        "--output",
        str(output),
        "--work",
        str(work),
        *SETTINGS,
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "xfeat trained on 2 scenes" in said and "held-out frames of room1" in said
    with safetensors.safe_open(output, "pt") as file:
        text = file.metadata()
    record = json.loads(text["record"])
    assert text["backbone"] == "xfeat" and [s["name"] for s in record["scenes"]] == [
        "room0",
        "room1",
    ]
    assert (
        [s["landmarks"] for s in record["scenes"]] == [20, 20]
        and record["config"]["patch_px"] == 64
        and record["steps"] == 4
    )
    assert (work / "curves.png").stat().st_size > 5000
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = Backbone("xfeat", str(output))(image), Backbone("xfeat")(image)
    assert (
        0 < (ours - theirs).abs().mean() < 0.5 * theirs.abs().mean()
    )  # trained a little, not something else
    assert cli.main(command) == 2 and "already holds a training run" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give at least one scene"),
        (
            ["--frames", "a", "--frames", "b", "--list", "c"],
            "--list is given 1 times, --frames 2 times",
        ),
        (["--frames", "a", "--output", "w.pt"], "ends in .safetensors"),
        (["--frames", "nowhere"], "nowhere: no such folder"),
        (["--frames", "a", "--set", "epoch=3"], "no such setting"),
        (["--frames", "a", "--set", "order=random"], "expected one of shuffled, rounds"),
    ],
)
def test_input_that_cannot_be_used(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["train", "backbone", "--output", "w.safetensors", "--work", "work", *words]) == 2
    )
    assert message in capsys.readouterr().err
