"""What the code imports is what package.xml and setup.py declare, no more and no less."""

import ast
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
OURS = {"sld", "sld_core", "sld_ros"}
PIP_NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
PIP_NAMES |= {"yaml": "PyYAML"}
ROSDEP_KEYS = {"PIL": "python3-pil", "cv2": "python3-opencv", "tf2_ros": "tf2_ros_py"}
ROSDEP_KEYS |= {"rosbags": "python3-rosbags-pip", "onnxruntime": "python3-onnxruntime-pip"}
OF_ROS = {"action_msgs", "builtin_interfaces", "cv_bridge", "diagnostic_msgs", "geometry_msgs"}
OF_ROS |= {"launch", "launch_ros", "nav_msgs", "rcl_interfaces", "rclpy", "sensor_msgs"}
OF_ROS |= {"tf2_msgs", "tf2_ros", "tf_transformations"}
WITHOUT_ROSDEP_KEY = {"lz4", "mcap", "poselib", "pycolmap", "safetensors", "zstandard"}
OPTIONAL = {"transformers"}
# for the interfaces in msg/, srv/ and action/
OF_INTERFACES = {"std_msgs", "builtin_interfaces", "rosidl_default_runtime"}


@pytest.fixture(scope="module")
def imported():
    """The top-level packages that our code imports, without Python's own and ours."""
    files = [path for folder in ("sld_core", "sld_ros", "launch") for path in _python(folder)]
    names = {name for path in files for name in _imports(ast.parse(path.read_text()))}
    return names - OURS - set(sys.stdlib_module_names)


def _python(folder):
    return (ROOT / folder).rglob("*.py")


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "sld_core.optional":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_setup_py_declares_what_is_imported(imported, monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    declared = {*given["install_requires"], *given["extras_require"]["depth"]}
    assert declared == {PIP_NAMES.get(name, name) for name in imported - OF_ROS}
    assert {*given["extras_require"]["depth"]} == OPTIONAL


def test_package_xml_declares_what_is_imported(imported):
    package = ElementTree.parse(ROOT / "package.xml")
    declared = {element.text for tag in ("depend", "exec_depend") for element in package.iter(tag)}
    expected = {
        ROSDEP_KEYS.get(name, name if name in OF_ROS else f"python3-{name}")
        for name in imported - WITHOUT_ROSDEP_KEY - OPTIONAL
    }
    assert declared == expected | OF_INTERFACES
