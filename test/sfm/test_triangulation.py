"""Tracks from given poses: what a seed holds still, and what happens on a full disk."""

import shutil
import sqlite3
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from small_room import CAMERA, sway, write_photos

from sld_core.config.scene import LandmarkConfig, SceneConfig, TrackConfig
from sld_core.landmarks import selection
from sld_core.sfm import features, triangulation
from sld_core.sfm.colmap import errors_named
from sld_core.sfm.reconstruction_file import ARRAYS
from sld_core.training import training_set
from sld_core.types import Frame, SldError

POSES = sway(12)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Frames whose given positions are off by some centimetres, so that poses are refined."""
    folder = write_photos(tmp_path_factory.mktemp("photos"), POSES)
    off = np.random.default_rng(0).normal(0, 0.03, (len(POSES), 3))
    given = [T.copy() for T in POSES]
    for T, by in zip(given, off):
        T[:3, 3] += by
    return [Frame(str(i), folder / f"img-{i:03d}.jpg", CAMERA, T) for i, T in enumerate(given)]


def test_a_seed_gives_the_same_landmarks_in_the_same_order(frames, tmp_path):
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        results.append(triangulation.reconstruct(frames, tmp_path / name, TrackConfig(), seed=3))
    first, second = results
    assert not np.array_equal(first.frames[5].T_world_camera, frames[5].T_world_camera)  # refined
    for f, g in zip(first.frames, second.frames, strict=True):
        assert np.array_equal(f.T_world_camera, g.T_world_camera)
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    config = LandmarkConfig(count=100, min_views=4)
    chosen, again = (selection.select(r, config) for r in results)
    assert len(chosen) == 100 and np.array_equal(chosen.xyz_L3, again.xyz_L3)


def test_points_are_in_the_order_of_their_first_observation(frames, tmp_path):
    found = triangulation.reconstruct(frames, tmp_path, TrackConfig())
    first = np.searchsorted(found.obs_point_M, np.arange(len(found.points_N3)))
    x, y = found.obs_xy_M2[first].T
    assert np.array_equal(np.lexsort((y, x, found.obs_frame_M[first])), np.arange(len(first)))
    assert (np.diff(found.obs_point_M) >= 0).all()


def test_frames_of_two_cameras_keep_theirs(frames, tmp_path):
    other = replace(CAMERA, fx=CAMERA.fx + 1e-3)
    mixed = [replace(f, camera=other) if i % 2 else f for i, f in enumerate(frames)]
    found = triangulation.reconstruct(mixed, tmp_path, TrackConfig(refine_poses=False))
    assert [f.camera for f in found.frames] == [f.camera for f in mixed]
    with pycolmap.Database.open(tmp_path / "features.db") as db:
        names = [image.name for image in db.read_all_images() if image.camera_id == 2]
    assert names == [f.image_path.name for f in mixed[1::2]]


@pytest.mark.parametrize("metric", [True, False])
def test_depth_takes_part_in_refined_poses_of_metric_frames(frames, tmp_path, monkeypatch, metric):
    """What it does to them is tested beside depth_bundle_adjustment. On the desk, where the camera
    turns on the spot, the map was 15 % too small without it."""
    asked = []

    def held(model, renew, frame_of, config):
        asked.append(set(frame_of))
        return renew(model), ["depth images took part"]

    monkeypatch.setattr(triangulation, "held_by_depth", held)
    config = SceneConfig(landmarks=LandmarkConfig(count=100, min_views=4))
    training_set.from_frames(frames, tmp_path, config, None, metric=metric)
    assert asked == ([{f"img-{i:03d}.jpg" for i in range(len(POSES))}] if metric else [])


def once(frames, work):
    return triangulation.reconstruct_once(frames, work, TrackConfig(), 0, lambda _: None)


def test_a_full_disk_is_told_before_colmap_meets_it(frames, tmp_path, monkeypatch):
    """In a thread of COLMAP it would end the process."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    words = r"5 MB of disk space are free, and structure from motion needs 9 MB"
    with pytest.raises(SldError, match=f"{tmp_path}: {words}"):  # 12 images, 2,500 features each
        once(frames, tmp_path)


def test_a_work_folder_that_is_lost_is_one_clear_error(frames, tmp_path, monkeypatch):
    real = features.match

    def lose(database, *args):
        shutil.rmtree(database.parent)
        real(database, *args)

    monkeypatch.setattr(features, "match", lose)
    (tmp_path / "work").mkdir()
    with pytest.raises(SldError, match="work: cannot be used .No such file or directory"):
        once(frames, tmp_path / "work")


def test_an_error_of_colmap_is_one_clear_error(frames, tmp_path, monkeypatch):
    def fail(*_, **__):
        pycolmap.Database.open(tmp_path / "none" / "features.db")  # sqlite cannot open it

    monkeypatch.setattr(pycolmap, "triangulate_points", fail)
    with pytest.raises(
        SldError, match=rf"{tmp_path}: structure from motion failed .*MB are free in"
    ):
        once(frames, tmp_path)


def test_errors_of_colmap_and_sqlite_name_the_folder_and_its_room(tmp_path):
    work = tmp_path / "sfm"
    words = r"sfm: structure from motion failed \(.*\); \d+ MB are free in "
    with pytest.raises(SldError, match=words), errors_named(work):
        pycolmap.Database.open(work / "gone" / "features.db")
    full, lost = sqlite3.OperationalError("database is full"), ValueError("ExistsDir(path)")
    with pytest.raises(SldError, match=words + str(tmp_path)), errors_named(work):
        raise full
    # COLMAP raises ValueError where a folder is missing
    with pytest.raises(SldError, match=words), errors_named(work):
        raise lost
    work.mkdir()
    with pytest.raises(ValueError, match="ExistsDir"), errors_named(work):
        raise lost  # else it is a mistake of ours
