"""Photographs: which files become frames, in which order, with what lies beside them, and what is
left out."""

import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sld_core.camera.calibration import Calibration
from sld_core.camera.images import read_depth
from sld_core.config.mapping import FramesConfig
from sld_core.config.scene import BagConfig
from sld_core.data.frame_folder import read_frames
from sld_core.data.frame_set import read_frame_set
from sld_core.data.session_names import session_labels
from sld_core.data.sources import Source, fingerprint, from_photos, settings_used
from sld_core.geometry import make_transform
from sld_core.types import SldError

K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])


def photo(path, value=100, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(path.suffix.lower(), np.full((size[1], size[0], 3), value, np.uint8))[
        1
    ].tobytes()
    path.write_bytes(data)
    return path


def depth(path, value=1500, size=(32, 24)):
    path.write_bytes(
        cv2.imencode(".png", np.full((size[1], size[0]), value, np.uint16))[1].tobytes()
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def test_names_in_natural_order_with_a_session_per_folder(tmp_path, photos):
    for i, name in enumerate(
        [
            "hall/img 10.JPG",
            "hall/img 2.jpeg",
            "küche/b.png",
            "a.jpg",
            ".hidden.jpg",
            "hall/.cache/x.jpg",
        ]
    ):
        photo(photos / name, 10 * i)
    (photos / "readme.txt").write_text("not an image")
    frame_set = from_photos(photos, tmp_path / "out")
    assert [f.source for f in frame_set.frames] == [
        "a.jpg",
        "hall/img 2.jpeg",
        "hall/img 10.JPG",
        "küche/b.png",
    ]
    assert [f.session for f in frame_set.frames] == ["", "hall", "hall", "küche"]
    assert [f.name for f in frame_set.frames] == [
        f"image-{i:06d}" for i in range(4)
    ] and frame_set.rejected == {}
    for frame in frame_set.frames[:3]:
        assert (
            frame.image_path.read_bytes() == (photos / frame.source).read_bytes()
        )  # byte for byte
    assert cv2.imread(str(frame_set.frames[3].image_path))[0, 0, 0] == 20
    assert not frame_set.intrinsics_known and (
        frame_set.world_frame,
        frame_set.frames[0].camera.fx,
    ) == ("", 1.2 * 64)
    assert read_frame_set(tmp_path / "out") == frame_set


def png_header(width, height, bits=8, kind=2):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(chunk))
    pixels = struct.pack(">I", 100) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + checksum + pixels


def test_damaged_and_hostile_images_are_named_and_skipped(tmp_path, photos):
    good = photo(photos / "good.jpg")
    (photos / "cut.jpg").write_bytes(good.read_bytes()[:-100])
    (photos / "text.jpg").write_text("hello")
    (photos / "empty.png").touch()
    (photos / "bomb.png").write_bytes(png_header(16000, 16000) + bytes(100))
    (photos / "header.jpg").write_bytes(b"\xff\xd8" + b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff")
    depth(photos / "values.png")
    photo(tmp_path / "secret.jpg")
    photo(tmp_path / "secrets" / "x.jpg")
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (photos / "linked").symlink_to(tmp_path / "secrets")
    (photos / "broken.jpg").symlink_to(photos / "none")
    frame_set = from_photos(photos, tmp_path / "out")
    assert [f.source for f in frame_set.frames] == ["good.jpg"]
    kinds = {source: reason.split(":")[0] for source, reason in frame_set.rejected.items()}
    assert kinds == {
        "cut.jpg": "damaged",
        "text.jpg": "damaged",
        "empty.png": "damaged",
        "bomb.png": "damaged",
        "header.jpg": "damaged",
        "values.png": "no photograph",
        "link.jpg": "outside",
        "linked": "outside",
        "broken.jpg": "damaged",
    }
    assert (
        "16000x16000" in frame_set.rejected["bomb.png"]
        and "16-bit values" in frame_set.rejected["values.png"]
    )


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "no usable image .0 left out"),
        (["text.jpg"], "no usable image .1 left out: text.jpg: damaged"),
    ],
)
def test_nothing_left_is_an_error(tmp_path, photos, names, words):
    for name in names:
        (photos / name).write_text("hello")
    with pytest.raises(SldError, match=words):
        from_photos(photos, tmp_path / "out")
    with pytest.raises(SldError, match="no such folder of images"):
        from_photos(tmp_path / "none", tmp_path / "out2")


def test_depth_and_poses_beside(tmp_path, photos):
    T = make_transform(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0.0]]), np.array([1.0, 2, 3]))
    for name in ("a.color.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"):
        photo(photos / name)
    depth(photos / "a.depth.png")
    depth(photos / "c.depth.png", size=(32, 32))
    (photos / "d.depth.png").write_bytes(
        cv2.imencode(".png", np.zeros((24, 32), np.uint8))[1].tobytes()
    )
    (photos / "e.depth.png").write_bytes(png_header(64000, 48000, 16, 0))
    np.savetxt(photos / "a.pose.txt", T)
    np.savetxt(photos / "b.pose.txt", np.full((4, 4), np.nan))
    (photos / "c.pose.txt").symlink_to("/etc/hostname")
    frame_set = from_photos(photos, tmp_path / "out", with_poses=True)
    first, *others = frame_set.frames
    assert (first.T_world_camera == T).all() and all(
        f.T_world_camera is None and f.depth_path is None for f in others
    )
    assert (
        first.depth_path.name == "image-000000.depth.png"
        and (cv2.imread(str(first.depth_path), cv2.IMREAD_UNCHANGED) == 1500).all()
    )
    assert frame_set.world_frame == "given" and not frame_set.world_z_up
    assert sorted(frame_set.rejected) == [
        "b.pose.txt",
        "c.depth.png",
        "c.pose.txt",
        "d.depth.png",
        "e.depth.png",
    ]
    assert "finite" in frame_set.rejected["b.pose.txt"] and frame_set.rejected[
        "c.pose.txt"
    ].startswith("outside")
    assert (
        "depth is 32x32 but the image is 64x48" in frame_set.rejected["c.depth.png"]
        and "16-bit" in frame_set.rejected["d.depth.png"]
    )
    without = from_photos(photos, tmp_path / "without")
    assert without.world_frame == "" and all(f.T_world_camera is None for f in without.frames)


def test_the_matrix_in_the_folder_is_used_unless_a_calibration_is_given(tmp_path, photos):
    photo(photos / "a.jpg")
    np.savetxt(photos / "camera-intrinsics.txt", K)
    frame_set = from_photos(photos, tmp_path / "out")
    assert frame_set.intrinsics_known and (
        frame_set.frames[0].camera.fx,
        frame_set.frames[0].camera.cx,
    ) == (60, 32)
    other = from_photos(
        photos,
        tmp_path / "other",
        calibration=Calibration(64, 48, K * [[2, 1, 1], [1, 2, 1], [1, 1, 1]]),
    )
    assert other.frames[0].camera.fx == 120


def test_images_of_another_size_than_the_calibration_are_named(tmp_path, photos):
    photo(photos / "a.jpg"), photo(photos / "b.jpg", size=(128, 96))
    frame_set = from_photos(
        photos, tmp_path / "out", calibration=Calibration(64, 48, K, source="lens.yaml")
    )
    assert frame_set.rejected == {"b.jpg": "other size: image is 128x96 but lens.yaml is for 64x48"}


def test_image_and_depth_are_undistorted_together(tmp_path, photos):
    ramp = np.tile(np.arange(64, dtype=np.uint16)[None], (48, 1))
    cv2.imwrite(str(photos / "a.png"), np.repeat(ramp[..., None].astype(np.uint8) * 4, 3, 2))
    cv2.imwrite(str(photos / "a.depth.png"), ramp * 4)
    frame = from_photos(
        photos,
        tmp_path / "out",
        calibration=Calibration(64, 48, K, np.array([0.2, 0, 0, 0, 0]), "plumb_bob"),
    ).frames[0]
    image = cv2.imread(str(frame.image_path))[..., 0].astype(int)
    depths = cv2.imread(str(frame.depth_path), cv2.IMREAD_UNCHANGED).astype(int)
    # column 58 is 26.5 / 60 = 0.4417 from the middle: it shows column 31.5 + 26.5 * (1 + 0.2 *
    # 0.4417^2) = 32.53 + 26.5
    assert (
        image[24, 58] == pytest.approx(4 * 59.03 / 1, abs=6)
        and abs(depths[24, 58] - 4 * 59.03) <= 4
    )
    assert np.abs(image - depths)[20:28, 10:54].max() <= 6 and (depths % 4 == 0).all()


def test_a_list_names_images_with_or_without_their_endings(tmp_path, photos):
    for name in ("hall/x.color.jpg", "hall/my photo.JPG", "b.jpg", "c.jpg"):
        photo(photos / name)
    (tmp_path / "list.txt").write_text("c.jpg\nhall/x\n\nhall/my photo\nmissing\n")
    frame_set = from_photos(photos, tmp_path / "out", list_path=tmp_path / "list.txt")
    assert [f.source for f in frame_set.frames] == [
        "c.jpg",
        "hall/x.color.jpg",
        "hall/my photo.JPG",
    ]
    assert frame_set.rejected == {"missing": "missing: no such image"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("../secret\n", "leads out of"),
        ("/etc/passwd\n", "leads out of"),
        ("a\na\n", "1 images twice"),
        ("a\0b\n", "is not the name of an image"),
        ("x" * 2000, "is not the name of an image"),
    ],
)
def test_lists_that_lead_elsewhere_are_refused(tmp_path, photos, text, words):
    photo(photos / "a.jpg")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(SldError, match=words):
        from_photos(photos, tmp_path / "out", list_path=tmp_path / "list.txt")


def test_a_list_that_is_none_is_named(tmp_path, photos):
    (tmp_path / "list.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SldError, match="list.txt: cannot be read .not text"):
        from_photos(photos, tmp_path / "out", list_path=tmp_path / "list.txt")


def test_the_focal_length_in_exif_is_the_first_guess(tmp_path, photos):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 26
    exif[0x0112] = 6  # turned by 90 degrees: ignored, so that images agree with a calibration
    Image.new("RGB", (72, 48)).save(photos / "a.jpg", exif=exif)
    photo(photos / "b.jpg", size=(72, 48))
    frame_set = from_photos(photos, tmp_path / "out")
    assert [f.camera.fx for f in frame_set.frames] == pytest.approx(
        [52.0, 52.0]
    )  # 26 mm of 36 mm are 52 of 72 pixels; one lens for both
    assert not frame_set.intrinsics_known and (
        frame_set.frames[0].camera.width,
        frame_set.frames[0].camera.height,
    ) == (72, 48)


def test_the_work_of_a_map_among_the_photographs_is_not_read_again(tmp_path, photos):
    for name in (
        "a.jpg",
        "map/image-000000.color.jpg",
        "map/work/frames/images/image-000000.color.jpg",
        "at/work/b.jpg",
    ):
        photo(photos / name)
    (photos / "map" / "sld-map.json").write_text("{}")
    frame_set = from_photos(photos, tmp_path / "out")
    assert [f.source for f in frame_set.frames] == [
        "a.jpg",
        "at/work/b.jpg",
        "map/image-000000.color.jpg",
    ]
    before = fingerprint(Source(photos))
    photo(photos / "map" / "work" / "frames" / "images" / "image-000001.color.jpg")
    assert fingerprint(Source(photos)) == before
    photo(photos / "at" / "work" / "c.jpg")
    assert len(fingerprint(Source(photos))) == len(before) + 1


def pipe(path):
    os.mkfifo(path)


def huge(path):
    with open(path, "wb") as file:
        file.truncate(60 * 10**6)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.symlink_to("/dev/zero"), "a device or pipe; expected a list of names"),
        (pipe, "a device or pipe"),
        (Path.mkdir, "a folder; expected a list"),
        (huge, "more than 50000000 bytes; expected a list of names"),
        (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read"),
    ],
)
def test_a_list_without_end_is_not_read(tmp_path, photos, make, words):
    photo(photos / "a.jpg")
    make(tmp_path / "list.txt")
    with pytest.raises(SldError, match=f"list.txt: {words}"):
        from_photos(photos, tmp_path / "out", list_path=tmp_path / "list.txt")
    with pytest.raises(SldError, match=f"list.txt: {words}"):
        read_frames(photos, tmp_path / "list.txt")


def test_a_photograph_that_was_cut_short_is_told_from_what_is_none(tmp_path, photos):
    data = photo(photos / "good.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(data[:-100])
    (photos / "text.jpg").write_text("hello")
    rejected = from_photos(photos, tmp_path / "out").rejected
    assert "cut.jpg: a damaged JPEG, perhaps cut short" in rejected["cut.jpg"]
    assert "neither JPEG nor PNG" in rejected["text.jpg"]


@pytest.mark.timeout(20)
def test_pipes_beside_photographs_are_not_waited_for(tmp_path, photos):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(photos / name)
    for name in ("a.depth.png", "b.pose.txt", "d.jpg"):
        pipe(photos / name)
    (photos / "c.depth.png").mkdir()
    (tmp_path / "list.txt").write_text("a\nb\nd\n")
    assert len(fingerprint(Source(photos, with_poses=True))) == 3
    frame_set = from_photos(photos, tmp_path / "out", with_poses=True)
    assert [f.source for f in frame_set.frames] == ["a.jpg", "b.jpg", "c.jpg"]
    assert sorted(frame_set.rejected) == ["a.depth.png", "b.pose.txt", "c.depth.png", "d.jpg"]
    assert frame_set.rejected["a.depth.png"].endswith(
        "a.depth.png: no file but a folder, device or pipe"
    )
    assert (
        from_photos(photos, tmp_path / "listed", list_path=tmp_path / "list.txt").rejected["d"]
        == "missing: no such image"
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "source",
    [
        Source,
        lambda path: Source(videos=(path,)),
        lambda path: Source(bag=path),
        lambda path: Source(path.parent, calibration=path),
    ],
)
def test_a_source_that_is_a_pipe_is_refused(tmp_path, source):
    pipe(tmp_path / "pipe")
    with pytest.raises(SldError, match="pipe: a device or pipe; expected a file or folder"):
        fingerprint(source(tmp_path / "pipe"))


def test_only_what_is_read_counts_as_a_change(photos):
    for name in ("a.jpg", "b.jpg", "hall/c.png"):
        photo(photos / name)
    depth(photos / "a.depth.png")
    before = fingerprint(Source(photos)), fingerprint(Source(photos, with_poses=True))
    assert [Path(path).name for path, *_ in before[0]] == ["a.depth.png", "a.jpg", "b.jpg", "c.png"]
    for name in (
        ".DS_Store",
        "note.txt",
        "out.json",
        ".git/index",
        ".hidden/d.jpg",
        ".e.jpg",
        "lonely.depth.png",
        "hall/camera-intrinsics.txt",
    ):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_text("mine")
    assert (fingerprint(Source(photos)), fingerprint(Source(photos, with_poses=True))) == before
    (photos / "b.pose.txt").write_text("0")
    assert fingerprint(Source(photos)) == before[0]
    assert [
        Path(path).name
        for path, *_ in set(fingerprint(Source(photos, with_poses=True))) - set(before[1])
    ] == ["b.pose.txt"]
    for name in ("hall/c.depth.png", "camera-intrinsics.txt", "hall/d.jpg"):
        known = fingerprint(Source(photos))
        (photos / name).write_text("0")
        assert len(fingerprint(Source(photos))) == len(known) + 1


def test_of_a_list_only_its_images_count_as_a_change(tmp_path, photos):
    for name in ("a.jpg", "b.jpg"):
        photo(photos / name)
    (tmp_path / "list.txt").write_text("a\n")
    found = [
        Path(path).name for path, *_ in fingerprint(Source(photos, list_path=tmp_path / "list.txt"))
    ]
    assert found == ["a.jpg", "list.txt"]


def test_names_of_sessions_become_labels_of_their_own(tmp_path, photos):
    mother, raw = "\U0001f469\u200d\U0001f467", os.fsdecode(b"k\xfcche")
    folders = [
        "3\u202fPM",
        "3 PM",
        "3\xa0PM",
        mother,
        raw,
        "line\nbreak",
        "/".join(["x" * 200] * 2),
        "\u200b",
    ]
    for folder in folders:
        photo(photos / folder / "a.jpg")
    frame_set = from_photos(photos, tmp_path / "out")
    label = {str(Path(f.source).parent): f.session for f in frame_set.frames}
    assert label["3 PM"] == "3 PM" and {label["3\u202fPM"], label["3\xa0PM"]} == {
        "3 PM (2)",
        "3 PM (3)",
    }
    assert (label[mother], label[raw]) == (mother.replace("\u200d", ""), "k\ufffdche")
    assert (label["line\nbreak"], label["\u200b"]) == ("line break", "unnamed")
    assert 250 < len(label[folders[6]]) <= 300 and len(set(label.values())) == len(folders) == len(
        frame_set.frames
    )
    assert all(session.isprintable() for session in label.values())
    assert read_frame_set(tmp_path / "out").frames[0].session == frame_set.frames[0].session


def test_labels_that_are_free_are_found():
    names = ["a\xa0b", "a b (2)", "a\u202fb", "a b", "", "y" * 301, "y" * 302, "y" * 300]
    labels = session_labels(names)
    assert (
        labels["a b"] == "a b"
        and labels["a b (2)"] == "a b (2)"
        and labels[""] == ""
        and labels["y" * 300] == "y" * 300
    )
    assert (labels["a\xa0b"], labels["a\u202fb"]) == ("a b (3)", "a b (4)")
    assert len(set(labels.values())) == len(names)
    assert all(label.isprintable() and len(label) <= 300 for label in labels.values())
    assert session_labels(names[:1] * 3) == {"a\xa0b": "a b"}


@pytest.mark.parametrize(
    "scene, kept",
    [
        ({"metric": False}, False),
        ({"metric": True}, True),
        ({"complete": False}, False),
        ({"format": "of others", "metric": False}, True),
    ],
)
def test_depth_of_an_old_map_without_scale_is_no_depth(tmp_path, photos, scene, kept, caplog):
    for name in ("old/a.jpg", "old/b.jpg", "new/a.jpg"):
        photo(photos / name)
        depth((photos / name).with_suffix(".depth.png"))
    (photos / "old" / "scene.json").write_text(
        json.dumps({"format": "sld scene data", "version": 1} | scene)
    )
    frame_set = from_photos(photos, tmp_path / "out")
    assert {f.source: f.depth_path is not None for f in frame_set.frames} == {
        "new/a.jpg": True,
        "old/a.jpg": kept,
        "old/b.jpg": kept,
    }
    assert frame_set.rejected == {}
    assert caplog.text.count(
        "old: depth images there are left out: scene.json does not say that they are in millimetres"
    ) == (not kept)


def test_a_map_that_lost_its_scene_json_tells_no_scale(tmp_path, photos):
    photo(photos / "a.jpg")
    depth(photos / "a.depth.png")
    (photos / "sld-map.json").write_text("{}")
    assert from_photos(photos, tmp_path / "lost").frames[0].depth_path is None
    (photos / "scene.json").write_text('{"format": "sld sc')
    assert from_photos(photos, tmp_path / "damaged").frames[0].depth_path is None
    (photos / "sld-map.json").unlink()
    assert from_photos(photos, tmp_path / "others").frames[0].depth_path is not None


def test_huge_depth_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(20000, 5001, 16, 0) + bytes(100))
    with pytest.raises(
        SldError, match="bomb.png: 20000x5001 pixels; expected a 16-bit .* at most 100000000 pixels"
    ):
        read_depth(path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(
        SldError, match="text.png: neither JPEG nor PNG; expected a 16-bit single-channel PNG"
    ):
        read_depth(tmp_path / "text.png")


def test_only_settings_of_the_kind_of_source_count_as_a_change(tmp_path):
    defaults = FramesConfig(), BagConfig()
    changes = {
        "fps": (FramesConfig(fps=2), BagConfig()),
        "quality": (FramesConfig(jpeg_quality=50), BagConfig()),
        "blurred": (FramesConfig(reject_blurred=0.5), BagConfig()),
        "bag quality": (FramesConfig(), BagConfig(jpeg_quality=50)),
        "bag frames": (FramesConfig(), BagConfig(max_frames=9)),
    }
    for source, expected in (
        (Source(images=tmp_path), {"quality", "blurred"}),
        (Source(videos=(tmp_path,)), {"fps", "quality", "blurred"}),
        (Source(bag=tmp_path), {"fps", "blurred", "bag quality", "bag frames"}),
    ):
        before = settings_used(source, *defaults)
        found = {name for name, now in changes.items() if settings_used(source, *now) != before}
        assert found == expected
