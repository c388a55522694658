"""Frame sets from bags: with and without poses, calibration and depth; damaged ones."""

import dataclasses

import cv2
import drive_bag
import numpy as np
import pytest
from bag_messages import (
    SECOND,
    START,
    STORE,
    T_BASE_CAMERA,
    camera_info,
    compressed_image,
    odometry,
    raw_image,
    tf,
    transform,
    write_mcap,
    write_rosbags,
)
from rosbags.rosbag2 import StoragePlugin

from sld_core.config.mapping import FramesConfig
from sld_core.config.scene import BagConfig
from sld_core.data.frame_set import read_frame_set
from sld_core.data.pose_files import read_pose
from sld_core.data.sources import from_bag
from sld_core.geometry import make_transform, mean_up, pose_error
from sld_core.types import SldError
from sld_ros.mcap_writer import McapWriter

BY_5_CM = BagConfig(min_translation_m=0.045)


def base_at(second):
    return make_transform(np.eye(3), np.array([0.1 * second, 0, 0]))


def picture(value, size=(64, 48)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def drive(
    seconds=4,
    images=lambda i, stamp: raw_image(stamp, "rgb8", picture(2 * i)),
    poses=lambda i: True,
    info=camera_info,
    depth=None,
    depth_delay_ns=0,
):
    """(topic, stamp, message): images at 10 Hz, odometry as messages where `poses` says so, 0.1 m/s
    along x."""
    yield "/tf_static", START, tf(transform(START, "base_link", "camera", T_BASE_CAMERA))
    for i in range(10 * seconds):
        stamp = START + i * SECOND // 10
        if poses(i):
            yield "/odom", stamp, odometry(stamp, base_at(i / 10))
        if info:
            yield "/camera/camera_info", stamp, info(stamp)
        content = images(i, stamp)
        kind = "/compressed" if content.__msgtype__.endswith("CompressedImage") else ""
        yield f"/camera/image_raw{kind}", stamp, content
        if depth:
            yield "/camera/depth", stamp + depth_delay_ns, depth(i, stamp + depth_delay_ns)


def frames_of(tmp_path, content, bag_config=BY_5_CM, config=FramesConfig(), storage=None):
    bag = tmp_path / "bag"
    write_mcap(bag, content) if storage is None else write_rosbags(bag, content, storage)
    return from_bag(bag, tmp_path / "out", config, bag_config)


def numbers(frame_set):
    return [round((f.stamp_ns - START) * 10 / SECOND) for f in frame_set.frames]


@pytest.mark.parametrize("storage", [None, StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_keyframes_by_motion_with_poses_in_the_odometry_frame(tmp_path, storage):
    frame_set = frames_of(tmp_path, drive(), storage=storage)
    assert numbers(frame_set) == list(range(0, 40, 5))
    assert frame_set.intrinsics_known and (
        frame_set.world_frame,
        frame_set.world_z_up,
        frame_set.rejected,
    ) == ("odom", True, {})
    for i, frame in enumerate(frame_set.frames):
        assert max(pose_error(frame.T_world_camera, base_at(i / 2) @ T_BASE_CAMERA)) < 1e-9
        assert abs(int(cv2.imread(str(frame.image_path))[20, 30, 0]) - 10 * i) <= 1
    frame = frame_set.frames[1]
    assert (frame.name, frame.session, frame.camera.cx, frame.depth_path) == (
        "image-000001",
        "bag",
        32.5,
        None,
    )
    assert frame.source == "bag /camera/image_raw at 1700000000.500 s"
    again = read_frame_set(tmp_path / "out")
    assert all(
        (a.T_world_camera == b.T_world_camera).all() and a.source == b.source
        for a, b in zip(again.frames, frame_set.frames, strict=True)
    )


def test_without_poses_images_are_chosen_by_time(tmp_path, caplog):
    frame_set = frames_of(tmp_path, drive(poses=lambda i: False), config=FramesConfig(fps=2))
    assert numbers(frame_set) == list(range(0, 40, 5)) and all(
        f.T_world_camera is None for f in frame_set.frames
    )
    assert (frame_set.world_frame, frame_set.world_z_up) == (
        "",
        False,
    ) and "the chain of the camera: base_link < camera" in caplog.text


def test_a_long_bag_without_poses_is_thinned_evenly(tmp_path):
    frame_set = frames_of(
        tmp_path, drive(poses=lambda i: False), dataclasses.replace(BY_5_CM, max_frames=5)
    )
    assert numbers(frame_set) == [0, 10, 20, 30, 39]


def test_where_few_images_have_poses_they_keep_them_and_none_is_lost(tmp_path):
    frame_set = frames_of(tmp_path, drive(poses=lambda i: i < 25), config=FramesConfig(fps=2))
    assert numbers(frame_set) == list(range(0, 40, 5)) and frame_set.world_frame == "odom"
    assert [f.T_world_camera is not None for f in frame_set.frames] == [True] * 5 + [False] * 3


def test_images_before_the_first_pose_are_left_out_and_named(tmp_path):
    frame_set = frames_of(tmp_path, drive(poses=lambda i: i >= 2))
    assert numbers(frame_set)[0] == 2
    assert list(frame_set.rejected.values()) == ["no pose: odometry or TF does not cover it"] * 2


def test_a_world_frame_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SldError, match="no pose of the camera frame 'camera' in map"):
        frames_of(tmp_path, drive(), dataclasses.replace(BY_5_CM, world_frame="map"))


@pytest.mark.parametrize("info", [None, lambda stamp: camera_info(stamp, K=np.zeros(9))])
def test_without_a_calibration_the_camera_is_a_guess(tmp_path, info):
    frame_set = frames_of(tmp_path, drive(info=info))
    assert (
        not frame_set.intrinsics_known
        and frame_set.frames[0].camera.fx == 1.2 * 64
        and len(frame_set.frames) == 8
    )


def test_a_camera_info_topic_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SldError, match="no camera calibration on /x; the bag has"):
        frames_of(tmp_path, drive(), BagConfig(camera_info_topic="/x"))


def test_a_calibration_of_another_size_is_one_error_with_both_sizes(tmp_path):
    with pytest.raises(
        SldError,
        match="no usable image .8 left out.*other size: image is 64x48 but the camera "
        "calibration is for 128x96",
    ) as caught:
        frames_of(tmp_path, drive(info=lambda stamp: camera_info(stamp, width=128, height=96)))
    assert "\n" not in str(caught.value) and not any((tmp_path / "out").iterdir())


def test_jpegs_are_copied_and_damaged_ones_are_named(tmp_path):
    whole = cv2.imencode(".jpg", picture(50))[1].tobytes()
    size, sampling = whole.index(b"\xff\xc0") + 5, 4
    bomb = whole[:size] + b"\xff" * sampling + whole[size + sampling :]
    data = {5: whole[:-50], 10: b"", 15: bomb}
    frame_set = frames_of(
        tmp_path, drive(images=lambda i, stamp: compressed_image(stamp, data.get(i, whole)))
    )
    assert numbers(frame_set) == [0, 20, 25, 30, 35] and frame_set.frames[1].name == "image-000001"
    assert frame_set.frames[0].image_path.read_bytes() == whole
    cut, empty, huge = frame_set.rejected.values()
    assert cut.startswith("damaged: a damaged JPEG, perhaps cut short") and empty.startswith(
        "damaged: compressed image of 0 bytes"
    )
    assert huge.startswith("damaged: compressed image of 65535x65535 pixels")
    assert (
        "65535x65535" in frame_set.rejected["bag /camera/image_raw/compressed at 1700000001.500 s"]
    )


def test_pngs_and_distorted_jpegs_are_encoded_anew(tmp_path):
    data = cv2.imencode(".jpg", picture(200))[1].tobytes()
    frame_set = frames_of(
        tmp_path,
        drive(
            images=lambda i, stamp: compressed_image(stamp, data),
            info=lambda stamp: camera_info(stamp, (0.3, 0, 0, 0, 0)),
        ),
    )
    pixels = cv2.imread(str(frame_set.frames[0].image_path))
    assert abs(int(pixels[24, 32, 0]) - 200) <= 2 and pixels[0, 0, 0] <= 5


def tiled(*rows):
    """The pixels of these rows again and again, as an image of 64x48."""
    cell = np.array(rows, np.uint8)
    return np.tile(cell, (48 // cell.shape[0], 64 // cell.shape[1], *[1] * (cell.ndim - 2)))


@pytest.mark.parametrize(
    "encoding, pixels, rgb",
    [
        ("rgb8", tiled([[200, 100, 50]]), (200, 100, 50)),
        ("bgr8", tiled([[50, 100, 200]]), (200, 100, 50)),
        ("mono8", tiled([90]), (90, 90, 90)),
        # U Y V Y: red is 1.164 (Y - 16) + 1.596 (V - 128), green - 0.391 (U - 128) - 0.813 (V -
        # 128), blue + 2.018 (U - 128)
        ("yuv422", tiled([[90, 100], [200, 100]]), (213, 54, 21)),
        ("bayer_rggb8", tiled([200, 100], [100, 50]), (200, 100, 50)),
        ("bayer_grbg8", tiled([100, 200], [50, 100]), (200, 100, 50)),
    ],
)
def test_images_of_every_kind_have_their_colours(tmp_path, encoding, pixels, rgb):
    frame_set = frames_of(tmp_path, drive(1, lambda i, stamp: raw_image(stamp, encoding, pixels)))
    assert (
        np.abs(
            cv2.imread(str(frame_set.frames[0].image_path))[20, 30, ::-1].astype(int) - rgb
        ).max()
        <= 3
    )


def test_a_compressed_png_is_read(tmp_path):
    data = cv2.imencode(".png", tiled([[50, 100, 200]]))[1].tobytes()
    frame_set = frames_of(
        tmp_path,
        drive(1, lambda i, stamp: compressed_image(stamp, data, "rgb8; png compressed bgr8")),
    )
    assert frame_set.frames[0].image_path.read_bytes()[:2] == b"\xff\xd8"
    assert (
        np.abs(
            cv2.imread(str(frame_set.frames[0].image_path))[20, 30].astype(int) - [50, 100, 200]
        ).max()
        <= 3
    )


def test_nan_odometry_leaves_no_nan_pose(tmp_path):
    def content():
        for topic, stamp, message in drive():
            if topic == "/odom" and (stamp - START) // (SECOND // 10) % 4 == 1:
                message.pose.pose.position.x = float("nan")
            yield topic, stamp, message

    frame_set = frames_of(tmp_path, content())
    assert len(frame_set.frames) == 8 and all(
        np.isfinite(f.T_world_camera).all() for f in frame_set.frames
    )
    assert list(frame_set.rejected) == ["odom -> base_link"]
    assert "expected finite numbers" in frame_set.rejected["odom -> base_link"]


def test_all_nan_odometry_is_no_odometry(tmp_path):
    def content():
        for topic, stamp, message in drive():
            if topic == "/odom":
                message.pose.pose.orientation.w = float("nan")
            yield topic, stamp, message

    frame_set = frames_of(tmp_path, content())
    assert frame_set.world_frame == "" and all(f.T_world_camera is None for f in frame_set.frames)


def test_a_cut_bag_gives_what_it_holds(tmp_path):
    file = write_mcap(tmp_path / "bag", drive(8))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    frame_set = from_bag(tmp_path / "bag", tmp_path / "out", FramesConfig(), BY_5_CM)
    assert 4 <= len(frame_set.frames) <= 8
    assert frame_set.rejected["bag_0.mcap"].startswith(
        f"damaged: {file} is cut off or damaged after "
    )


def test_malformed_messages_are_named(tmp_path):
    (tmp_path / "bag").mkdir()
    writer, channels = McapWriter(tmp_path / "bag" / "bag_0.mcap"), {}
    for topic, stamp, content in drive():
        if topic not in channels:
            channels[topic] = writer.add_channel(topic, content.__msgtype__, "", "")
        data = bytes(STORE.serialize_cdr(content, content.__msgtype__))
        writer.write(channels[topic], stamp, b"\0\1\0\0" if topic == "/odom" else data)
    writer.close()
    frame_set = from_bag(tmp_path / "bag", tmp_path / "out")
    assert len(frame_set.frames) == 16 and list(frame_set.rejected) == ["/odom"]
    assert frame_set.rejected["/odom"].startswith(
        "damaged: a message of /odom at 1700000000000000000 ns is no nav_msgs/msg/Odometry"
    )
    assert read_frame_set(tmp_path / "out").rejected == frame_set.rejected


def test_the_session_is_a_label_like_the_name_of_the_bag(tmp_path):
    write_mcap(tmp_path / "drive\u202f3", drive(1)).rename(tmp_path / "drive\u202f3" / "a.mcap")
    frame, *_ = from_bag(tmp_path / "drive\u202f3", tmp_path / "out").frames
    assert frame.session == "drive 3" and frame.source.startswith(
        "drive\u202f3 /camera/image_raw at "
    )


def test_a_missing_bag_and_one_without_images_are_refused(tmp_path):
    with pytest.raises(SldError, match="no such recording"):
        from_bag(tmp_path / "none", tmp_path / "out")
    write_mcap(tmp_path / "bag", [])
    with pytest.raises(SldError, match="expected exactly one image topic"):
        from_bag(tmp_path / "bag", tmp_path / "out")


def millimetres(i, stamp):
    return raw_image(stamp, "16UC1", np.full((24, 32), 1000 + i, np.uint16))


def metres(i, stamp):
    values = np.full((24, 32), 1 + i / 1000, np.float32)
    values[0] = np.nan
    return raw_image(stamp, "32FC1", values)


def depths(frame_set):
    return [
        cv2.imread(str(f.depth_path), cv2.IMREAD_UNCHANGED) if f.depth_path else None
        for f in frame_set.frames
    ]


@pytest.mark.parametrize("depth", [millimetres, metres])
def test_depth_of_the_nearest_stamp_is_attached(tmp_path, depth):
    frame_set = frames_of(tmp_path, drive(depth=depth, depth_delay_ns=30_000_000))
    assert [int(d[12, 16]) for d in depths(frame_set)] == [1000 + 5 * i for i in range(8)]
    assert depths(frame_set)[0].dtype == np.uint16 and depths(frame_set)[0].shape == (24, 32)
    assert depths(frame_set)[0][0, 0] == (0 if depth is metres else 1000)
    assert [f.depth_path.name for f in frame_set.frames[:2]] == [
        "image-000000.depth.png",
        "image-000001.depth.png",
    ]
    assert read_frame_set(tmp_path / "out").frames[0].depth_path == frame_set.frames[0].depth_path


def test_depth_too_far_in_time_or_of_another_shape_is_not_attached(tmp_path):
    def far_and_square(i, stamp):
        return raw_image(stamp, "16UC1", np.ones((32, 32), np.uint16))

    assert depths(frames_of(tmp_path, drive(depth=far_and_square))) == [None] * 8
    sparse = [
        item
        for item in drive(depth=millimetres, depth_delay_ns=1)
        if item[0] != "/camera/depth" or (item[1] - START) // SECOND == 2
    ]
    other = tmp_path / "sparse"
    other.mkdir()
    assert [d is not None for d in depths(frames_of(other, sparse))] == [False] * 4 + [True] * 2 + [
        False
    ] * 2


def test_a_depth_topic_by_name(tmp_path):
    content = [
        *drive(depth=millimetres),
        *(
            ("/left/depth", stamp, millimetres(0, stamp))
            for stamp in range(START, START + 4 * SECOND, SECOND // 10)
        ),
    ]
    write_mcap(tmp_path / "bag", content)
    assert depths(from_bag(tmp_path / "bag", tmp_path / "two")) == [None] * len(
        from_bag(tmp_path / "bag", tmp_path / "again").frames
    )
    named = from_bag(
        tmp_path / "bag",
        tmp_path / "out",
        FramesConfig(),
        dataclasses.replace(BY_5_CM, depth_topic="/left/depth"),
    )
    assert [int(d[0, 0]) for d in depths(named)] == [1000] * 8
    for topic in ("/none", "/camera/image_raw"):
        with pytest.raises(
            SldError, match=f"expected depth images .16UC1 or 32FC1. on {topic}; the bag has"
        ):
            from_bag(
                tmp_path / "bag",
                tmp_path / topic[1:].replace("/", "_"),
                FramesConfig(),
                BagConfig(depth_topic=topic),
            )


def test_depth_is_undistorted_like_the_image(tmp_path):
    columns = np.tile(np.arange(64, dtype=np.uint16)[None], (48, 1))

    def image(i, stamp):
        return raw_image(stamp, "rgb8", np.repeat(columns[..., None].astype(np.uint8), 3, 2))

    frame_set = frames_of(
        tmp_path,
        drive(
            1,
            image,
            info=lambda stamp: camera_info(stamp, (0.2, 0, 0, 0, 0)),
            depth=lambda i, stamp: raw_image(stamp, "16UC1", columns),
        ),
    )
    image_row, depth_row = (
        cv2.imread(str(frame_set.frames[0].image_path))[24, :, 0].astype(int),
        depths(frame_set)[0][24].astype(int),
    )
    # column 56 is 24 / 50 = 0.48 from the middle: it shows 32 + 24 * (1 + 0.2 * 0.48^2) = 57.1
    assert (
        depth_row[56] == 57
        and np.abs(image_row - depth_row)[4:58].max() <= 3
        and depth_row[63] == 0
    )


def test_a_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(SldError, match="expected an empty folder"):
        frames_of(tmp_path, drive(1))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_damaged_sqlite3_bag_is_one_error_but_the_files_before_it_are_used(tmp_path):
    write_rosbags(tmp_path / "bag", drive(4), StoragePlugin.SQLITE3)
    file = next((tmp_path / "bag").glob("*.db3"))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    cut = file.with_name(
        f"{file.stem}_1.db3"
    )  # SQLite opens no file that is shorter than its header says
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    frame_set = from_bag(tmp_path / "bag", tmp_path / "out", FramesConfig(), BY_5_CM)
    assert len(frame_set.frames) == 8 and "bag is cut off or" in frame_set.rejected["bag"]
    file.unlink()
    with pytest.raises(SldError, match="bag: cannot be read") as caught:
        from_bag(tmp_path / "bag", tmp_path / "none", FramesConfig(), BY_5_CM)
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()


@pytest.mark.shared
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_real_drive_has_its_poses_at_the_stamps(tmp_path, storage):
    if not drive_bag.DRIVE.exists():
        pytest.skip(f"no {drive_bag.DRIVE} (set SLD_SHARED)")
    drive_bag.write_drive_bag(tmp_path / "bag", storage=storage, last=60)
    frame_set = from_bag(tmp_path / "bag", tmp_path / "out")
    T_odom_tracker = drive_bag.odom_from_tracker()
    assert 3 <= len(frame_set.frames) <= 20 and frame_set.world_frame == "odom"
    for frame in frame_set.frames:
        number = round((frame.stamp_ns - START) * drive_bag.RATE_HZ / SECOND)
        given = read_pose(drive_bag.DRIVE / f"frame-{number:06d}.pose.txt")
        assert max(pose_error(frame.T_world_camera, T_odom_tracker @ given)) < 1e-9
        assert (frame.camera.fx, frame.camera.cx, frame.camera.cy) == (526.94, 320, 240)
    assert mean_up(np.array([f.T_world_camera for f in frame_set.frames]))[2] > 0.9
