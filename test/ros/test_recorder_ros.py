"""The recorder as a process, over DDS: what it writes is read, also after kill -9."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sld_core.geometry import make_transform
from sld_core.types import Camera

pytestmark = pytest.mark.ros

CAMERA = Camera(320, 240, 250.0, 250.0, 160.5, 120.5)


@pytest.fixture
def drive(ros):
    """Publishes images at 20 Hz, TF and a latched static TF, until the test ends."""
    from nav_msgs.msg import Odometry
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image

    from sld_ros.conversions import camera_info_message, image_message, transform_message
    from sld_ros.tf import StaticTransformBroadcaster, TransformBroadcaster

    node = ros.node("drive")
    images = node.create_publisher(Image, "image", qos_profile_sensor_data)
    infos = node.create_publisher(CameraInfo, "camera_info", 10)
    node.create_publisher(Odometry, "odom", 10)
    tf = TransformBroadcaster(node)
    StaticTransformBroadcaster(node).send([transform_message(np.eye(4), 0, "base_link", "camera")])
    ended = threading.Event()

    def publish():
        first = time.time_ns()
        while not ended.wait(0.05):
            stamp = time.time_ns()
            position = np.array([(stamp - first) / 1e9, 0, 0])  # 1 m/s
            tf.send(
                [transform_message(make_transform(np.eye(3), position), stamp, "odom", "base_link")]
            )
            infos.publish(camera_info_message(CAMERA, stamp, "camera"))
            images.publish(image_message(np.full((240, 320, 3), 128, np.uint8), stamp, "camera"))

    thread = threading.Thread(target=publish)
    thread.start()
    yield node
    ended.set()
    thread.join()


@pytest.fixture
def services(ros):
    """start(name) and stop() of the recorder."""
    from sld.srv import StartRecording, StopRecording

    node = ros.node("client")
    start, stop = (
        node.create_client(StartRecording, "/recorder/start"),
        node.create_client(StopRecording, "/recorder/stop"),
    )
    return (lambda name: ros.call(start, StartRecording.Request(name=name), 20)), (
        lambda: ros.call(stop, StopRecording.Request())
    )


def image_count(folder):
    """Images that rosbags finds, after checking that metadata.yaml agrees with the file."""
    from rosbags.rosbag2 import Reader

    with Reader(folder) as reader:
        found = [c.topic for c, _, _ in reader.messages()]
        assert reader.message_count == len(found)
        return found.count("/image")


def test_records_until_stopped_and_refuses_what_it_cannot_do(ros, drive, services, tmp_path):
    from sld_core.config.scene import BagConfig
    from sld_core.data.sources import Source, teaching_frames

    start, stop = services
    ros.process("sld_ros.recorder_node", output_folder=tmp_path)
    assert "nothing is being recorded" in stop().error
    started = start("drive")
    assert started.success, started.error
    assert Path(started.path) == tmp_path / "drive" and set(started.topics) == {
        "/image",
        "/camera_info",
        "/odom",
        "/tf",
        "/tf_static",
    }
    assert "already recording" in start("other").error
    time.sleep(2.5)
    stopped = stop()
    counts = {t.topic: t.count for t in stopped.topics}
    assert stopped.success and stopped.duration == pytest.approx(2.5, abs=0.7)
    assert (
        counts["/tf_static"] == 1
        and counts["/odom"] == 0
        and 35 <= counts["/image"] <= 60
        and counts["/tf"] >= counts["/image"] - 2
    )
    assert sum(t.dropped for t in stopped.topics) == 0
    assert image_count(tmp_path / "drive") == counts["/image"]
    assert "exists already" in start("drive").error
    assert "expected letters" in start("../elsewhere").error
    source, config = Source(bag=tmp_path / "drive"), BagConfig(min_translation_m=0.3)
    frames = teaching_frames(source, tmp_path / "frames", config)
    steps = np.diff([f.T_world_camera[0, 3] for f in frames])
    assert len(frames) >= 5 and (steps > 0.3).all() and (steps < 0.5).all()


def test_killed_it_leaves_a_bag_that_is_read(ros, drive, services, tmp_path):
    start, _ = services
    recorder = ros.process("sld_ros.recorder_node", output_folder=tmp_path)
    assert start("drive").success
    time.sleep(3.3)
    recorder.kill()
    recorder.wait()
    assert 40 <= image_count(tmp_path / "drive") <= 66  # at most the last second is lost


def test_interrupted_it_closes_the_bag(ros, drive, services, tmp_path):
    start, _ = services
    recorder = ros.process("sld_ros.recorder_node", output_folder=tmp_path)
    assert start("drive").success
    time.sleep(0.8)  # before the first flush
    recorder.terminate()
    recorder.wait(10)
    assert image_count(tmp_path / "drive") >= 8


def test_without_publishers_it_says_what_is_missing(ros, services, tmp_path):
    start, _ = services
    ros.process("sld_ros.recorder_node", output_folder=tmp_path, discovery_timeout=0.2)
    error = start("drive").error
    assert (
        "images nor of a camera calibration nor of odometry or TF" in error
        and "/image, /camera_info" in error
    )
    assert not (tmp_path / "drive").exists()


def test_a_full_disk_is_refused(ros, drive, services, tmp_path):
    start, _ = services
    ros.process("sld_ros.recorder_node", output_folder=tmp_path, min_free_disk=2**60)
    assert "less than min_free_disk" in start("drive").error


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"queue_size": 5}, "queue_size = 5: expected int from 1048576"),
        ({"min_free_disk": "much"}, "min_free_disk = 'much': expected int"),
    ],
)
def test_wrong_parameters_stop_it_with_one_line(ros, parameters, words):
    node = ros.process("sld_ros.recorder_node", **parameters)
    _, text = node.communicate(timeout=20)
    assert node.returncode == 1 and words in text and len(text.strip().splitlines()) == 1


def test_images_lost_on_their_way_are_counted_by_their_stamps(ros, services, tmp_path):
    """A third of the images never arrives; nothing was dropped by the recorder."""
    from sensor_msgs.msg import CameraInfo, Image
    from tf2_msgs.msg import TFMessage

    node = ros.node("drive")
    images = node.create_publisher(Image, "image", 100)
    node.create_publisher(CameraInfo, "camera_info", 10)
    node.create_publisher(TFMessage, "/tf", 10)
    start, stop = services
    recorder = ros.process("sld_ros.recorder_node", output_folder=tmp_path)
    assert start("drive").success
    ros.wait_for(images.get_subscription_count, "the recorder's subscription")
    for i in range(90):
        if i % 3:
            message = Image(width=1, height=1, encoding="mono8", step=1, data=bytes(1))
            message.header.stamp.sec = i // 20
            message.header.stamp.nanosec = i % 20 * 50_000_000
            images.publish(message)
            time.sleep(0.01)
    time.sleep(0.5)
    counts = {t.topic: t for t in stop().topics}["/image"]
    assert (counts.count, counts.dropped) == (60, 0)
    assert counts.missing == 25  # of 29 between the first and the last, less 4 of the first ten
    recorder.terminate()
    _, text = recorder.communicate(timeout=10)
    assert "images lost on their way" in text and "25 of /image" in text


def test_a_type_that_is_not_installed_is_named_at_start_and_skipped_later(
    ros, drive, services, tmp_path, monkeypatch
):
    from sld_ros.recorder_node import RecorderNode

    start, stop = services
    absent = {"/odom": "absent_msgs/msg/Thing"}
    type_of = RecorderNode._type_of
    monkeypatch.setattr(
        RecorderNode,
        "_type_of",
        lambda self, topic: absent[topic] if topic in absent else type_of(self, topic),
    )
    monkeypatch.chdir(tmp_path)
    ros.node(RecorderNode())
    error = start("drive").error
    assert (
        "topic /odom: its type absent_msgs/msg/Thing cannot be imported" in error
        and not (tmp_path / "recordings").exists()
    )
    absent["/odom"] = None  # no publisher yet
    assert start("drive").success
    absent["/odom"] = "absent_msgs/msg/Thing"
    time.sleep(2.5)
    stopped = stop()
    assert stopped.success and {t.topic for t in stopped.topics} == {
        "/image",
        "/camera_info",
        "/tf",
        "/tf_static",
    }


@pytest.fixture
def disk(monkeypatch):
    """Set `disk.full` and nothing can be written to mcap files."""
    import errno
    import os
    from types import SimpleNamespace

    disk, pwrite = SimpleNamespace(full=False), os.pwrite

    def write(*arguments):
        if disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", write)
    return disk


def test_a_disk_full_at_the_start_is_one_line_and_leaves_no_folder(disk, tmp_path):
    from sld_core.types import SldError
    from sld_ros.bag_writer import BagWriter

    disk.full = True
    with pytest.raises(SldError, match="No space left.*is the disk full"):
        BagWriter(tmp_path / "bag", 2**26, 0)
    assert not (tmp_path / "bag").exists()


@pytest.mark.parametrize("again", [True, False])
def test_a_disk_that_fills_ends_the_recording_and_the_counts_are_of_the_file(
    disk, ros, tmp_path, monkeypatch, again
):
    from rosbags.rosbag2 import Reader

    from sld_ros import bag_writer

    monkeypatch.setattr(bag_writer, "FLUSH_S", 0.05)
    writer = bag_writer.BagWriter(tmp_path / "bag", 2**26, 0)
    writer.add_topic("/x", "std_msgs/msg/Header", [])
    for i in range(3):
        writer.write("/x", i + 1, bytes(50))
    ros.wait_for(lambda: writer.duration_s > 0, "flush")
    time.sleep(0.1)
    disk.full = True
    writer.write("/x", 9, bytes(50))
    ros.wait_for(lambda: writer.error, "error")
    writer.write("/x", 10, bytes(50))
    disk.full = not again
    writer.close()
    topic = writer.topics["/x"]
    with Reader(tmp_path / "bag") as reader:
        assert (
            reader.message_count
            == len(list(reader.messages()))
            == topic.written
            == (4 if again else 3)
        )
    assert "No space left on device" in writer.error and topic.written + topic.dropped == 5


def test_a_defect_while_writing_is_reported_and_the_bag_still_closes(ros, tmp_path, monkeypatch):
    from sld_ros import bag_writer
    from sld_ros.mcap_writer import McapWriter

    writer = bag_writer.BagWriter(tmp_path / "bag", 2**26, 0)
    monkeypatch.setattr(McapWriter, "write", lambda *arguments: 1 / 0)
    writer.add_topic("/x", "std_msgs/msg/Header", [])
    writer.write("/x", 1, bytes(50))
    writer.close()
    assert "ZeroDivisionError" in writer.error and writer.topics["/x"].written == 0


def test_a_topic_may_appear_while_the_metadata_is_written(tmp_path):
    from sld_ros.bag_writer import BagWriter, RecordedTopic

    writer = BagWriter(tmp_path / "bag", 2**26, 0)

    class Adding(RecordedTopic):
        def __getattribute__(self, name):
            if name == "channel":  # what another thread would do meanwhile
                writer.topics.setdefault("/y", RecordedTopic("/y", "", ""))
            return super().__getattribute__(name)

    writer.topics["/x"] = Adding("/x", "", "")
    try:
        writer._write_metadata()
    finally:
        writer.close()
