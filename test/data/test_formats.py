"""Datasets and models on disk: what is written reads back equal; what is damaged or hostile is one
clear error."""

import itertools
import json
import os
import pickle
import shutil
import struct
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sld_core import geometry
from sld_core.config.mapping import SplitConfig
from sld_core.data.formats import plain_files, restricted_pickle
from sld_core.data.formats.colmap_files import read_cameras, read_images
from sld_core.data.formats.colmap_model import write_model
from sld_core.data.formats.indoor6 import read_scene_data, write_scene_data
from sld_core.data.formats.splits import split
from sld_core.data.frame_folder import read_frames
from sld_core.data.sources import from_colmap
from sld_core.types import Camera, Frame, Landmarks, Reconstruction, SceneData, SldError

CAMERA = Camera(64, 48, 50.25, 50.5, 31.7, 24.1)
NO_POINTS = {
    "points_N3": np.zeros((0, 3)),
    "error_px_N": np.zeros(0),
    "obs_point_M": np.zeros(0, int),
    "obs_frame_M": np.zeros(0, int),
    "obs_xy_M2": np.zeros((0, 2)),
}
VISIBILITY_FL = np.array([[1, 0, 2], [0, 2, 1], [2, 1, 0], [1, 1, 1]], np.uint8)


def image_file(path, seed=0, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, size))
    return path


def depth_file(path, value=1500):
    cv2.imwrite(str(path), np.full((48, 64), value, np.uint16))
    return path


def pose(x):
    return geometry.make_transform(
        geometry.rotation_from_vector(np.array([0.1, -0.2 * x, 0.3])), np.array([x, 1 / 3, -0.1])
    )


def frame(folder, i, **values):
    name = values.pop("name", f"image-{i:06d}")
    path = image_file(folder / f"{name}.color{values.pop('ending', '.jpg')}", i)
    return replace(
        Frame(name, path, CAMERA, pose(i), None, 10**18 + i, f"drive {i % 2}", f"a b/{i}.jpg"),
        **values,
    )


@pytest.fixture
def data(tmp_path):
    source = tmp_path / "frames"
    frames = [frame(source, i) for i in range(4)]
    frames[1] = replace(
        frames[1],
        depth_path=depth_file(source / "image-000001.depth.png"),
        camera=Camera(64, 48, 55.0, 55.0, 32.0, 24.0),
    )
    landmarks = Landmarks(
        np.array([[0.1, 0.2, 3.0], [1 / 3, -1e-7, 5], [-1.5, 2, 1e3]]), np.array([7, 3, 12])
    )
    return SceneData(
        tuple(frames), ("train", "val", "test", "train"), landmarks, VISIBILITY_FL, False, "map"
    )


def assert_same(a, b):
    assert (a.split_F, a.metric, a.world_frame) == (b.split_F, b.metric, b.world_frame)
    assert np.array_equal(a.visibility_FL, b.visibility_FL) and a.visibility_FL.dtype == np.uint8
    assert np.array_equal(a.landmarks.xyz_L3, b.landmarks.xyz_L3) and np.array_equal(
        a.landmarks.point_L, b.landmarks.point_L
    )
    assert len(a.frames) == len(b.frames)
    for f, g in zip(a.frames, b.frames):
        assert (f.name, f.camera, f.stamp_ns, f.session, f.source) == (
            g.name,
            g.camera,
            g.stamp_ns,
            g.session,
            g.source,
        )
        assert np.array_equal(f.T_world_camera, g.T_world_camera)
        assert f.image_path.read_bytes() == g.image_path.read_bytes()
        assert (f.depth_path is None) == (g.depth_path is None)


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.unlink()  # images may be links; text never is, but an edit must not reach a source
    path.write_text(text.replace(old, new, 1))


# ---- our data sets


def test_a_data_set_reads_back_equal(tmp_path, data):
    out = tmp_path / "out"
    write_scene_data(out, data)
    assert_same(read_scene_data(out), data)
    assert os.path.samefile(
        out / "image-000000.color.jpg", data.frames[0].image_path
    )  # a link costs nothing
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_the_plain_files_say_the_same_as_the_format(tmp_path, data):
    out = tmp_path / "out"
    write_scene_data(out, data)
    assert (
        out / "image-000001.intrinsics.txt"
    ).read_text() == "64 48 55.0 32.0 24.0 0.0 a b/1.jpg\n"
    T = np.loadtxt(out / "image-000002.pose.txt")
    assert T.shape == (3, 4) and np.allclose(
        T @ [2, 1 / 3, -0.1, 1], 0, atol=1e-12
    )  # the camera's place is its origin
    assert (out / "landmarks-3.txt").read_text().splitlines()[:2] == ["3", "7 0.1 0.2 3.0"]
    assert (out / "visibility-3.txt").read_text() == "1 0 0 1\n0 0 1 1\n0 1 0 1\n"
    assert (out / "unknown-3.txt").read_text() == "0 0 1 0\n0 1 0 0\n1 0 0 0\n"
    assert pickle.loads((out / "train_test_val.pkl").read_bytes()) == {
        "train": ["image-000000.color.jpg", "image-000003.color.jpg"],
        "train_idx": [0, 3],
        "val": ["image-000001.color.jpg"],
        "val_idx": [1],
        "test": ["image-000002.color.jpg"],
        "test_idx": [2],
    }


def test_frames_of_other_names_and_kinds_keep_their_names(tmp_path, data):
    frames = tuple(
        frame(tmp_path / "kitchen", i, name=name, ending=ending)
        for i, (name, ending) in enumerate(
            [("b/x", ".png"), ("a/x", ".jpg"), ("a/y", ".jpg"), ("a/ä z", ".jpg")]
        )
    )
    write_scene_data(tmp_path / "out", replace(data, frames=frames))
    back = read_scene_data(tmp_path / "out")
    assert [f.name for f in back.frames] == ["b/x", "a/x", "a/y", "a/ä z"]
    assert [f.image_path.name for f in back.frames] == [
        f"image-{i:06d}.color.jpg" for i in range(4)
    ]
    assert back.frames[0].image_path.read_bytes()[:2] == b"\xff\xd8"  # the PNG became a JPEG


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), st.floats(1, 1e5), st.floats(1, 1e5))
def test_numbers_read_back_to_the_last_bit(tmp_path_factory, values, fx, fy):
    folder = tmp_path_factory.mktemp("bits")
    T = geometry.make_transform(
        geometry.rotation_from_vector(np.array(values[:3]) % 3), np.array(values[3:])
    )
    camera = Camera(64, 48, fx, fy, values[0], values[1])
    f = Frame("image-000000", image_file(folder / "in" / "image-000000.color.jpg"), camera, T)
    landmarks = Landmarks(np.array([values[3:]]), np.array([2**40]))
    given_data = SceneData((f,), ("test",), landmarks, np.array([[2]], np.uint8), True)
    write_scene_data(folder / "out", given_data)
    assert_same(read_scene_data(folder / "out"), given_data)


def test_images_are_copied_where_they_cannot_be_linked(tmp_path, data, monkeypatch):
    def no_link(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    write_scene_data(tmp_path / "out", data)
    assert_same(read_scene_data(tmp_path / "out"), data)
    assert not os.path.samefile(tmp_path / "out/image-000000.color.jpg", data.frames[0].image_path)


def test_a_smaller_data_set_replaces_a_larger_and_leaves_the_rest(tmp_path, data):
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    for name in ("report.html", "work/x", "image-000099.color.jpg"):
        (out / name).write_text("kept")
    write_scene_data(out, data)
    small = replace(
        data,
        frames=data.frames[:2],
        split_F=("train", "test"),
        visibility_FL=VISIBILITY_FL[:2, :2],
        landmarks=Landmarks(data.landmarks.xyz_L3[:2], data.landmarks.point_L[:2]),
    )
    write_scene_data(out, small)
    assert_same(read_scene_data(out), small)
    assert not list(out.glob("image-000002*")) and not (out / "landmarks-3.txt").exists()
    assert all(
        (out / name).read_text() == "kept"
        for name in ("report.html", "work/x", "image-000099.color.jpg")
    )
    assert data.frames[3].image_path.exists()


def test_a_data_set_written_onto_itself_in_another_order(tmp_path, data):
    out = tmp_path / "out"
    write_scene_data(out, data)
    read = read_scene_data(out)
    images = [f.image_path.read_bytes() for f in read.frames]
    write_scene_data(out, replace(read, frames=read.frames[::-1]))
    back = read_scene_data(out)
    assert [f.image_path.read_bytes() for f in back.frames] == images[::-1]
    assert [f.name for f in back.frames] == [f.name for f in data.frames[::-1]]


def test_files_of_others_are_never_overwritten(tmp_path, data):
    out = tmp_path / "out"
    out.mkdir()
    (out / "image-000002.pose.txt").write_text("mine")
    with pytest.raises(SldError, match="did not write, the first is image-000002.pose.txt"):
        write_scene_data(out, data)
    assert [p.name for p in out.iterdir()] == ["image-000002.pose.txt"]


def test_a_forged_list_deletes_nothing_but_files_of_data_sets(tmp_path, data):
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    mine.write_text("mine")
    write_scene_data(out, data)
    (out / "report.html").write_text("mine")
    values = json.loads((out / "scene.json").read_text())
    values["files"] += [
        "../mine.txt",
        str(mine),
        "report.html",
        "work",
        "..",
        "image-000001.color.jpg/../../mine.txt",
        7,
    ]
    (out / "scene.json").write_text(json.dumps(values))
    write_scene_data(out, replace(data, world_frame="other"))
    assert mine.exists() and (out / "report.html").exists()
    assert read_scene_data(out).world_frame == "other"


def test_an_interrupted_writing_is_recognised_and_can_be_repeated(tmp_path, data, monkeypatch):
    out = tmp_path / "out"
    write_scene_data(out, data)
    moved, real = [], os.replace

    def failing(source, target):
        if Path(target).name.startswith("image"):
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        write_scene_data(out, replace(data, frames=data.frames[::-1]))
    monkeypatch.undo()
    with pytest.raises(SldError, match="half-written"):
        read_scene_data(out)
    write_scene_data(out, data)
    assert_same(read_scene_data(out), data)


HALF = '{"format": "sld scene data", "version": 2, "complete": false, "files": []}'


@pytest.mark.parametrize("text", [None, '{"format": "sld sc', "", HALF])
def test_a_map_whose_scene_json_is_lost_or_damaged_is_written_again(tmp_path, data, text):
    out = tmp_path / "out"
    write_scene_data(out, data)
    (out / "report.html").write_text("mine")
    (out / "scene.json").unlink() if text is None else (out / "scene.json").write_text(text)
    with pytest.raises(SldError, match="did not write|not readable"):
        write_scene_data(out, data)  # no map: the files may be of others
    (out / "sld-map.json").write_text("{}")
    finish = (
        "without its scene.json, or with a damaged one; finish it with `sld map all "
        f"--output {out}`"
    )
    with pytest.raises(SldError, match=f"{finish}|half-written"):
        read_scene_data(out)
    fewer = replace(
        data, frames=data.frames[:3], split_F=data.split_F[:3], visibility_FL=data.visibility_FL[:3]
    )
    write_scene_data(out, fewer)
    assert_same(read_scene_data(out), fewer)
    assert (out / "report.html").exists() and not list(out.glob("image-000003.*"))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"version": 2', '"version": 3', "version 3, this sld reads version 2"),
        ("sld scene data", "x", "does not belong to a data set"),
    ],
)
def test_a_scene_json_of_others_is_kept_in_a_map_too(tmp_path, data, old, new, message):
    write_scene_data(tmp_path / "out", data)
    (tmp_path / "out" / "sld-map.json").write_text("{}")
    edited(tmp_path / "out" / "scene.json", old, new)
    before = (tmp_path / "out" / "scene.json").read_bytes()
    with pytest.raises(SldError, match=message):
        write_scene_data(tmp_path / "out", data)
    assert (tmp_path / "out" / "scene.json").read_bytes() == before


def test_a_data_set_of_an_earlier_version_is_refused_and_can_be_written_again(tmp_path, data):
    write_scene_data(tmp_path / "out", data)
    edited(tmp_path / "out" / "scene.json", '"version": 2', '"version": 1')
    with pytest.raises(SldError, match="version 1, this sld reads version 2; write the data set"):
        read_scene_data(tmp_path / "out")
    write_scene_data(tmp_path / "out", data)
    assert_same(read_scene_data(tmp_path / "out"), data)


def test_a_failure_before_the_move_leaves_what_was_there(tmp_path, data):
    out = tmp_path / "out"
    write_scene_data(out, data)
    before = sorted(p.name for p in out.iterdir())
    broken = replace(data.frames[3], image_path=tmp_path / "broken.png")
    whole = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    broken.image_path.write_bytes(whole[:60])
    with pytest.raises(SldError, match="broken.png"):
        write_scene_data(out, replace(data, frames=(*data.frames[:3], broken)))
    assert sorted(p.name for p in out.iterdir()) == before
    assert_same(read_scene_data(out), data)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(split_F=("train",)), "splits"),
        (dict(split_F=("train", "val", "test", "tset")), "expected one of train, val, test"),
        (dict(visibility_FL=VISIBILITY_FL.T), r"shape \(3, 4\): expected \(4, 3\)"),
    ],
)
def test_data_that_does_not_fit_is_not_written(tmp_path, data, change, message):
    with pytest.raises(SldError, match=message):
        write_scene_data(tmp_path / "out", replace(data, **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(T_world_camera=None), "leave frames without one out"),
        (dict(camera=Camera(640, 480, 500.0, 500, 320, 240)), "is 64x48 but its camera is 640x480"),
        (dict(image_path=Path("/nowhere.jpg")), "cannot be read"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path, data, change, message):
    with pytest.raises(SldError, match=message):
        write_scene_data(
            tmp_path / "out",
            replace(data, frames=(*data.frames[:3], replace(data.frames[3], **change))),
        )


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("scene.json", '"version": 2', '"version": 3', "version 3, this sld reads version 2"),
        ("scene.json", '"width": 64', '"width": 1000000000', "1000000000x48"),
        ("scene.json", '"width": 64', '"width": 32', "is 64x48 but its camera is 32x48"),
        ("scene.json", '"fx": 50.25', '"fx": NaN', "finite"),
        ("scene.json", '"fx": 50.25', '"f": 50.25', "TypeError"),
        ("scene.json", '"camera": 1', '"camera": 9', "IndexError"),
        ("scene.json", '"metric": false', '"metri": false', "'metric'"),
        ("scene.json", '"train",', "", "3 splits of 4 frames"),
        ("scene.json", '"landmarks": 3', '"landmarks": 4', "landmarks-4.txt: cannot be read"),
        ("scene.json", '"sld scene data"', '"other"', "does not belong to a data set of sld"),
        ("scene.json", '"complete": true', '"complete": false', "half-written"),
        ("scene.json", '"frames": [', '"frames": [' + "[" * 100_000, "not readable"),
        ("scene.json", '"depth": null', '"depth": "x.depth.png"', "x.depth.png: cannot be read"),
        ("landmarks-3.txt", "3\n", "4\n", "says 4 landmarks, holds 3"),
        ("landmarks-3.txt", "3\n", "-3\n", "begins with '-3'"),
        ("landmarks-3.txt", "3\n", "9" * 5000 + "\n", "landmarks, holds 3"),
        ("landmarks-3.txt", "0.1", "inf", "2 of them finite"),
        ("landmarks-3.txt", "7 0.1", "12 0.1", "an id comes twice"),
        ("landmarks-3.txt", "7 0.1", "0.1", "id x y z"),
        ("visibility-3.txt", "1 0 0 1\n", "1 0 0\n", "has 4 numbers"),
        ("visibility-3.txt", "1 0 0 1\n", "", "2 lines; expected 3"),
        ("visibility-3.txt", "1 0 0 1\n", "1 0 2 1\n", "3 of them 0 or 1"),
    ],
)
def test_damage_is_named(tmp_path, data, file, old, new, message):
    out = tmp_path / "out"
    write_scene_data(out, data)
    edited(out / file, old, new)
    with pytest.raises(SldError, match=message) as error:
        read_scene_data(out)
    assert (
        "\n" not in str(error.value)
        and str(out) in str(error.value)
        and len(str(error.value)) < 500
    )


def test_damage_to_images_and_missing_files_is_named(tmp_path, data):
    out = tmp_path / "out"
    write_scene_data(out, data)
    for name in (
        "image-000002.color.jpg",
        "image-000001.depth.png",
        "visibility-3.txt",
        "unknown-3.txt",
    ):
        copy = tmp_path / name.split(".")[0]
        shutil.copytree(out, copy)
        (copy / name).unlink()
        with pytest.raises(SldError, match=name):
            read_scene_data(copy)
    with pytest.raises(SldError, match="no such folder"):
        read_scene_data(tmp_path / "nowhere")


def test_no_pickle_is_read_of_our_own_data_sets(tmp_path, data):
    write_scene_data(tmp_path / "out", data)
    (tmp_path / "out" / "train_test_val.pkl").unlink()
    assert_same(read_scene_data(tmp_path / "out"), data)


# ---- pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_runs_nothing(tmp_path, protocol):
    path, sign = tmp_path / "x.pkl", tmp_path / "sign"
    path.write_bytes(pickle.dumps({"train": Evil(sign)}, protocol=protocol))
    with pytest.raises(
        SldError, match=r"x.pkl: a pickle that asks for \w+.system; expected lists, dicts, texts"
    ):
        restricted_pickle.read_plain(path)
    assert not sign.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        np.int64(3),
        {"a": {1, 2}},
        (1, 2),
        b"bytes",
        Path("x"),
    ],
)
def test_other_values_are_refused(value):
    with pytest.raises(SldError, match="expected lists, dicts, texts and numbers only"):
        restricted_pickle.plain_from_bytes(pickle.dumps(value))


@pytest.mark.parametrize("protocol", range(6))
@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.lists(
            st.text()
            | st.integers(-(2**63), 2**63 - 1)
            | st.booleans()
            | st.none()
            | st.floats(allow_nan=False)
        ),
    )
)
def test_plain_pickles_of_every_protocol_read_back(protocol, value):
    assert restricted_pickle.plain_from_bytes(pickle.dumps(value, protocol=protocol)) == value


def billion_laughs():
    value = ["ha"] * 10
    for _ in range(9):
        value = [value] * 10
    return {"train": value, "val": [], "test": []}


def cycle():
    value = []
    value.append(value)
    return {"train": value, "val": [], "test": []}


@pytest.mark.parametrize("values", [billion_laughs(), cycle()])
def test_lists_that_repeat_themselves_are_not_followed(indoor6, values):
    (indoor6 / "train_test_val.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(SldError, match="train_test_val.pkl: a list among the names; expected text"):
        read_scene_data(indoor6)


def nested_tuples():
    """As a key of a dict: their hash takes 2^60 steps."""
    return b"\x80\x02}K\x01" + b"q\x01h\x01\x86" * 60 + b"K\x02s."


@pytest.mark.parametrize(
    "data",
    [
        nested_tuples(),
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",  # a text of 2^60 bytes
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff.",  # a number of 2^31 bytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",  # as many bytes
        b"L" + b"9" * 100_000 + b"L\n.",
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x63.",
        b"\x80\x02a.",
        b"\x80\x02h\x05.",
        b"no pickle at all",
        b"\x80\x02}K\x01]\x85K\x02s.",
        pickle.dumps([1, 2, 3])[:-1],
        b"\x80\x02}]K\x01s.",  # a list as a key
    ],
)
def test_bombs_and_damaged_pickles(data):
    with pytest.raises(SldError) as error:
        restricted_pickle.plain_from_bytes(data)
    assert len(str(error.value)) < 400


def test_large_counts_in_a_pickle_take_no_memory():
    """A reference of number 2^31 - 1, and a frame of 2^60 bytes: both are small pickles of []."""
    for data in (
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].",
    ):
        tracemalloc.start()
        try:
            assert restricted_pickle.plain_from_bytes(data) == []
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()


def test_every_truncation_and_flip_of_a_pickle_is_a_value_or_a_clear_error():
    data = pickle.dumps({"train": ["a", "b"], "train_idx": [0, 300]}, protocol=2)
    random = np.random.default_rng(0)
    for length in range(len(data)):
        with pytest.raises(SldError):
            restricted_pickle.plain_from_bytes(data[:length])
    for _ in range(2000):
        flipped = bytearray(data)
        flipped[random.integers(len(data))] = random.integers(256)
        with suppress(SldError):
            restricted_pickle.plain_from_bytes(bytes(flipped))


def test_a_pickle_of_too_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "x.pkl", "wb") as file:
        file.truncate(restricted_pickle.MAX_BYTES + 1)
    with pytest.raises(SldError, match="expected at most"):
        restricted_pickle.read_plain(tmp_path / "x.pkl")


# ---- data sets of others


@pytest.fixture
def indoor6(tmp_path):
    """Three images of 64x48 with f = 40 and the principal point in the middle. The camera of image
    i stands at (i, 0, 0) and looks along z; image 2 has no pose. Landmark 5 at (0, 0, 4): pixel
    (32, 24) of image 0, (22, 24) of image 1. Landmark 9 at (0, 0, -4): behind. Landmark 6 at (4, 0,
    4): 40 px to the right of the middle in image 0 (outside), 30 in image 1 (inside)."""
    folder = tmp_path / "scene1"
    for i in range(3):
        image_file(folder / f"image-{i:06d}.color.jpg", i)
        (folder / f"image-{i:06d}.intrinsics.txt").write_text(
            f"64 48 40 32 24 0.0001 ../up stairs/{i} x.jpg\n"
        )
        if i < 2:
            (folder / f"image-{i:06d}.pose.txt").write_text(f"1 0 0 {-i}\n0 1 0 0\n0 0 1 0\n")
    for kind, text in (
        ("landmarks", "3\n5 0 0 4\n9 0 0 -4\n6 4 0 4\n"),
        ("visibility", "1 0 0\n0 0 0\n0.0e+00 1.0e+00 0.0e+00\n"),
    ):
        (folder / kind).mkdir()
        (folder / kind / f"{kind}-3{'' if kind == 'landmarks' else '_depth'}.txt").write_text(text)
    (folder / "train_test_val.pkl").write_bytes(
        pickle.dumps(
            {
                "train": ["image-000001.color.jpg", "image-000000.color.jpg"],
                "train_idx": [1, 0],
                "val": [],
                "val_idx": [],
                "test": ["image-000002.color.jpg"],
                "test_idx": [2],
            }
        )
    )
    return folder


def test_indoor6_is_read_by_its_plain_files(indoor6, caplog):
    data = read_scene_data(indoor6)
    assert "1 of 3 images" in caplog.text
    assert [f.name for f in data.frames] == ["image-000000", "image-000001"] and data.split_F == (
        "train",
        "train",
    )
    assert data.frames[1].camera == Camera(64, 48, 40.0, 40.0, 32.0, 24.0)
    assert np.array_equal(
        data.frames[1].T_world_camera, geometry.make_transform(np.eye(3), np.array([1.0, 0, 0]))
    )
    assert data.frames[0].source == "../up stairs/0 x.jpg" and data.frames[0].session == "up stairs"
    assert data.landmarks.point_L.tolist() == [5, 9, 6] and data.landmarks.xyz_L3.tolist() == [
        [0, 0, 4],
        [0, 0, -4],
        [4, 0, 4],
    ]
    # seen, behind, outside; inside and not seen (unknown), behind, seen
    assert data.visibility_FL.tolist() == [[1, 0, 0], [2, 0, 1]]
    assert data.metric and data.world_frame == ""


@pytest.mark.parametrize(
    "values",
    [
        {"train": ["../../etc/x.color.jpg"], "val": [], "test": []},
        {"train": ["/etc/x.color.jpg"], "val": [], "test": []},
        {"train": [["image-000000.color.jpg"]], "val": [], "test": []},
        {"train": ["image-000000.color.jpg"] * 2, "val": [], "test": []},
        {"train": ["image-000000.color.jpg"], "val": []},
        {"train": ["image-000000.color.jpg"], "train_idx": [], "val": [], "test": []},
        {"train": [], "val": [], "test": []},
        ["image-000000.color.jpg"],
    ],
)
def test_splits_that_do_not_fit(indoor6, values):
    (indoor6 / "train_test_val.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(SldError, match="train_test_val.pkl"):
        read_scene_data(indoor6)


def test_indoor6_becomes_ours_and_stays_equal(indoor6, tmp_path):
    data = read_scene_data(indoor6)
    write_scene_data(tmp_path / "ours", data)
    assert_same(read_scene_data(tmp_path / "ours"), data)
    with pytest.raises(SldError, match="that sld did not write"):
        write_scene_data(indoor6, data)


def test_ours_without_scene_json_is_read_by_its_plain_files(tmp_path, data):
    K1, K2 = data.frames[0].camera, data.frames[1].camera
    xyz = np.array([[0, 0, 4.0], [0, 0, -4], [0.1, 0.1, 4]])

    def moved(i):
        return geometry.make_transform(np.eye(3), np.array([i / 10, 0, 0]))

    frames = tuple(replace(f, T_world_camera=moved(i)) for i, f in enumerate(data.frames))
    visibility = np.array([[1, 0, 2], [2, 0, 1], [1, 0, 1], [1, 0, 1]], np.uint8)
    write_scene_data(
        tmp_path / "out",
        replace(
            data, frames=frames, landmarks=Landmarks(xyz, np.arange(3)), visibility_FL=visibility
        ),
    )
    (tmp_path / "out" / "scene.json").unlink()
    back = read_scene_data(tmp_path / "out")
    assert back.visibility_FL.tolist() == visibility.tolist() and back.split_F == data.split_F
    f = np.sqrt(K1.fx * K1.fy)
    assert [g.camera for g in back.frames[:2]] == [Camera(64, 48, f, f, K1.cx, K1.cy), K2]


def test_a_lens_with_distortion_is_refused_or_undistorted(indoor6, tmp_path):
    # the corner is at (0.8, 0.6), radius 1: kappa moves it by 40 px times kappa
    edited(indoor6 / "image-000001.intrinsics.txt", "0.0001", "-0.05")
    image_file(indoor6 / "image-000001.color.jpg", 5, (64, 48))
    depth_file(indoor6 / "image-000001.depth.png", 2000)
    with pytest.raises(SldError, match="kappa -0.05 moves the corner by 2.0 px"):
        read_scene_data(indoor6)
    data = read_scene_data(indoor6, undistorted=tmp_path / "flat")
    assert (
        data.frames[0].image_path.parent == indoor6
        and data.frames[1].image_path.parent == tmp_path / "flat"
    )
    given_image, flat = (
        cv2.imread(str(p)) for p in (indoor6 / "image-000001.color.jpg", data.frames[1].image_path)
    )
    assert (
        np.abs(given_image[23:25, 31:33].astype(int) - flat[23:25, 31:33]).max() < 12
    )  # the middle stays
    assert np.abs(given_image.astype(int) - flat).max() > 20  # the rest does not
    depth = cv2.imread(str(data.frames[1].depth_path), cv2.IMREAD_UNCHANGED)
    assert depth[24, 32] == 2000 and set(np.unique(depth)) <= {0, 2000}
    stamp = data.frames[1].image_path.stat().st_mtime_ns
    assert (
        read_scene_data(indoor6, undistorted=tmp_path / "flat")
        .frames[1]
        .image_path.stat()
        .st_mtime_ns
        == stamp
    )


def test_poses_and_landmarks_are_read_without_undistorting(indoor6):
    edited(indoor6 / "image-000001.intrinsics.txt", "0.0001", "-0.05")
    data = read_scene_data(indoor6, images=False)
    assert data.frames[1].image_path == indoor6 / "image-000001.color.jpg"


@pytest.mark.parametrize("size, fits", [((32, 24), True), ((128, 96), True), ((48, 48), False)])
def test_depth_of_a_distorted_image_has_any_resolution_of_its_shape(indoor6, tmp_path, size, fits):
    edited(indoor6 / "image-000001.intrinsics.txt", "0.0001", "-0.2")
    ramp = np.tile(np.linspace(1000, 3000, size[0]).astype(np.uint16), (size[1], 1))
    cv2.imwrite(str(indoor6 / "image-000001.depth.png"), ramp)
    if not fits:
        with pytest.raises(SldError, match="depth is 48x48 but the image is 64x48"):
            read_scene_data(indoor6, undistorted=tmp_path / "flat")
        return
    frame = read_scene_data(indoor6, undistorted=tmp_path / "flat").frames[1]
    depth = cv2.imread(str(frame.depth_path), cv2.IMREAD_UNCHANGED).astype(int)
    assert depth.shape == (size[1], size[0]) and set(np.unique(depth)) <= {0, *ramp[0].tolist()}
    # x = 0.7 (60 of 64 px) shows x (1 - 0.2 * 0.49) = 0.6314: pixel 57.3, nine tenths of the width
    row, column = size[1] // 2, int(60 * size[0] / 64)
    assert abs(depth[row, column] - ramp[0, int(57.3 * size[0] / 64)]) <= 2 * 2000 / size[0]


def test_undistorted_points_lie_where_the_pinhole_camera_has_them(indoor6, tmp_path):
    """A white dot seen at x (1 + kappa |x|^2) must move to x. x = (0.5, 0): 20 px right of the
    middle; kappa -0.2: 19."""
    edited(indoor6 / "image-000001.intrinsics.txt", "0.0001", "-0.2")
    image = np.zeros((48, 64, 3), np.uint8)
    image[22:26, 32 + 17 : 32 + 21] = 255  # centred on (51, 24), corner origin
    cv2.imwrite(str(indoor6 / "image-000001.color.jpg"), image)
    flat = cv2.imread(
        str(read_scene_data(indoor6, undistorted=tmp_path / "flat").frames[1].image_path)
    ).astype(float)[..., 0]
    flat[flat < 60] = 0
    x = (flat.sum(0) * (np.arange(64) + 0.5)).sum() / flat.sum()
    assert abs(x - 52.0) < 0.25


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("image-000001.pose.txt", "1 0 0", "nan 0 0", "11 finite"),
        ("image-000001.pose.txt", "1 0 0", "2 0 0", "no rotation"),
        ("image-000001.pose.txt", "1 0 0", "-1 0 0", "no rotation"),
        ("image-000001.pose.txt", "\n", " 0 0\n", "14 numbers .* expected 3x4"),
        ("image-000001.pose.txt", "1 0 0", "one 0 0", "could not convert"),
        (
            "image-000001.intrinsics.txt",
            "64 48",
            "32 24",
            "is 64x48 but image-000001.intrinsics.txt is for 32x24",
        ),
        ("image-000001.intrinsics.txt", "0.0001", "nan", "kappa nan"),
        ("image-000001.intrinsics.txt", "64 48", "-64 48", "-64x48"),
        ("visibility/visibility-3_depth.txt", "1 0 0", "1 0 0 0", "line 2 has 3 numbers"),
        ("landmarks/landmarks-3.txt", "3\n", "1000000000000\n", "holds 3"),
    ],
)
def test_damage_to_data_sets_of_others_is_named(indoor6, file, old, new, message):
    edited(indoor6 / file, old, new)
    with pytest.raises(SldError, match=message):
        read_scene_data(indoor6)


def test_columns_and_poses_that_do_not_fit_are_noticed(indoor6):
    (indoor6 / "visibility/visibility-3_depth.txt").write_text("1 0\n0 0\n0 1\n")
    with pytest.raises(SldError, match="has 2 columns, train_test_val.pkl asks for column 0 to 2"):
        read_scene_data(indoor6)
    (indoor6 / "visibility/visibility-3_depth.txt").write_text("0 1 0\n1 1 0\n1 0 0\n")
    with pytest.raises(SldError, match="3 of 4 landmarks seen lie outside"):
        read_scene_data(indoor6)


def test_several_landmark_files_need_a_choice(indoor6):
    for kind in ("landmarks", "visibility"):
        shutil.copy(next((indoor6 / kind).iterdir()), indoor6 / kind / f"{kind}-300.txt")
    with pytest.raises(
        SldError, match="2 files landmarks-.*landmarks/landmarks-3.txt, landmarks/landmarks-300.txt"
    ):
        read_scene_data(indoor6)
    assert len(read_scene_data(indoor6, "landmarks/landmarks-300.txt").landmarks) == 3
    assert (
        len(
            read_scene_data(
                indoor6, "landmarks/landmarks-300.txt", "visibility/visibility-3_depth.txt"
            ).landmarks
        )
        == 3
    )
    with pytest.raises(SldError, match="leads out"):
        read_scene_data(indoor6, "../landmarks-3.txt")


# ---- splits


def timeline(counts, step=0.1, offset=0.0):
    out = []
    for s, n in enumerate(counts):
        for i in range(n):
            T = geometry.make_transform(np.eye(3), np.array([i * step, 0, s * offset]))
            out.append(Frame(f"{s}-{i}", Path("x"), CAMERA, T, stamp_ns=i, session=f"s{s}"))
    return out


def runs(labels):
    return [(label, sum(1 for _ in group)) for label, group in itertools.groupby(labels)]


def test_one_session_is_split_into_runs_with_validation_around_the_test():
    labels = split(timeline([200]), SplitConfig(val=0.1, test=0.1, chunk=10))
    assert [labels.count(s) for s in ("train", "val", "test")] == [160, 20, 20]
    block = [("val", 5), ("test", 10), ("val", 5)]
    assert runs(labels) == [("train", 40), *block, ("train", 80), *block, ("train", 40)]


def test_the_order_in_which_frames_come_does_not_matter():
    frames = timeline([90, 30])
    order = np.random.default_rng(0).permutation(len(frames))
    labels = split(frames, SplitConfig(val=0.1, test=0.1))
    assert split([frames[i] for i in order], SplitConfig(val=0.1, test=0.1)) == tuple(
        labels[i] for i in order
    )


def test_three_sessions_hold_out_a_whole_one():
    frames = timeline([100, 40, 120])
    labels = split(frames, SplitConfig(val=0.1, test=0.1))
    assert {f.session for f, s in zip(frames, labels) if s == "test"} == {"s1"}
    assert labels.count("test") == 40 and labels.count("val") == 26


def test_a_session_that_saw_another_place_is_not_held_out():
    frames = timeline([100, 40, 120], offset=50.0)
    labels = split(frames, SplitConfig(val=0.1, test=0.1))
    assert all(labels[i] != s for i, s in ((0, "test"), (-1, "test")))
    assert labels.count("test") == 26
    assert not any(
        {s for f, s in zip(frames, labels) if f.session == name} == {"test"}
        for name in ("s0", "s1", "s2")
    )


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0, 0.33),
    st.floats(0, 0.33),
    st.integers(1, 30),
)
def test_every_split_is_whole_and_trains_on_most(counts, val, test, chunk):
    frames = timeline(counts)
    labels = split(frames, SplitConfig(val=val, test=test, chunk=chunk))
    assert len(labels) == len(frames) and set(labels) <= {"train", "val", "test"}
    assert labels.count("train") >= len(frames) / 3 - 1
    assert test > 0 or "test" not in labels


# ---- COLMAP models


@pytest.fixture
def model(tmp_path):
    source = tmp_path / "frames"
    frames = [
        frame(
            source, i, name=f"hall {i % 2}/im {i}", session=f"hall {i % 2}", stamp_ns=0, source=""
        )
        for i in range(3)
    ]
    frames[2] = replace(
        frames[2],
        camera=Camera(64, 48, 40.0, 40, 32, 24),
        depth_path=depth_file(source / "hall 0/im 2.depth.png"),
    )
    points = np.array([[0, 0, 4.0], [1 / 3, 0, 5]])
    return Reconstruction(
        tuple(frames),
        points,
        np.array([0.5, 0.25]),
        np.array([0, 0, 1, 1, 1]),
        np.array([0, 2, 2, 1, 0]),
        np.array([[1.5, 2], [3, 4], [5, 6], [7, 1 / 3], [9, 10]]),
    )


def write_text(folder, model):
    """As text, which pycolmap writes."""
    import pycolmap

    write_model(folder / "binary", model, folder / "frames")
    (folder / "model").mkdir()
    pycolmap.Reconstruction(folder / "binary").write_text(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("text", [False, True])
def test_cameras_and_poses_of_a_model_read_back(tmp_path, model, text):
    if text:
        write_text(tmp_path, model)
    else:
        write_model(tmp_path / "model", model, tmp_path / "frames")
    cameras, images = read_cameras(tmp_path / "model"), read_images(tmp_path / "model")
    assert len(cameras) == 2
    for frame, image in zip(model.frames, sorted(images, key=lambda i: i.name[-11]), strict=True):
        assert image.name == f"{frame.name}.color.jpg"
        assert cameras[image.camera].undistortion(64, 48).camera == frame.camera
        assert np.allclose(frame.T_world_camera, image.T_world_camera, atol=1e-14)


def test_a_model_is_replaced_by_the_next(tmp_path, model):
    write_model(tmp_path / "model", model, tmp_path / "frames")
    fewer = replace(model, frames=model.frames[:2], **NO_POINTS)
    write_model(tmp_path / "model", fewer, tmp_path / "frames")
    assert len(read_images(tmp_path / "model")) == 2
    with pytest.raises(SldError, match="lies outside of"):
        write_model(tmp_path / "model", model, tmp_path / "model")


def test_pycolmap_reads_the_model_the_same(tmp_path, model):
    import pycolmap

    write_model(tmp_path / "model", model, tmp_path / "frames")
    theirs = pycolmap.Reconstruction(tmp_path / "model")
    image = theirs.image(2)
    assert image.name == "hall 1/im 1.color.jpg" and np.allclose(
        theirs.cameras[image.camera_id].params, [50.25, 50.5, 31.7, 24.1]
    )
    assert np.allclose(image.projection_center(), [1, 1 / 3, -0.1])
    assert theirs.compute_num_observations() == 5


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin"])
def test_every_truncation_and_forged_count_of_a_model_is_named(tmp_path, model, file):
    write_model(tmp_path / "model", model, tmp_path / "frames")
    path = tmp_path / "model" / file
    data = path.read_bytes()
    forged = (
        [data[:n] for n in range(0, len(data), 3)]
        + [struct.pack("<Q", n) + data[8:] for n in (0, 1, 2**33, 2**63)]
        + [data + b"x"]
    )
    for content in forged:
        path.write_bytes(content)
        with pytest.raises(SldError, match=f"{tmp_path}/model"):
            read_cameras(tmp_path / "model"), read_images(tmp_path / "model")


def test_flipped_bytes_of_a_model_never_end_in_another_error(tmp_path, model):
    write_model(tmp_path / "model", model, tmp_path / "frames")
    random = np.random.default_rng(0)
    for file in ("cameras.bin", "images.bin") * 60:
        path = tmp_path / "model" / file
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[random.integers(len(data))] = random.choice([0, 1, 0x7F, 0xFF])
        path.write_bytes(bytes(flipped))
        with suppress(SldError):
            read_cameras(tmp_path / "model")
            read_images(tmp_path / "model")
        path.write_bytes(data)


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("cameras.txt", "PINHOLE", "FOV", "of model FOV; expected one of SIMPLE_PINHOLE"),
        ("cameras.txt", "PINHOLE", "OPENCV", "a OPENCV camera with 4 parameters"),
        ("cameras.txt", "64 48", "64000 48", "64000x48"),
        ("cameras.txt", "50.25", "nan", "finite"),
        ("cameras.txt", "50.25", "fifty", "damaged"),
        ("images.txt", "hall 1/im 1", "../hall 1/im 1", "leads out of"),
        ("images.txt", "hall 1/im 1", "/etc/im 1", "leads out of"),
        ("images.txt", "hall 1/im 1", "hall 0/im 0", "3 images with 2 names"),
    ],
)
def test_damage_to_a_model_of_text_is_named(tmp_path, model, file, old, new, message):
    edited(write_text(tmp_path, model) / file, old, new)
    with pytest.raises(SldError, match=message) as error:
        from_colmap(tmp_path / "model", tmp_path / "frames", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_frame_set_of_a_model(tmp_path, model):
    write_model(tmp_path / "model", model, tmp_path / "frames")
    shutil.rmtree(tmp_path / "frames" / "hall 1")
    frame_set = from_colmap(tmp_path / "model", tmp_path / "frames", tmp_path / "out")
    assert [f.source for f in frame_set.frames] == [
        "hall 0/im 0.color.jpg",
        "hall 0/im 2.color.jpg",
    ]
    assert [f.session for f in frame_set.frames] == ["hall 0", "hall 0"]
    assert [f.depth_path for f in frame_set.frames] == [None, None]  # of an unknown scale
    for frame, given_frame in zip(frame_set.frames, model.frames[::2], strict=True):
        assert np.allclose(frame.T_world_camera, given_frame.T_world_camera, atol=1e-14)
        assert frame.image_path.read_bytes() == given_frame.image_path.read_bytes()
        assert frame.camera == given_frame.camera
    ((name, reason),) = frame_set.rejected.items()
    assert name == "hall 1/im 1.color.jpg" and "cannot be read" in reason
    scaled = from_colmap(
        tmp_path / "model", tmp_path / "frames", tmp_path / "metric", metres_per_unit=2.0
    ).frames
    assert np.allclose(scaled[1].T_world_camera[:3, 3], [4, 2 / 3, -0.2])
    assert (cv2.imread(str(scaled[1].depth_path), cv2.IMREAD_UNCHANGED) == 1500).all()


@pytest.mark.parametrize(
    "line, moved_px",
    [
        # x = (0.5, 0) of f = 40 is 20 px right of the middle; kappa -0.2 moves it to 19
        ("SIMPLE_RADIAL 64 48 40 32 24 -0.2", 19.0),
        ("RADIAL 64 48 40 32 24 -0.2 0", 19.0),
        ("OPENCV 64 48 40 40 32 24 -0.2 0 0 0", 19.0),
        ("FULL_OPENCV 64 48 40 40 32 24 -0.2 0 0 0 0 0 0 0", 19.0),
        # theta = atan 0.5 = 0.46365 rad; 40 theta = 18.55, and 40 theta (1 + 0.1 theta^2) = 18.94
        ("OPENCV_FISHEYE 64 48 40 40 32 24 0 0 0 0.00001", 18.55),
        ("SIMPLE_RADIAL_FISHEYE 64 48 40 32 24 0.1", 18.94),
        ("RADIAL_FISHEYE 64 48 40 32 24 0.1 0", 18.94),
    ],
)
def test_images_of_distorted_cameras_are_undistorted(tmp_path, line, moved_px):
    image = np.zeros((48, 64, 3), np.uint8)
    x = np.arange(64) + 0.5 - (32 + moved_px)
    y = np.arange(48) + 0.5 - 24
    image[:] = (255 * np.exp(-(x[None] ** 2 + y[:, None] ** 2) / 4))[..., None]
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), image)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cameras.txt").write_text(f"# comment\n7 {line}\n")
    (tmp_path / "model" / "images.txt").write_text("1 1 0 0 0 0 0 0 7 a.png\n\n")
    (frame,) = from_colmap(tmp_path / "model", tmp_path / "photos", tmp_path / "out").frames
    flat = cv2.imread(str(frame.image_path)).astype(float)[..., 0]
    flat[flat < 20] = 0
    assert (flat.sum(0) * (np.arange(64) + 0.5)).sum() / flat.sum() == pytest.approx(52, abs=0.25)


# ---- 7-Scenes


@pytest.fixture
def seven_scenes(tmp_path):
    """Two sequences of two images, without intrinsics."""
    folder = tmp_path / "chess"
    for sequence, i in itertools.product((1, 2), range(2)):
        stem = folder / f"seq-{sequence:02d}" / f"frame-{i:06d}"
        image_file(stem.with_name(stem.name + ".color.png"), i, (640, 480))
        np.savetxt(stem.with_name(stem.name + ".pose.txt"), pose(10 * sequence + i))
    (folder / "TrainSplit.txt").write_text("sequence2\r\n")
    (folder / "TestSplit.txt").write_text("sequence1\n")
    return folder


def test_the_splits_of_seven_scenes(seven_scenes, tmp_path, caplog):
    frames = read_frames(seven_scenes, split="train")
    assert [f.name for f in frames] == ["seq-02/frame-000000", "seq-02/frame-000001"]
    assert [f.session for f in frames] == ["seq-02"] * 2
    assert np.allclose(frames[1].T_world_camera, pose(21))
    assert frames[0].camera == Camera(640, 480, 525.0, 525.0, 320.0, 240.0)
    assert caplog.text.count("its camera is taken to be that of 7-Scenes, f = 525 px") == 1
    assert {f.session for f in read_frames(seven_scenes, split="test")} == {"seq-01"}
    assert len(read_frames(seven_scenes)) == 4
    (tmp_path / "list.txt").write_text("seq-01/frame-000001\nsequence2\n")
    assert [f.name for f in read_frames(seven_scenes, tmp_path / "list.txt")] == [
        "seq-01/frame-000001",
        "seq-02/frame-000000",
        "seq-02/frame-000001",
    ]


def test_intrinsics_beside_seven_scenes_are_used(seven_scenes, caplog):
    np.savetxt(
        seven_scenes / "camera-intrinsics.txt", [[500, 0, 319.5], [0, 501, 239.5], [0, 0, 1]]
    )
    assert read_frames(seven_scenes)[0].camera == Camera(640, 480, 500.0, 501.0, 320.0, 240.0)
    assert not caplog.records


def test_depth_of_the_original_seven_scenes_is_aligned_and_has_no_65535(seven_scenes, tmp_path):
    depth = np.full((480, 640), 65535, np.uint16)
    depth[240:, 320:] = 2000
    depth[:, 600:] = 0
    cv2.imwrite(str(seven_scenes / "seq-01/frame-000000.depth.png"), depth)
    frames = read_frames(seven_scenes, split="test", depths=tmp_path / "depths")
    assert frames[1].depth_path is None
    read = cv2.imread(str(frames[0].depth_path), cv2.IMREAD_UNCHANGED)
    # a depth at the right edge of 2000 ends at 320 + 280 * 525 / 585 = 571.3, and begins in the
    # middle
    assert read[300, 320] == read[300, 570] == 2000
    assert read[300, 572] == read[300, 319] == read[239, 400] == 0
    assert set(np.unique(read)) == {0, 2000}
    assert read_frames(seven_scenes, split="test")[0].depth_path is None


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("TrainSplit.txt", "../../x\n", "no such image"),
        ("TrainSplit.txt", "sequence9\n", "seq-09: holds no frame"),
        ("TrainSplit.txt", "", "holds no frames"),
        ("seq-02/frame-000000.pose.txt", "nan " * 16, "0 finite"),
        ("seq-02/frame-000000.color.png", "no image", "neither JPEG nor PNG"),
        ("camera-intrinsics.txt", "1 2 3", "expected a 3x3"),
    ],
)
def test_damage_to_seven_scenes_is_named(seven_scenes, file, content, message):
    (seven_scenes / file).write_text(content)
    with pytest.raises(SldError, match=message):
        read_frames(seven_scenes, split="train")


def test_images_of_another_size_need_intrinsics(seven_scenes):
    image_file(seven_scenes / "seq-01/frame-000000.color.png", 0, (320, 240))
    with pytest.raises(SldError, match="images of 320x240; expected 640x480 as in 7-Scenes, or"):
        read_frames(seven_scenes)


SHARED = Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_a_recorded_room_goes_through_every_format(tmp_path):
    frames = tuple(read_frames(SHARED / "office")[:40])
    labels = split(frames, SplitConfig(val=0.1, test=0.1))
    landmarks = Landmarks(np.random.default_rng(0).normal(size=(200, 3)), np.arange(200))
    data = SceneData(
        frames,
        labels,
        landmarks,
        np.random.default_rng(1).integers(0, 3, (40, 200)).astype(np.uint8),
        True,
        "map",
    )
    write_scene_data(tmp_path / "out", data)
    assert_same(read_scene_data(tmp_path / "out"), data)
    write_model(tmp_path / "model", Reconstruction(frames, **NO_POINTS), SHARED / "office")
    assert sorted(i.name for i in read_images(tmp_path / "model")) == sorted(
        f"{f.name}.color.jpg" for f in frames
    )


def test_names_of_images_hold_no_folders():
    for name in (
        "../x.color.jpg",
        "/x.color.jpg",
        "a/x.color.jpg",
        "..",
        "x.jpg",
        "",
        ".color.jpg",
        "x\0.color.jpg",
        7,
        None,
    ):
        with pytest.raises(SldError):
            plain_files.checked_name(name, Path("x.pkl"))
