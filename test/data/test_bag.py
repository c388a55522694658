"""Bags: what is written is read, by rosbags too, and a broken file gives what it holds."""

import dataclasses
import os
import struct
import tracemalloc

import cv2
import numpy as np
import pytest
import zstandard
from bag_messages import (
    SECOND,
    START,
    STORE,
    T_BASE_CAMERA,
    camera_info,
    compressed_image,
    image,
    odometry,
    raw_image,
    tf,
    transform,
    write_mcap,
    write_rosbags,
)
from lz4.frame import compress as lz4_compress
from mcap.reader import NonSeekingReader, SeekingReader
from rosbags.rosbag2 import Reader, StoragePlugin

from sld_core.config.scene import BagConfig
from sld_core.config.settings import from_dict
from sld_core.data.bag import select_keyframes
from sld_core.data.bag_reader import IMAGES, messages, read_index, stamp_of
from sld_core.data.mcap_reader import scan
from sld_core.data.sources import Source, from_bag, teaching_frames
from sld_core.geometry import make_transform, pose_error, rotation_from_vector
from sld_core.types import SldError
from sld_ros.mcap_writer import CHUNK, MAGIC, McapWriter


def extract_frames(bag, folder, config=BagConfig(), progress=lambda progress: None):
    return teaching_frames(Source(bag=bag), folder, config, progress)


def base_at(second):
    """0.1 m/s along x."""
    return make_transform(np.eye(3), np.array([0.1 * second, 0, 0]))


def drive(seconds=10, D=(0.0,) * 5, odometry_as="tf", static=True, infos=True):
    """(topic, stamp, message): images at 10 Hz with the number of the image as its grey value,
    odometry at 5 Hz."""
    if static:
        yield "/tf_static", START, tf(transform(START, "base_link", "camera", T_BASE_CAMERA))
    for i in range(seconds * 10):
        stamp = START + i * SECOND // 10
        if i % 2 == 0 and odometry_as == "tf":
            yield "/tf", stamp, tf(transform(stamp, "odom", "base_link", base_at(i / 10)))
        elif i % 2 == 0 and odometry_as == "message":
            yield "/odom", stamp, odometry(stamp, base_at(i / 10))
        if infos:
            yield "/camera/camera_info", stamp, camera_info(stamp, D)
        yield "/camera/image_raw", stamp, image(stamp, value=i)


def test_rosbags_reads_what_our_writer_writes(tmp_path):
    file = write_mcap(tmp_path / "bag", drive(2))
    expected = [
        (topic, stamp, bytes(STORE.serialize_cdr(m, m.__msgtype__))) for topic, stamp, m in drive(2)
    ]
    with Reader(file) as reader:
        found = [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]
        assert reader.message_count == len(expected) and reader.duration == 1.9 * SECOND + 1
        assert reader.connections[0].msgdef.data.startswith(
            "geometry_msgs/TransformStamped[] transforms"
        )
    assert found == expected
    assert [(m.topic, m.time_ns, m.data) for m in scan(file)] == expected


def test_the_file_is_complete_after_every_flush_and_loses_only_what_was_not_flushed(
    tmp_path, caplog
):
    writer = McapWriter(tmp_path / "a.mcap")
    with Reader(tmp_path / "a.mcap") as reader:
        assert reader.message_count == 0
    channel = header_channel(writer)
    for i in range(6):  # 36 MB: the unwritten space at the end is used up twice
        writer.write(channel, i + 1, bytes(50))
        writer.flush()
        writer.write(channel, i + 1, bytes(6_000_000))  # pending
        with Reader(tmp_path / "a.mcap") as reader:
            assert len(list(reader.messages())) == reader.message_count == 2 * i + 1
        assert len(list(scan(tmp_path / "a.mcap"))) == 2 * i + 1
    writer.close()
    assert len(list(scan(tmp_path / "a.mcap"))) == 12 and not caplog.records
    assert (tmp_path / "a.mcap").stat().st_size < 36_100_000


def header_channel(writer, topic="/x"):
    definition, _ = STORE.generate_msgdef("std_msgs/msg/Header", ros_version=2)
    return writer.add_channel(topic, "std_msgs/msg/Header", definition, "")


def test_whenever_the_writer_is_killed_all_readers_read_what_was_flushed(tmp_path, monkeypatch):
    """After each of its writes the file is read from front to back, by its index, by rosbags and by
    ourselves."""
    file, pwrite, counts = tmp_path / "a.mcap", os.pwrite, []

    def write_and_read(*arguments):
        written = pwrite(*arguments)
        with open(file, "rb") as stream:
            ahead = list(NonSeekingReader(stream).iter_messages(log_time_order=False))
        with Reader(file) as reader:
            by_index = [bytes(data) for *_, data in reader.messages()]
        with open(file, "rb") as stream:  # reads from front to back where there is no index yet
            found = list(SeekingReader(stream, validate_crcs=True).iter_messages())
        assert found == (ahead[: len(by_index)] or ahead)
        assert [m.data for m in scan(file)] == [m.data for *_, m in ahead]
        # the head of a chunk is written before the footer that tells of it
        assert [m.data for *_, m in ahead[: len(by_index)]] == by_index
        assert len(ahead) - len(by_index) in (0, 2)
        counts.append(len(by_index))
        return written

    writer = McapWriter(file)
    monkeypatch.setattr(os, "pwrite", write_and_read)
    channel = header_channel(writer)
    for i in range(4):  # 24 MB: the free space is used up once
        writer.write(channel, 2 * i + 1, bytes([i]) * 50)
        writer.write(channel, 2 * i + 2, bytes(6_000_000))
        writer.flush()
    writer.close()
    assert counts == sorted(counts) and set(counts) == {0, 2, 4, 6, 8}


def test_no_chunk_is_written_before_a_message(tmp_path):
    writer = McapWriter(tmp_path / "a.mcap")
    channels = [header_channel(writer, topic) for topic in ("/x", "/y")]
    writer.flush()
    assert writer.pending_bytes > 0
    writer.write(channels[1], 5, bytes(50))
    writer.close()
    with open(tmp_path / "a.mcap", "rb") as stream:
        reader = SeekingReader(stream)
        (chunk,) = reader.get_summary().chunk_indexes
        assert chunk.message_start_time == 5
        assert [c.topic for c in reader.get_summary().channels.values()] == ["/x", "/y"]


def test_scan_of_a_file_cut_anywhere_gives_a_prefix_and_one_warning(tmp_path, caplog):
    file = write_mcap(tmp_path / "bag", drive(3))
    whole = file.read_bytes()
    complete = list(scan(file))
    for cut in [9, 50, 1000, *range(20_000, len(whole), 20_000)]:
        file.write_bytes(whole[:cut])
        caplog.clear()
        part = list(scan(file))
        assert part == complete[: len(part)] and len(part) < len(complete) or part == complete
        assert len(caplog.records) <= 1
        if len(part) < len(complete):
            assert "cut off or damaged" in caplog.text
    assert len(part) > 0


def test_a_chunk_overwritten_halfway_is_noticed_by_its_checksum(tmp_path, caplog):
    """What a kill in the middle of a flush leaves: new bytes, then old ones, at the full length."""
    file = write_mcap(tmp_path / "bag", drive(3))
    damaged = bytearray(file.read_bytes())
    damaged[-100_000:-99_000] = bytes(1000)
    file.write_bytes(damaged)
    assert 0 < len(list(scan(file))) < len(list(drive(3)))
    assert "cut off or damaged" in caplog.text


def test_zeros_at_the_end_are_told_and_not_read_one_by_one(tmp_path, caplog):
    """What a power cut leaves behind: space that was promised and never written."""
    file = write_mcap(tmp_path / "bag", drive(3))
    complete = list(scan(file))
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size - 100_000)
        stream.truncate(10**11)
    part = list(scan(file))
    assert 0 < len(part) < len(complete) and part == complete[: len(part)]
    assert "cut off or damaged" in caplog.text


def test_a_length_beyond_the_end_takes_no_memory(tmp_path, caplog):
    for body in (b"", struct.pack("<QQQII", 0, 0, 0, 0, 0) + struct.pack("<Q", 2**40)):
        for length in (len(body), 2**29, 2**60):
            (tmp_path / "a.mcap").write_bytes(MAGIC + struct.pack("<BQ", CHUNK, length) + body)
            caplog.clear()
            tracemalloc.start()
            try:
                assert list(scan(tmp_path / "a.mcap")) == []
                assert tracemalloc.get_traced_memory()[1] < 10**6
            finally:
                tracemalloc.stop()
            assert "cut off or damaged" in caplog.text


def test_a_file_that_is_no_mcap_is_refused(tmp_path):
    (tmp_path / "a.mcap").write_bytes(b"something else")
    with pytest.raises(SldError, match="not an mcap file"):
        list(scan(tmp_path / "a.mcap"))


@pytest.mark.parametrize("source", ["ours", "mcap", "sqlite3", "odometry", "no metadata.yaml"])
def test_extracts_frames_with_poses_at_the_image_stamps(tmp_path, source):
    bag = tmp_path / "bag"
    content = drive(10, odometry_as="message" if source == "odometry" else "tf")
    if source in ("ours", "odometry"):
        write_mcap(bag, content)
    else:
        write_rosbags(
            bag, content, StoragePlugin.MCAP if source == "mcap" else StoragePlugin.SQLITE3
        )
    if source == "no metadata.yaml":
        (bag / "metadata.yaml").unlink()
    frames = extract_frames(bag, tmp_path / "frames", BagConfig(min_translation_m=0.045))
    # 0.1 m/s: one frame each 0.045 m is every fifth image; the last odometry is at 9.8 s
    assert [f.stamp_ns for f in frames] == [START + i * SECOND // 10 for i in range(0, 98, 5)]
    for i, frame in enumerate(frames):
        metres, radians = pose_error(frame.T_world_camera, base_at(i / 2) @ T_BASE_CAMERA)
        assert metres < 1e-9 and radians < 1e-9
        assert abs(int(cv2.imread(str(frame.image_path))[20, 30, 0]) - 5 * i) <= 1
    assert (frames[0].camera.fx, frames[0].camera.cx, frames[0].camera.cy) == (50, 32.5, 24.5)


def test_a_second_call_returns_at_once_and_another_configuration_does_not(tmp_path):
    write_mcap(tmp_path / "bag", drive(3))
    first = extract_frames(tmp_path / "bag", tmp_path / "frames")
    written = first[0].image_path.stat().st_mtime_ns
    again = extract_frames(
        tmp_path / "bag",
        tmp_path / "frames",
        BagConfig(),
        lambda progress: pytest.fail("worked again"),
    )
    assert [f.stamp_ns for f in again] == [f.stamp_ns for f in first] and first[
        0
    ].image_path.stat().st_mtime_ns == written
    fewer = extract_frames(tmp_path / "bag", tmp_path / "frames", BagConfig(min_translation_m=0.1))
    assert len(fewer) < len(first)


def test_a_cut_bag_gives_its_readable_part_with_one_warning(tmp_path, caplog):
    file = write_mcap(tmp_path / "bag", drive(10))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    frames = extract_frames(tmp_path / "bag", tmp_path / "frames")
    assert 5 <= len(frames) <= 10
    assert "bag_0.mcap is cut off or damaged" in caplog.text
    assert "1 images left out: 1 damaged" in caplog.text


def test_distorted_images_are_undistorted(tmp_path):
    write_mcap(tmp_path / "bag", drive(1, D=(0.2, 0, 0, 0, 0)))
    frame = extract_frames(
        tmp_path / "bag", tmp_path / "frames", BagConfig(min_translation_m=0.009)
    )[8]
    pixels = cv2.imread(str(frame.image_path))
    assert (
        pixels[24, 32, 0] == 8 and pixels[0, 0, 0] <= 1
    )  # the corners come from outside of the image


def test_rectified_images_use_P(tmp_path):
    write_mcap(tmp_path / "bag", drive(1, D=(0.2, 0, 0, 0, 0)))
    assert (
        extract_frames(tmp_path / "bag", tmp_path / "frames", BagConfig(rectified=True))[
            0
        ].camera.fx
        == 45
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ((), "expected exactly one image topic"),
        (
            drive(1, infos=False),
            "no camera calibration on /camera/camera_info; the bag has /camera/image_raw",
        ),
        (
            drive(1, static=False),
            "no pose of the camera frame 'camera'.*known frames: base_link, odom",
        ),
        (
            drive(1, odometry_as="none"),
            "known frames: base_link, camera; the chain of the camera: base_link < camera",
        ),
    ],
)
def test_what_a_bag_lacks_is_named(tmp_path, content, words):
    write_mcap(tmp_path / "bag", content)
    with pytest.raises(SldError, match=words):
        extract_frames(tmp_path / "bag", tmp_path / "frames")


def test_a_missing_bag_and_a_folder_without_one_are_refused(tmp_path):
    with pytest.raises(SldError, match="no such file or folder"):
        extract_frames(tmp_path / "none", tmp_path / "frames")
    with pytest.raises(SldError, match="no rosbag2 recording"):
        list(messages(tmp_path, ("std_msgs/msg/Header",)))


def test_the_map_frame_is_preferred_where_it_covers_most_images(tmp_path):
    def with_map(first_second):
        yield from drive(10)
        for i in range(first_second * 10, 100):
            stamp = START + i * SECOND // 10
            yield (
                "/tf",
                stamp,
                tf(
                    transform(
                        stamp, "map", "odom", make_transform(np.eye(3), np.array([0, 7.0, 0]))
                    )
                ),
            )

    write_mcap(tmp_path / "early", with_map(1))
    write_mcap(tmp_path / "late", with_map(8))
    early = extract_frames(tmp_path / "early", tmp_path / "a")
    late = extract_frames(tmp_path / "late", tmp_path / "b")
    assert early[0].T_world_camera[1, 3] == pytest.approx(7) and late[0].T_world_camera[
        1, 3
    ] == pytest.approx(0)


def test_keyframes_by_distance_angle_and_time():
    config = BagConfig(min_translation_m=0.05, min_rotation_deg=5, max_interval_s=2)

    def pose(x=0.0, yaw_deg=0.0):
        return make_transform(
            rotation_from_vector(np.array([0, 0, np.radians(yaw_deg)])), np.array([x, 0, 0])
        )

    poses = {
        0: pose(),
        1: pose(0.04),
        2: pose(0.06),
        3: pose(0.06, 4),
        4: pose(0.06, 6),
        2 * SECOND: pose(0.06, 6),
        3 * SECOND: pose(0.06, 6),
    }
    assert select_keyframes(poses, config) == [0, 2, 4, 3 * SECOND]


def test_thresholds_grow_until_few_enough_are_left():
    poses = {i: make_transform(np.eye(3), np.array([0.1 * i, 0, 0])) for i in range(1000)}
    keep = select_keyframes(poses, dataclasses.replace(BagConfig(), max_frames=100))
    assert 80 <= len(keep) <= 100 and len(set(np.diff(keep))) <= 2  # spread evenly


def test_the_images_are_a_folder_of_frames(tmp_path):
    from sld_core.data.frame_folder import read_frames

    write_mcap(tmp_path / "bag", drive(1))
    frames = extract_frames(tmp_path / "bag", tmp_path / "frames")
    again = read_frames(tmp_path / "frames" / "images")
    assert [f.name for f in again] == [f.name for f in frames]
    (tmp_path / "list.txt").write_text("image-000001\n")
    (one,) = read_frames(tmp_path / "frames" / "images", tmp_path / "list.txt")
    assert (one.T_world_camera == frames[1].T_world_camera).all()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    write_mcap(tmp_path / "bag", drive(1))
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "precious").write_text("")
    with pytest.raises(SldError, match="choose an empty folder"):
        extract_frames(tmp_path / "bag", tmp_path / "frames")
    assert (tmp_path / "frames" / "precious").exists()


def test_extracted_images_that_were_lost_are_extracted_again(tmp_path, caplog):
    write_mcap(tmp_path / "bag", drive(1))
    first = extract_frames(tmp_path / "bag", tmp_path / "frames")
    first[0].image_path.unlink()
    again = extract_frames(tmp_path / "bag", tmp_path / "frames")
    assert len(again) == len(first) and first[0].image_path.exists()
    assert "image-000000.color.jpg: cannot be read" in caplog.text


def test_one_damaged_image_is_named_and_the_others_are_taught(tmp_path, caplog):
    def with_damage():
        for topic, stamp, content in drive(3):
            if content.__msgtype__.endswith("Image"):
                data = cv2.imencode(".jpg", np.full((48, 64, 3), 99, np.uint8))[1].tobytes()
                data = data[:30] if stamp == START + SECOND else data
                topic, content = topic + "/compressed", compressed_image(stamp, data)
            yield topic, stamp, content

    write_mcap(tmp_path / "bag", with_damage())
    config = BagConfig(min_translation_m=0.045)
    frames = extract_frames(tmp_path / "bag", tmp_path / "frames", config)
    assert [(f.stamp_ns - START) / SECOND for f in frames] == [0, 0.5, 1.5, 2.0, 2.5]
    assert "2 images left out: 1 no pose, 1 damaged" in caplog.text  # the last one is without
    name = "bag /camera/image_raw/compressed at 1700000001.000 s"
    assert f"left out: {name}: damaged: compressed image of 30 bytes: a damaged JPEG" in caplog.text
    caplog.clear()  # told again where the frames are at hand
    extract_frames(tmp_path / "bag", tmp_path / "frames", config)
    assert name in caplog.text


def test_depth_images_come_along(tmp_path):
    def with_depth():
        for topic, stamp, content in drive(1):
            yield topic, stamp, content
            if topic == "/camera/image_raw":
                yield "/depth", stamp, raw_image(stamp, "16UC1", np.full((24, 32), 1500, np.uint16))

    write_mcap(tmp_path / "bag", with_depth())
    for frame in extract_frames(tmp_path / "bag", tmp_path / "frames"):
        assert (cv2.imread(str(frame.depth_path), cv2.IMREAD_UNCHANGED) == 1500).all()


def test_the_quality_of_jpegs_is_a_setting_of_the_bag(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    content = [
        (topic, stamp, raw_image(stamp, "rgb8", noise) if topic.endswith("raw") else message)
        for topic, stamp, message in drive(1)
    ]
    write_mcap(tmp_path / "bag", content)
    sizes = []
    for quality in (30, 95):
        config = BagConfig(jpeg_quality=quality)
        frames = extract_frames(tmp_path / "bag", tmp_path / f"teach {quality}", config)
        mapped = from_bag(tmp_path / "bag", tmp_path / f"map {quality}", bag_config=config).frames
        assert frames[0].image_path.read_bytes() == mapped[0].image_path.read_bytes()
        sizes.append(frames[0].image_path.stat().st_size)
    assert sizes[0] < sizes[1] / 2


def test_a_camera_without_calibration_is_refused(tmp_path):
    content = [
        (topic, stamp, camera_info(stamp, K=np.zeros(9)) if topic.endswith("info") else message)
        for topic, stamp, message in drive(1)
    ]
    write_mcap(tmp_path / "bag", content)
    with pytest.raises(SldError, match="the camera is not calibrated .K is all zero."):
        extract_frames(tmp_path / "bag", tmp_path / "frames")


def test_an_unfinished_extraction_starts_again(tmp_path):
    write_mcap(tmp_path / "bag", drive(2))

    def kill(progress):
        if progress.stage == "extracting frames":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_frames(tmp_path / "bag", tmp_path / "frames", BagConfig(), kill)
    assert len(extract_frames(tmp_path / "bag", tmp_path / "frames")) >= 3


def test_images_in_a_gap_of_odometry_are_left_out_and_counted(tmp_path, caplog):
    content = [
        item for item in drive(10) if not (item[0] == "/tf" and 3 < (item[1] - START) / SECOND < 6)
    ]
    write_mcap(tmp_path / "bag", content)
    frames = extract_frames(tmp_path / "bag", tmp_path / "frames")
    seconds = np.array([f.stamp_ns - START for f in frames]) / SECOND
    assert len(frames) > 5 and not ((seconds > 3) & (seconds < 6)).any()
    assert "29 of 100 images left out" in caplog.text and "gap of 3.000 s" in caplog.text


def test_poses_that_are_not_finite_are_skipped_with_one_warning(tmp_path, caplog):
    def with_nan():
        for topic, stamp, content in drive(3):
            if topic == "/tf" and stamp % SECOND == SECOND * 4 // 10:
                content.transforms[0].transform.translation.x = float("nan")
            yield topic, stamp, content

    write_mcap(tmp_path / "bag", with_nan())
    frames = extract_frames(tmp_path / "bag", tmp_path / "frames")
    assert len(frames) >= 3 and all(np.isfinite(f.T_world_camera).all() for f in frames)
    assert caplog.text.count("expected finite numbers") == 1


def test_malformed_messages_are_skipped_with_one_warning_a_topic(tmp_path, caplog):
    file = write_mcap(tmp_path / "bag", [])
    file.unlink()
    writer, channels = McapWriter(file), {}
    for topic, stamp, content in drive(3):
        kind = content.__msgtype__
        if topic not in channels:
            channels[topic] = writer.add_channel(topic, kind, "", "")
            for _ in range(2):
                writer.write(channels[topic], stamp, b"\0\1\0\0" + b"\xff" * 9)
        writer.write(channels[topic], stamp, bytes(STORE.serialize_cdr(content, kind)))
    writer.close()
    assert len(extract_frames(tmp_path / "bag", tmp_path / "frames")) >= 3
    assert caplog.text.count("a message of") == len(channels)


def test_a_chunk_too_short_for_its_head_ends_the_file_with_a_warning(tmp_path, caplog):
    (tmp_path / "a.mcap").write_bytes(
        b"\x89MCAP0\r\n" + b"\x06" + (5).to_bytes(8, "little") + bytes(5)
    )
    assert list(scan(tmp_path / "a.mcap")) == []
    assert "damaged" in caplog.text


@pytest.mark.parametrize("ours", [True, False])
def test_a_binary_metadata_file_is_tolerated_or_named(tmp_path, ours):
    bag = tmp_path / "bag"
    write_mcap(bag, drive(3)) if ours else write_rosbags(bag, drive(3), StoragePlugin.SQLITE3)
    (bag / "metadata.yaml").write_bytes(bytes(range(128, 256)))
    if ours:
        assert extract_frames(bag, tmp_path / "frames")
    else:
        with pytest.raises(SldError, match="cannot be read"):
            extract_frames(bag, tmp_path / "frames")


@pytest.mark.parametrize("record", ['{"complete": "a', "", "3", "{}"])
def test_a_record_cut_off_by_a_kill_starts_again(tmp_path, record):
    write_mcap(tmp_path / "bag", drive(1))
    extract_frames(tmp_path / "bag", tmp_path / "frames")
    (tmp_path / "frames" / "stage.json").write_text(record)
    assert extract_frames(tmp_path / "bag", tmp_path / "frames")


@pytest.mark.parametrize("threshold", ["min_translation_m", "min_rotation_deg", "max_interval_s"])
def test_a_threshold_of_nothing_keeps_all_and_is_thinned_evenly(threshold):
    poses = {i * SECOND: make_transform(np.eye(3), np.array([0.01 * i, 0, 0])) for i in range(101)}
    config = dataclasses.replace(BagConfig(max_frames=11), **{threshold: 0.0})
    assert select_keyframes(poses, config) == [10 * i * SECOND for i in range(11)]
    assert select_keyframes(poses, dataclasses.replace(config, max_frames=101)) == list(poses)
    with pytest.raises(SldError, match=f"setting {threshold}=-0.1: expected a number from 0.0"):
        from_dict({threshold: -0.1}, BagConfig)


def test_thresholds_next_to_nothing_end_too():
    poses = {i: make_transform(np.eye(3), np.array([i, 0, 0])) for i in range(20)}
    assert len(select_keyframes(poses, BagConfig(min_translation_m=1e-300, max_frames=5))) == 5


def test_a_folder_named_like_a_file_is_a_bag(tmp_path):
    """`ros2 bag record -o drive.mcap` makes one."""
    for name, storage in (
        ("a.mcap", StoragePlugin.MCAP),
        ("b.mcap", StoragePlugin.SQLITE3),
        ("c.db3", StoragePlugin.MCAP),
    ):
        write_rosbags(tmp_path / name, drive(1), storage)
        assert len(list(messages(tmp_path / name, IMAGES))) == 10
    file = write_mcap(tmp_path / "d", drive(1))
    assert len(list(messages(file, IMAGES))) == 10


def test_the_files_of_a_split_bag_are_read_in_the_order_of_their_numbers(tmp_path):
    bag = tmp_path / "bag"
    bag.mkdir()
    for part in (2, 10, 0):
        content = [("/camera/image_raw", stamp, image(stamp)) for stamp in [START + part * SECOND]]
        write_mcap(tmp_path / f"part_{part}", content).rename(bag / f"bag_{part}.mcap")
    assert [(stamp_of(m) - START) // SECOND for m in messages(bag, IMAGES)] == [0, 2, 10]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["bag_1.mcap", "bag_1.db3", "metadata.yaml"])
def test_a_pipe_in_a_bag_is_not_waited_for(tmp_path, name):
    write_mcap(tmp_path / "bag", drive(1))
    os.mkfifo(tmp_path / "bag" / name)
    with pytest.raises(SldError, match=f"{name}: a device or pipe; expected a bag of files"):
        list(messages(tmp_path / "bag", IMAGES))
    with pytest.raises(SldError, match=f"{name}: no file; expected an mcap file"):
        list(scan(tmp_path / "bag" / name))


def chunk_file(path, records, compression, size):
    """An mcap file of one chunk, without a checksum, that says its records have `size` bytes."""
    packed = {"": bytes, "lz4": lz4_compress, "zstd": zstandard.compress}[compression](records)
    name = compression.encode()
    body = (
        struct.pack("<QQQII", 0, 0, size, 0, len(name))
        + name
        + struct.pack("<Q", len(packed))
        + packed
    )
    path.write_bytes(MAGIC + struct.pack("<BQ", CHUNK, len(body)) + body)
    return path


@pytest.mark.parametrize("compression", ["", "lz4", "zstd"])
def test_a_chunk_of_another_size_than_it_says_is_damaged(tmp_path, compression, caplog):
    def text(content):
        return struct.pack("<I", len(content)) + content

    def record(kind, body):
        return struct.pack("<BQ", kind, len(body)) + body

    records = b"".join(
        [
            record(3, struct.pack("<H", 1) + text(b"x/msg/X") + text(b"") + text(b"")),
            record(4, struct.pack("<HH", 1, 1) + text(b"/x") + text(b"cdr") + struct.pack("<I", 0)),
            record(5, struct.pack("<HIQQ", 1, 0, 7, 7) + b"data"),
        ]
    )
    (found,) = scan(chunk_file(tmp_path / "a.mcap", records, compression, len(records)))
    assert found == ("/x", "x/msg/X", 7, b"data")
    for size in (len(records) - 1, len(records) + 1, 0):
        caplog.clear()
        assert list(scan(chunk_file(tmp_path / "a.mcap", records, compression, size))) == []
        assert "a.mcap is cut off or damaged" in caplog.text


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize(
    "size, words",
    [
        (1000, "says it holds 1000 bytes and holds more"),
        (2**30 + 1, "bytes; expected at most 1073741824"),
    ],
)
def test_a_chunk_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path, compression, size, words, caplog
):
    file = chunk_file(tmp_path / "a.mcap", bytes(64 * 10**6), compression, size)
    assert file.stat().st_size < 300_000
    tracemalloc.start()
    try:
        assert list(scan(file)) == []
        assert tracemalloc.get_traced_memory()[1] < 10 * 10**6
    finally:
        tracemalloc.stop()
    assert words in caplog.text and "damaged" in caplog.text


def test_an_earlier_extraction_is_replaced_unless_there_are_files_of_others(tmp_path):
    bag, folder = tmp_path / "bag", tmp_path / "frames"
    write_mcap(bag, drive(3))
    before = len(extract_frames(bag, folder))
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(SldError, match="files that sld did not write, such as thesis.txt; choose"):
        extract_frames(bag, folder, BagConfig(min_translation_m=0.1))
    assert (folder / "thesis.txt").exists()
    assert len(list((folder / "images").glob("*.jpg"))) == before
    (folder / "thesis.txt").unlink()
    fewer = extract_frames(bag, folder, BagConfig(min_translation_m=0.1))
    assert len(list((folder / "images").glob("*.jpg"))) == len(fewer) < before


def test_what_is_damaged_is_remembered(tmp_path):
    content = [
        *drive(2),
        *(
            ("/tf", START + i, tf(transform(START + i, "a", "b", np.full((4, 4), np.nan))))
            for i in range(2)
        ),
    ]
    file = write_mcap(tmp_path / "bag", content)
    assert read_index(tmp_path / "bag", lambda progress: None).damage.keys() == {"a -> b"}
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damage = read_index(tmp_path / "bag", lambda progress: None).damage
    assert list(damage) == ["bag_0.mcap"] and damage["bag_0.mcap"].startswith(
        f"{file} is cut off or damaged after"
    )
