"""Structure from motion without poses: which pairs are matched, what comes out of rendered images,
and how tracks grow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from small_room import CAMERA, against, shoot, sway, write, write_photos

from sld_core import cli, geometry
from sld_core.camera.calibration import guessed_camera
from sld_core.camera.images import read_image
from sld_core.config.mapping import SfmConfig
from sld_core.data.frame_set import read_frame_set
from sld_core.data.sources import from_photos
from sld_core.sfm import features, mapper, pairs, solve
from sld_core.sfm.colmap import drop_if_damaged, quiet
from sld_core.sfm.pair_agreement import agreement
from sld_core.sfm.track_completion import complete_tracks
from sld_core.types import Frame, FrameSet, SldError

POSES = sway(14)


# which pairs --------------------------------------------------------------------------------------


def plain_frames(*sessions, stamps=None):
    return [
        Frame(f"image-{i:06d}", f"{i}.jpg", CAMERA, None, None, stamps[i] if stamps else i, s)
        for i, s in enumerate(sessions)
    ]


def test_neighbours_are_of_one_session_and_by_stamp():
    # the next one and, for wide baselines, the one after it
    assert pairs.neighbours(plain_frames("a", "a", "b", "a", "b"), 1) == [
        (0, 1),
        (0, 3),
        (1, 3),
        (2, 4),
    ]
    # in the order of time they are 2, 0, 3, 1: all pairs within two steps but (1, 2)
    assert pairs.neighbours(plain_frames("", "", "", "", stamps=[10, 30, 0, 20]), 1) == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 3),
        (2, 3),
    ]
    assert pairs.neighbours(plain_frames(*"aaaaaaaaaa"), 2) == sorted(
        (i, i + step) for step in (1, 2, 4, 8) for i in range(10 - step)
    )
    assert pairs.neighbours(plain_frames("a"), 5) == []


def likeness_of(degrees):
    angle = np.radians(degrees)
    return np.cos(angle[:, None] - angle)


def test_closest_by_likeness():
    likeness = likeness_of(np.array([0, 10, 90, 105, 190]))
    assert pairs.closest(likeness, 1) == [(0, 1), (2, 3), (3, 4)]
    assert pairs.closest(likeness, 4) == pairs.closest(likeness, 400) == pairs.all_pairs(5)
    assert pairs.closest(likeness, 0) == pairs.closest(likeness[:1, :1], 3) == []
    likeness[0, 1] = likeness[1, 0] = -np.inf  # never wanted
    assert pairs.closest(likeness, 1) == [(0, 2), (1, 2), (2, 3), (3, 4)]


def test_closest_of_every_other_pass():
    """Three times past the same four views: each has its best in each other pass, no neighbour in
    time."""
    likeness = likeness_of(np.array([0, 20, 40, 60] * 3) + np.repeat([0, 1, 2], 4))
    found = pairs.closest(likeness, 2, gap=3)
    assert {(i, i + 4) for i in range(8)} <= set(found) and {(i, i + 8) for i in range(4)} <= set(
        found
    )
    assert all(j - i >= 3 for i, j in found)


def test_bridges_join_what_matches_left_in_parts():
    likeness = likeness_of(np.array([0, 10, 90, 105, 190]))
    verified = np.zeros((5, 5), bool)
    for i, j in ((0, 1), (2, 3), (3, 4)):
        verified[i, j] = verified[j, i] = True
    # parts 0-1 and 2-3-4: each with the one most like it in the other part
    assert pairs.bridges(likeness, verified, 1) == [(0, 2), (0, 4), (1, 2), (1, 3)]
    verified[1, 2] = verified[2, 1] = True
    assert pairs.bridges(likeness, verified, 1) == []


def test_auto_matches_all_of_few_images():
    assert (
        pairs.all_pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        and len(pairs.all_pairs(60)) == 1770
    )  # 60 * 59 / 2
    for matching, few, many in (
        ("auto", True, False),
        ("exhaustive", True, True),
        ("sequential", False, False),
    ):
        config = SfmConfig(matching=matching, exhaustive_up_to=6)
        assert [
            pairs.is_exhaustive(plain_frames(*names), config) for names in ("aaaaaa", "aaaaaaa")
        ] == [few, many]


def test_proposed_are_neighbours_and_what_looks_alike():
    frames, likeness = (
        plain_frames(*"aaaaaaaaa"),
        likeness_of(np.array([0, 10, 20, 30, 40, 50, 60, 70, 1])),
    )
    near = [(i, i + step) for i in range(9) for step in (1, 2, 4) if i + step < 9]
    assert pairs.propose(
        frames, likeness, SfmConfig(overlap=1, retrieval_pairs=0, revisit_pairs=0)
    ) == sorted(near)
    assert set(
        pairs.propose(frames, likeness, SfmConfig(overlap=1, retrieval_pairs=1, revisit_pairs=0))
    ) == {*near, (0, 8), (1, 8)}
    everything = pairs.propose(frames, likeness, SfmConfig(overlap=1, retrieval_pairs=8))
    assert everything == pairs.all_pairs(9)  # each once, in order


def test_images_that_look_alike_have_near_descriptors(tmp_path):
    """Each view, the same view a step aside in another light, and the wall behind: the aside is the
    nearest of all."""
    views, aside = (
        POSES[::4],
        [T @ geometry.make_transform(np.eye(3), np.array([0.05, 0, 0])) for T in POSES[::4]],
    )
    images = [shoot(T, i)[0] for i, T in enumerate([*views, *aside, *sway(4, opposite=True)])]
    frames = []
    for i, image in enumerate(images):
        darker = image if i < len(views) else (image * 0.8).astype(np.uint8)
        frames.append(Frame(str(i), tmp_path / f"{i}.jpg", CAMERA))
        write(frames[-1].image_path, darker[..., ::-1])
    unit = pairs.global_descriptors(frames, 0, lambda _: None)
    assert unit.shape[0] == len(frames) and np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-4)
    likeness = unit @ unit.T - 2 * np.eye(len(unit))
    n = len(views)
    assert likeness[:n].argmax(1).tolist() == list(range(n, 2 * n)) and likeness[n : 2 * n].argmax(
        1
    ).tolist() == list(range(n))
    assert likeness[: 2 * n, 2 * n :].max() < np.diag(likeness[:n, n:]).min()
    assert np.array_equal(
        unit, pairs.global_descriptors(frames, 0, lambda _: None)
    )  # by the seed alone


# poses from images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A frame set of the swaying camera, intrinsics known."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos", POSES)
    return from_photos(folder / "photos", folder / "frames")


def reprojection_px(reconstruction):
    """Distance of every observation to where the pinhole camera of its frame has its point."""
    out = np.empty(len(reconstruction.obs_point_M))
    for i, frame in enumerate(reconstruction.frames):
        here = reconstruction.obs_frame_M == i
        xyz = reconstruction.points_N3[reconstruction.obs_point_M[here]]
        xy, z = geometry.project(frame.camera, geometry.invert(frame.T_world_camera), xyz)
        assert (z > 0).all()
        out[here] = np.linalg.norm(xy - reconstruction.obs_xy_M2[here], axis=1)
    return out


def test_all_images_are_placed_and_a_killed_run_goes_on(place, tmp_path, monkeypatch):
    assert place.intrinsics_known
    fractions = []
    with monkeypatch.context() as patch:

        def killed(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(pycolmap, "incremental_mapping", killed)
        with pytest.raises(KeyboardInterrupt):
            solve.solve(place, tmp_path, SfmConfig())
    # features and matches are there now: what the images show is not looked at again
    black = tmp_path / "black"
    black.mkdir()
    frames = tuple(replace(f, image_path=black / f.image_path.name) for f in place.frames)
    for frame in frames:
        write(frame.image_path, np.zeros((240, 320, 3), np.uint8))
    found = solve.solve(
        replace(place, frames=frames),
        tmp_path,
        SfmConfig(),
        progress=lambda p: fractions.append(p.fraction),
    )
    assert found.pieces == (14,) and found.lost == {} and found.reprojection_px < 0.6
    assert [f.name for f in found.reconstruction.frames] == [f.name for f in place.frames]
    assert all(
        f.camera == CAMERA and f.image_path == g.image_path
        for f, g in zip(found.reconstruction.frames, frames)
    )
    fit = against(found.reconstruction.frames, POSES)
    assert fit.median_m < 0.015 and np.degrees(fit.median_rad) < 0.2
    errors = reprojection_px(found.reconstruction)
    assert np.percentile(errors, 99) < 4 and abs(errors.mean() - found.reprojection_px) < 0.1
    assert all(0 <= fraction <= 1 for fraction in fractions)
    again = pycolmap.Reconstruction(tmp_path / "model")  # in COLMAP's format, for other tools
    assert again.num_reg_images() == 14 and again.num_points3D() == len(
        found.reconstruction.points_N3
    )


def unmatched(folder):
    """Share of the observations of a finished model that no match joins with another of their
    point."""
    model, found = pycolmap.Reconstruction(folder / "model"), 0
    with pycolmap.Database.open(
        folder / ("retriangulate.db" if (folder / "retriangulate.db").exists() else "features.db")
    ) as database:
        joined = set()
        for a in model.images.values():
            for b in model.images.values():
                if a.image_id < b.image_id and database.exists_two_view_geometry(
                    a.image_id, b.image_id
                ):
                    for j, k in database.read_two_view_geometry(
                        a.image_id, b.image_id
                    ).inlier_matches:
                        joined.add((a.image_id, int(j), b.image_id, int(k)))
    for point in model.points3D.values():
        track = sorted((e.image_id, e.point2D_idx) for e in point.track.elements)
        found += sum(
            not any((*min(e, f), *max(e, f)) in joined for f in track if f != e) for e in track
        )
    return found / model.compute_num_observations()


def test_points_are_of_matches_alone_poses_of_completed_tracks(place, tmp_path):
    few = dict(matching="sequential", overlap=2, retrieval_pairs=2, revisit_pairs=2)
    results = {}
    for neighbours in (0, 20):
        folder = tmp_path / str(neighbours)
        folder.mkdir()
        results[neighbours] = solve.solve(place, folder, SfmConfig(**few, neighbours=neighbours))
    assert unmatched(tmp_path / "20") < 0.005 < 0.01 < unmatched(tmp_path / "0")
    completed, anew = (r.reconstruction for r in results.values())
    assert against(anew.frames, POSES).median_m < 0.015
    assert len(anew.points_N3) > 0.8 * len(completed.points_N3)


def test_an_unknown_lens_is_estimated_and_its_images_undistorted(tmp_path):
    k = -0.15
    write_photos(tmp_path / "photos", POSES, with_depth=True, with_intrinsics=False, k=k)
    frame_set = from_photos(tmp_path / "photos", tmp_path / "frames")
    assert not frame_set.intrinsics_known and frame_set.frames[0].camera.fx == 384  # a guess
    (tmp_path / "sfm").mkdir()
    found = solve.solve(frame_set, tmp_path / "sfm", SfmConfig())
    assert found.pieces == (14,) and len(found.lenses) == 1
    f, *_, k_found = map(float, found.lenses[0].split("SIMPLE_RADIAL ")[1].split(","))
    assert abs(f / 300 - 1) < 0.03 and abs(k_found - k) < 0.03
    assert against(found.reconstruction.frames, POSES).median_m < 0.03
    # observations are those of a pinhole camera, and so are the images and depths
    errors = reprojection_px(found.reconstruction)
    assert np.percentile(errors, 99) < 4.5 and errors.mean() < 1
    assert (
        read_frame_set(tmp_path / "frames").frames == frame_set.frames
    )  # the originals are left alone
    frame = found.reconstruction.frames[3]
    assert frame.image_path.parent == frame.depth_path.parent == tmp_path / "sfm" / "images"
    straight, depth_mm = shoot(POSES[3], 3)

    def off(path):
        return np.abs(read_image(path).astype(int) - straight)[
            20:-20, 20:-20
        ].mean()  # black borders aside

    assert off(frame.image_path) < 0.7 * off(frame_set.frames[3].image_path)
    assert frame.camera.width == 320 and depth_mm.shape == (240, 320)


def test_a_killed_search_for_features_goes_on_with_the_same_lens(tmp_path, monkeypatch):
    for i in range(4):
        write(tmp_path / "photos" / f"{i}.jpg", shoot(POSES[i], i)[0])
    frame_set = from_photos(tmp_path / "photos", tmp_path / "frames")
    database = tmp_path / "features.db"

    def stop_after_two(progress):
        if progress.fraction == 0.5:
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        solve._extract(database, frame_set, SfmConfig(), stop_after_two)
    solve._extract(database, frame_set, SfmConfig(), lambda _: None)
    with pycolmap.Database.open(database) as db:
        assert [image.camera_id for image in db.read_all_images()] == [1] * 4
        assert (db.num_cameras(), db.num_frames()) == (1, 4) and db.num_keypoints() > 400
        assert all(db.exists_keypoints(image_id) for image_id in (1, 2, 3, 4))


def test_images_keep_their_order_and_their_lenses(tmp_path):
    """Two sessions whose lenses are unknown, one of them of two sizes: three lenses."""
    sizes = [(0, CAMERA.width), (0, 300), (1, CAMERA.width), (0, CAMERA.width)]
    frames = []
    for i, (session, width) in enumerate(sizes):
        path = tmp_path / f"{i}.jpg"
        write(path, shoot(POSES[i], i)[0][:, :width])
        frames.append(Frame(str(i), path, guessed_camera(width, 240), session=str(session)))
    database = tmp_path / "features.db"
    solve._extract(database, FrameSet(tuple(frames), False), SfmConfig(), lambda _: None)
    with pycolmap.Database.open(database) as db:
        images = {image.image_id: (image.name, image.camera_id) for image in db.read_all_images()}
        cameras = {camera.camera_id: camera for camera in db.read_all_cameras()}
    # numbered lens by lens
    assert images == {1: ("0.jpg", 1), 2: ("3.jpg", 1), 3: ("1.jpg", 2), 4: ("2.jpg", 3)}
    assert [cameras[i].width for i in (1, 2, 3)] == [320, 300, 320]
    assert cameras[2].model_name == "SIMPLE_RADIAL" and cameras[2].has_prior_focal_length


@pytest.mark.parametrize(
    "config",
    [
        SfmConfig(mapper="global"),
        SfmConfig(matching="sequential", overlap=1, retrieval_pairs=1, revisit_pairs=1),
    ],
)
def test_other_ways_to_the_same_poses(place, tmp_path, config):
    found = solve.solve(place, tmp_path, config)
    assert found.pieces == (14,) and against(found.reconstruction.frames, POSES).median_m < 0.015


def test_two_places_without_a_common_view_are_two_pieces(tmp_path):
    write_photos(tmp_path / "photos" / "wall", POSES[:9])
    write_photos(tmp_path / "photos" / "behind", sway(12, opposite=True)[:6])
    write(tmp_path / "photos" / "wall" / "lens-cap.jpg", np.full((240, 320, 3), 9, np.uint8))
    (tmp_path / "photos" / "wall" / "camera-intrinsics.txt").rename(
        tmp_path / "photos" / "camera-intrinsics.txt"
    )
    frame_set = from_photos(tmp_path / "photos", tmp_path / "frames")
    (tmp_path / "sfm").mkdir()
    found = solve.solve(frame_set, tmp_path / "sfm", SfmConfig())
    session = {f.name: f.source for f in frame_set.frames}
    assert found.pieces == (9, 6)
    assert {session[f.name].split("/")[0] for f in found.reconstruction.frames} == {"wall"}
    reasons = {session[name]: reason for name, reason in found.lost.items()}
    assert reasons.pop("wall/lens-cap.jpg") == "matches no other image"
    assert set(reasons) == {f"behind/img-{i:03d}.jpg" for i in range(6)}
    assert set(reasons.values()) == {"in a piece of 6 images that shares no view with the largest"}


def test_a_folded_model_disagrees_with_the_pairs_it_was_made_from(place, tmp_path):
    folder = tmp_path / "sfm"
    folder.mkdir()
    result = solve.solve(place, folder, SfmConfig())
    assert result.agreement > 0.99
    model = pycolmap.Reconstruction(folder / "model")
    with pycolmap.Database.open(folder / "features.db") as database:
        assert agreement(model, database) > 0.99
        some = [image for image in model.images.values() if image.has_pose][:5]
        turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, np.radians(20), 0])), np.zeros(3))
        # five of 14 look 20 degrees aside: their pairs with the other nine, and most among
        # themselves, break
        for image in some:
            image.frame.rig_from_world = turn * image.frame.rig_from_world
        assert agreement(model, database) < 0.75


def test_the_better_of_both_mappers_is_taken(place, tmp_path, monkeypatch):
    """Where solving image by image folds the place, all poses are solved at once; neither is asked
    where the first agrees."""
    called = []
    real = mapper._all_at_once
    monkeypatch.setattr(mapper, "_one_by_one", lambda job: called.append("one by one") or [])
    monkeypatch.setattr(mapper, "_all_at_once", lambda job: called.append("at once") or real(job))
    result = solve.solve(place, tmp_path, SfmConfig())
    assert called == ["one by one", "at once"] and result.agreement > 0.9


def misplaced(folder, place, which):
    """A finished model in which these frames share few points with others and look 20 degrees
    aside."""
    model = pycolmap.Reconstruction(folder / "model")
    turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, np.radians(20), 0])), np.zeros(3))
    for i in which:
        image = next(
            image
            for image in model.images.values()
            if image.name == place.frames[i].image_path.name
        )
        thin(model, image.image_id, 40)
        image.frame.rig_from_world = turn * image.frame.rig_from_world
    return model


def test_weak_images_that_all_at_once_misplaced_are_placed_again(place, tmp_path, monkeypatch):
    solve.solve(place, tmp_path, SfmConfig())
    monkeypatch.setattr(mapper, "_all_at_once", lambda *_: [misplaced(tmp_path, place, (4, 5))])
    models, agreed = mapper.solve_poses(
        tmp_path / "features.db", place, SfmConfig(mapper="global"), 0, tmp_path, lambda _: None
    )
    assert agreed == 1 and models[0].num_reg_images() == 14
    frames = solve.read_model(models[0], {f.image_path.name: f for f in place.frames}).frames
    fit = against(frames, POSES)
    assert all(
        geometry.pose_error(fit.pose(frames[i].T_world_camera), POSES[i])[0] < 0.03 for i in (4, 5)
    )


def test_what_is_placed_again_is_taken_only_where_it_is_no_worse(place, tmp_path, monkeypatch):
    solve.solve(place, tmp_path, SfmConfig())
    whole, smaller = (pycolmap.Reconstruction(tmp_path / "model") for _ in range(2))
    smaller.deregister_frame(smaller.image(min(smaller.reg_image_ids())).frame_id)
    monkeypatch.setattr(mapper, "_all_at_once", lambda *_: [whole])
    for again in (smaller, misplaced(tmp_path, place, range(5)), None):
        monkeypatch.setattr(mapper, "_placed_again", lambda *_, again=again: again)
        models, _ = mapper.solve_poses(
            tmp_path / "features.db", place, SfmConfig(mapper="global"), 0, tmp_path, lambda _: None
        )
        assert models[0] is whole


@pytest.mark.parametrize("kind", ["incremental", "global"])
def test_images_without_texture_are_one_clear_error(tmp_path, kind):
    for i in range(4):
        write(tmp_path / "photos" / f"{i}.jpg", np.full((240, 320, 3), 60 * i, np.uint8))
    (tmp_path / "sfm").mkdir()
    frame_set = from_photos(tmp_path / "photos", tmp_path / "frames")
    with pytest.raises(
        SldError,
        match="no two of the 4 images could be put together: they overlap too little, lack texture",
    ):
        solve.solve(frame_set, tmp_path / "sfm", SfmConfig(mapper=kind))
    with pytest.raises(SldError, match="2 images: at least 3"):
        solve.solve(FrameSet(frame_set.frames[:2], False), tmp_path / "sfm", SfmConfig())


def test_an_image_that_hardly_a_point_holds_loses_its_pose(place, tmp_path):
    config = SfmConfig(completion_px=0)
    solve.solve(place, tmp_path, config)
    model, database = pycolmap.Reconstruction(tmp_path / "model"), tmp_path / "features.db"
    image = next(i for i in model.images.values() if i.name == place.frames[4].image_path.name)
    thin(model, image.image_id, 9)
    assert image.num_points3D == 9
    dropped, apart = mapper.polish(model, database, config, True, lambda _: None)
    assert dropped == {image.name: "only 9 points hold its pose"} and apart == []
    assert not image.has_pose and model.num_reg_images() == 13
    assert solve._lost(place.frames, model, [], database, dropped) == {
        place.frames[4].name: "only 9 points hold its pose"
    }


def test_an_image_that_completed_tracks_alone_held_loses_its_pose(place, tmp_path, monkeypatch):
    name = place.frames[4].image_path.name

    def retriangulate(model, *_):
        thin(model, next(i for i, image in model.images.items() if image.name == name), 9)
        return model, ["a note"]

    monkeypatch.setattr(solve, "retriangulate", retriangulate)
    found = solve.solve(place, tmp_path, SfmConfig())
    assert found.lost == {place.frames[4].name: "only 9 points hold its pose"} and found.notes == (
        "a note",
    )
    assert len(found.reconstruction.frames) == 13


def test_a_part_that_a_few_points_join_is_a_piece_of_its_own(place, tmp_path):
    """As two rooms are that matches of some similar chairs hold together: where the one lies
    against the other is an accident."""
    config = SfmConfig(completion_px=0)
    solve.solve(place, tmp_path, config)
    model, database = pycolmap.Reconstruction(tmp_path / "model"), tmp_path / "features.db"
    assert [len(part) for part in mapper.parts(model, config.min_shared)] == [14]
    aside = {
        i
        for i in model.reg_image_ids()
        if model.image(i).name in {f.image_path.name for f in place.frames[:5]}
    }
    joining = [
        i
        for i, p in model.points3D.items()
        if 0 < len(aside & {e.image_id for e in p.track.elements}) < p.track.length()
    ]
    for i in joining[12:]:  # all that join both but a dozen become two points each
        point = model.point3D(i)
        elements = [
            (e.image_id, e.point2D_idx) for e in point.track.elements if e.image_id in aside
        ]
        for element in elements:
            if model.exists_point3D(i):  # a track of one element left is none
                model.delete_observation(*element)
        if len(elements) > 1:
            model.add_point3D(
                point.xyz, pycolmap.Track([pycolmap.TrackElement(*e) for e in elements])
            )
    assert [len(part) for part in mapper.parts(model, config.min_shared)] == [9, 5]
    dropped, apart = mapper.polish(model, database, config, True, lambda _: None)
    assert apart == [5] and model.num_reg_images() == 9
    assert dropped == {
        f.image_path.name: "in a piece of 5 images that hardly shares a point with the largest"
        for f in place.frames[:5]
    }


def test_what_the_last_adjustment_leaves_loose_loses_its_pose_too(place, tmp_path, monkeypatch):
    """A part is cut off, all is adjusted once more, and of what then fits, one image has too
    little."""
    config = SfmConfig(completion_px=0)
    solve.solve(place, tmp_path, config)
    model, database = pycolmap.Reconstruction(tmp_path / "model"), tmp_path / "features.db"
    first, second, *others = sorted(model.reg_image_ids())
    monkeypatch.setattr(mapper, "parts", lambda *_: [[second, *others], [first]])
    monkeypatch.setattr(mapper, "drop_misfits", lambda model, *_: thin(model, second, 9))
    names = [model.image(i).name for i in (first, second)]
    dropped, apart = mapper.polish(model, database, config, True, lambda _: None)
    assert apart == [1] and model.num_reg_images() == 12
    assert dropped == {
        names[0]: "in a piece of 1 images that hardly shares a point with the largest",
        names[1]: "only 9 points hold its pose",
    }


def thin(model, image_id, count):
    """Leave an image only so many points."""
    for i in [i for i, p in enumerate(model.image(image_id).points2D) if p.has_point3D()][count:]:
        model.delete_observation(image_id, i)


def test_a_map_of_which_nothing_holds_is_one_clear_error(place, tmp_path, monkeypatch):
    real = mapper.polish

    def strict(*args):
        monkeypatch.setattr(mapper, "MIN_OBSERVATIONS", 10**6)
        return real(*args)

    monkeypatch.setattr(solve, "polish", strict)
    with pytest.raises(SldError, match="no feature could be triangulated"):
        solve.solve(place, tmp_path, SfmConfig(completion_px=0))


def test_a_damaged_database_of_a_killed_run_is_begun_anew(tmp_path, caplog):
    path = tmp_path / "features.db"
    pycolmap.Database.open(path).close()
    whole = path.read_bytes()
    drop_if_damaged(path)
    assert path.read_bytes() == whole and not caplog.text
    for damaged in (
        whole[: len(whole) // 2],
        b"hello" * 1000,
        whole[:5000] + bytes(len(whole) - 5000),
    ):
        path.write_bytes(damaged)
        drop_if_damaged(path)
        assert not path.exists() and "features and matches are found again" in caplog.text
        caplog.clear()


def test_colmap_adds_nothing_to_our_own_error(tmp_path, capfd):
    for i in range(4):
        write(tmp_path / "photos" / f"{i}.jpg", np.full((240, 320, 3), 60 * i, np.uint8))
    (tmp_path / "sfm").mkdir()
    for kind in ("incremental", "global"):
        with pytest.raises(SldError, match="could be put together"):
            solve.solve(
                from_photos(tmp_path / "photos", tmp_path / kind),
                tmp_path / "sfm",
                SfmConfig(mapper=kind),
            )
    assert capfd.readouterr().err == ""


def test_a_focal_length_that_stays_at_its_guess_is_noted():
    guess, stated = (
        guessed_camera(320, 240),
        guessed_camera(320, 240, 400.0),
    )  # 384 px, and 400 px from EXIF
    frames, model = [], pycolmap.Reconstruction()
    for i, (camera, focal) in enumerate([(guess, 387.0), (guess, 390.0), (stated, 401.0)], start=1):
        lens = pycolmap.Camera(
            model="SIMPLE_RADIAL", width=320, height=240, params=[focal, 160, 120, 0], camera_id=i
        )
        model.add_camera_with_trivial_rig(lens)
        model.add_image_with_trivial_frame(
            pycolmap.Image(name=f"{i}.jpg", camera_id=i, image_id=i), pycolmap.Rigid3d()
        )
        frames.append(Frame(f"image-{i}", Path(f"{i}.jpg"), camera, None, None, 0, "hall"))
    (note,) = solve._still_guessed(model, frames)
    assert (
        "the 320x240 images of 'hall' is still the first guess, 387 px" in note
        and "give --intrinsics FILE" in note
    )


def test_the_benchmark_says_why_a_variant_fails_and_refuses_given_poses(tmp_path, capsys):
    for i in range(4):
        write(tmp_path / f"frame-{i:06d}.color.jpg", np.full((240, 320, 3), 60 * i, np.uint8))
        np.savetxt(tmp_path / f"frame-{i:06d}.pose.txt", POSES[i])
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[300, 0, 160], [0, 300, 120], [0, 0, 1]])
    bench = ["bench", "sfm", "--frames", str(tmp_path), "--variant"]
    assert cli.main([*bench, "matching=exhaustive"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and table[2].strip().startswith(
        "failed: no two of the 4 images could be put together"
    )
    assert cli.main([*bench, "mapper=posed"]) == 2
    assert (
        "'mapper=posed': mapper=posed refines the poses that this benchmark keeps back"
        in capsys.readouterr().err
    )
    assert (
        cli.main([*bench, "sfm.mapper=global"]) == 2
        and "did you mean mapper?" in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="mapper='posed'"):
        solve.solve(FrameSet((), True), tmp_path, SfmConfig(mapper="posed"))


# longer tracks ------------------------------------------------------------------------------------

AT = np.array([-0.3, -0.1, 0.1, 0.3])  # where four cameras stand on the x axis; they look along z


def descriptor(word):
    """128 numbers that no other word's are like."""
    out = np.zeros(128, np.uint8)
    out[4 * word : 4 * word + 4] = 100
    return out


class Scene:
    """Points, each with the images (0 to 3) that are known to show it; every image has a keypoint
    where it shows the point."""

    def __init__(self, folder):
        quiet(0)
        self.database, self.model = (
            pycolmap.Database.open(folder / "features.db"),
            pycolmap.Reconstruction(),
        )
        self.points, self.keypoints = [], [[] for _ in AT]

    def point(self, xyz, images, word=None, keypoints=range(4), words=None):
        """`keypoints`: images that have a keypoint for it, of its word unless `words` says
        another."""
        word = len(self.points) if word is None else word
        self.points.append((np.array(xyz, float), {}))
        for i in keypoints:
            if i in images:
                self.points[-1][1][i] = len(self.keypoints[i])
            xy = 300 * (self.points[-1][0][:2] - [AT[i], 0]) / xyz[2] + [160, 120]
            self.keypoints[i].append((xy, descriptor((words or {}).get(i, word))))

    def complete(self, radius_px=8.0):
        camera = pycolmap.Camera(
            model="PINHOLE", width=320, height=240, params=[300, 300, 160, 120], camera_id=1
        )
        self.database.write_camera(camera, use_camera_id=True)
        self.model.add_camera_with_trivial_rig(camera)
        for i, found in enumerate(self.keypoints):
            image = pycolmap.Image(
                name=f"{i}.jpg",
                keypoints=np.array([xy for xy, _ in found]),
                camera_id=1,
                image_id=i + 1,
            )
            self.database.write_image(image, use_image_id=True)
            data = pycolmap.FeatureDescriptors(
                pycolmap.FeatureExtractorType.SIFT, np.array([d for _, d in found])
            )
            self.database.write_descriptors(i + 1, data)
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), [-AT[i], 0, 0])
            self.model.add_image_with_trivial_frame(image, pose)
        for xyz, track in self.points:
            self.model.add_point3D(
                xyz, pycolmap.Track([pycolmap.TrackElement(i + 1, k) for i, k in track.items()])
            )
        before = {i: point.xyz.copy() for i, point in self.model.points3D.items()}
        changed = complete_tracks(self.model, self.database, radius_px, SfmConfig())
        assert all(
            np.array_equal(p.xyz, before[i]) for i, p in self.model.points3D.items() if i in before
        )
        self.database.close()
        return changed

    def images_of(self):
        """The images that show each point, in the order of the points' places from left to
        right."""
        points = sorted(self.model.points3D.values(), key=lambda p: p.xyz[0])
        return [sorted(e.image_id - 1 for e in p.track.elements) for p in points]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_a_lost_observation_is_found_again(scene):
    scene.point([-0.5, 0, 4], images=(0, 1, 2, 3))
    scene.point([0, 0, 4], images=(0, 1, 2))
    scene.point([0.5, 0, 4], images=(0, 1))
    assert scene.complete() == 3
    assert scene.images_of() == [[0, 1, 2, 3]] * 3


def test_what_looks_otherwise_or_lies_elsewhere_is_not_taken(scene):
    scene.point([-0.5, 0, 4], images=(0, 1, 2), words={3: 30})  # another descriptor
    scene.point([0, 0, 4], images=(0, 1, 2), keypoints=(0, 1, 2))  # no keypoint
    scene.point([0.5, 0, 4], images=(0, 1, 2))
    scene.keypoints[3][-1][0][0] += 9  # beyond the window
    scene.point([0.7, 0.4, -4], images=(0, 1, 2))  # behind the cameras
    assert scene.complete() == 0
    assert scene.images_of() == [[0, 1, 2]] * 4


def test_a_keypoint_goes_to_one_point_only(scene):
    """Two points with one descriptor, 2.25 px apart, and a keypoint in image 3 for one of them."""
    scene.point([0.0, 0, 4], images=(0, 1, 2), word=5)
    scene.point([0.03, 0, 4], images=(0, 1, 2), word=5, keypoints=(0, 1, 2))
    assert scene.complete() == 1
    assert sorted(map(len, scene.images_of())) == [3, 4]


def test_a_track_that_fell_apart_is_joined(scene):
    scene.point([-0.5, 0, 4], images=(0, 1, 2, 3))
    scene.point([0.00, 0, 4], images=(0, 1), word=7, keypoints=(0, 1))
    scene.point([0.02, 0, 4], images=(2, 3), word=7, keypoints=(2, 3))
    assert scene.complete() == 1
    assert scene.images_of() == [[0, 1, 2, 3]] * 2
    assert np.allclose(sorted(p.xyz[0] for p in scene.model.points3D.values()), [-0.5, 0.01])


def test_three_parts_of_one_track_become_one(scene):
    scene.point([0.00, 0, 4], images=(0,), word=7, keypoints=(0,))
    scene.point([0.01, 0, 4], images=(1,), word=7, keypoints=(1,))
    scene.point([0.02, 0, 4], images=(2, 3), word=7, keypoints=(2, 3))
    assert scene.complete() == 2
    assert scene.images_of() == [[0, 1, 2, 3]]


def test_points_that_one_image_shows_side_by_side_are_two(scene):
    scene.point([0.00, 0, 4], images=(0, 1), word=7, keypoints=(0, 1))
    scene.point([0.02, 0, 4], images=(0, 2, 3), word=7, keypoints=(0, 2, 3))
    assert scene.complete() == 0
    assert scene.images_of() == [[0, 1], [0, 2, 3]]


def test_points_whose_mean_does_not_explain_both_are_two(scene):
    """On one ray of camera 2, at 4 and 5 m: it sees them in one place, but the mean is 3.3 px off
    in camera 0."""
    scene.point([0.1, 0, 4], images=(0, 1), word=7, keypoints=(0, 1))
    scene.point([0.1, 0, 5], images=(2, 3), word=7, keypoints=(2, 3))
    assert scene.complete(radius_px=2.0) == 0
    assert sorted(scene.images_of()) == [[0, 1], [2, 3]]
