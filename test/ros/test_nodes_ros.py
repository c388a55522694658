"""What every node does alike: its parameters are at its clients' service, and signals end it."""

import ast
import importlib
import inspect
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import stopping

pytestmark = pytest.mark.ros

NODES = {"localizer": "device", "recorder": "output_folder", "trainer": "output_folder"}
FAKE_LOCALIZER = str(Path(__file__).parents[1] / "fake_localizer.py")
CLASSES = {
    "sld_ros.localizer_node": "LocalizerNode",
    "sld_ros.recorder_node": "RecorderNode",
    "sld_ros.trainer_node": "TrainerNode",
    "sld_ros.demo.client": "Client",
    "sld_ros.demo.player": "Player",
}


def node_class(module):
    return getattr(importlib.import_module(module), CLASSES[module])


@pytest.fixture
def parameters(ros):
    """parameters(node): its services for parameters, each called as name(request)."""
    from rcl_interfaces import srv

    node = ros.node("client")

    def of(name):
        clients = {
            kind: node.create_client(getattr(srv, kind), f"/{name}/{service}")
            for kind, service in (
                ("ListParameters", "list_parameters"),
                ("GetParameters", "get_parameters"),
                ("DescribeParameters", "describe_parameters"),
                ("SetParameters", "set_parameters"),
            )
        }
        return lambda kind, **fields: ros.call(
            clients[kind], getattr(srv, kind).Request(**fields), 30
        )

    return of


def check_parameters(call, known):
    """List, get, describe and set; what is set at start can only be read."""
    from rcl_interfaces.msg import Parameter, ParameterValue

    listed = call("ListParameters").result.names
    assert known in listed and "use_sim_time" in listed
    values = call("GetParameters", names=listed).values
    assert len(values) == len(listed) and values[listed.index(known)].type == 4  # a string
    described = call("DescribeParameters", names=[known]).descriptors[0]
    assert described.read_only and len(described.description) > 10
    new = Parameter(name=known, value=ParameterValue(type=4, string_value="other"))
    answer = call("SetParameters", parameters=[new]).results[0]
    assert not answer.successful and "read-only" in answer.reason
    assert call("GetParameters", names=[known]).values == [values[listed.index(known)]]


@pytest.mark.parametrize("name", NODES)
def test_parameters_can_be_listed_read_described_and_not_set(ros, parameters, name):
    process = ros.process(f"sld_ros.{name}_node")
    call = parameters(name)
    check_parameters(call, NODES[name])
    check_parameters(call, NODES[name])  # it is still there
    assert process.poll() is None


def test_a_recording_goes_on_while_parameters_are_read(ros, parameters, tmp_path):
    from rosbags.rosbag2 import Reader
    from sensor_msgs.msg import CameraInfo, Image
    from sld.srv import StartRecording, StopRecording
    from tf2_msgs.msg import TFMessage

    node = ros.node("drive")
    images = node.create_publisher(Image, "image", 10)
    node.create_publisher(CameraInfo, "camera_info", 10)
    node.create_publisher(TFMessage, "/tf", 10)
    ros.process("sld_ros.recorder_node", output_folder=tmp_path)
    start = node.create_client(StartRecording, "/recorder/start")
    stop = node.create_client(StopRecording, "/recorder/stop")
    started = ros.call(start, StartRecording.Request(name="drive"), 30)
    assert started.success, started.error
    ros.wait_for(images.get_subscription_count, "the recorder's subscription")
    images.publish(Image(width=1))
    check_parameters(parameters("recorder"), "output_folder")
    images.publish(Image(width=2))
    time.sleep(0.5)
    stopped = ros.call(stop, StopRecording.Request())
    assert stopped.success and {t.topic: t.count for t in stopped.topics}["/image"] == 2
    with Reader(tmp_path / "drive") as reader:
        assert sum(c.topic == "/image" for c, _, _ in reader.messages()) == 2


@pytest.mark.parametrize("module", CLASSES)
def test_no_attribute_of_rclpy_is_shadowed(ros, module):
    """rclpy keeps a node's state in attributes of its instance, such as _parameters."""
    from rclpy.node import Node

    plain = ros.node("plain")
    of_rclpy = set(vars(plain)) | set(dir(Node))
    source = ast.parse(inspect.getsource(node_class(module)))
    assigned = {
        target.attr
        for target in ast.walk(source)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }
    methods = {f.name for f in ast.walk(source) if isinstance(f, ast.FunctionDef)}
    assert "_parameters" in of_rclpy and assigned  # the check sees something
    assert not assigned & of_rclpy
    assert methods & of_rclpy <= {"__init__", "destroy_node"}


def test_an_unknown_parameter_is_a_warning(ros):
    from sld.srv import StopRecording

    process = ros.process("sld_ros.recorder_node", robot_name="r2")
    client = ros.node("client").create_client(StopRecording, "/recorder/stop")
    assert "nothing is being recorded" in ros.call(client, StopRecording.Request(), 30).error
    process.send_signal(signal.SIGTERM)
    status, _, text = stopping.end_of(process)
    assert status == 0 and "unknown parameter robot_name ignored; known are output_fo" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", NODES)
def test_a_signal_ends_a_node_with_status_0_and_no_traceback(ros, name, number):
    process = stopping.start("-m", f"sld_ros.{name}_node")
    plain = ros.node("plain")
    ros.wait_for(lambda: (name, "/") in plain.get_node_names_and_namespaces(), name, 30)
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)  # as launch and an impatient user do
    status, _, text = stopping.end_of(process)
    assert status == 0 and "Traceback" not in text, text


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.5, 0.8, 1.2, 1.6, 2.0])
def test_a_signal_at_any_moment_of_the_start_ends_a_node(delay_s):
    process = stopping.start("-m", "sld_ros.localizer_node")
    stopping.wait_until_ready(process)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    status, _, text = stopping.end_of(process)
    assert status == 0 and "Traceback" not in text, text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_an_image_is_worked_on_ends_the_localizer(ros, number):
    from sensor_msgs.msg import CameraInfo, Image

    from sld_core.types import Camera
    from sld_ros.conversions import camera_info_message, image_message

    camera = Camera(64, 48, 50.0, 50.0, 32.5, 24.5)
    node = ros.node("drive")
    images = node.create_publisher(Image, "image", 10)
    infos = node.create_publisher(CameraInfo, "camera_info", 10)

    def publish():
        infos.publish(camera_info_message(camera, 0, "camera"))
        images.publish(image_message(np.zeros((48, 64, 3), np.uint8), 0, "camera"))

    timer = node.create_timer(0.1, publish)
    process = stopping.start(FAKE_LOCALIZER, "--ros-args", "-p", "scene:=room.sld")
    assert process.stdout.readline() == "working\n"
    node.destroy_timer(timer)
    process.send_signal(number)
    status, _, text = stopping.end_of(process)
    assert status == 0 and "Traceback" not in text, text


def test_a_node_tells_openmp_how_to_wait_before_torch_is_loaded():
    code = (
        "import os, sys\nfrom sld_core import runtime\nfrom sld_ros import run\n"
        "prepare = runtime.prepare\n"
        "def spy():\n"
        "    assert not {'torch', 'numpy', 'cv2', 'rclpy'} & set(sys.modules)\n"
        "    assert 'gomp' not in open('/proc/self/maps').read()\n"
        "    os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "    prepare()\n    print('prepared', os.environ['OMP_WAIT_POLICY'], flush=True)\n"
        "runtime.prepare = spy\nrun.localizer()"
    )
    process = stopping.start("-c", code, "--ros-args", "-p", "scene:=/none.sld")
    status, out, text = stopping.end_of(process, 60)
    assert (status, out) == (1, "prepared PASSIVE\n") and "/none.sld" in text, text
