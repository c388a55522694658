"""Launch files and YAML against the nodes: every argument, executable, parameter and remapping that
they name exists.

`launch` is on no package registry. A stand-in that only records what a file declares runs here; it
starts nothing. The last test uses the real one and is skipped, visibly, where it is missing."""

import configparser
import dataclasses
import importlib
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))


@dataclasses.dataclass
class Recorded:
    """A call of a launch class: its name and arguments."""

    kind: str
    args: tuple
    kwargs: dict

    def perform(self, context):
        return context[self.args[0]]


@pytest.fixture
def launch(monkeypatch):
    """The stand-in for launch and launch_ros."""
    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "ExecuteProcess", "OpaqueFunction"],
        "launch.substitutions": ["LaunchConfiguration", "PathJoinSubstitution"],
        "launch_ros": [],
        "launch_ros.actions": ["Node"],
        "launch_ros.substitutions": ["FindPackageShare"],
        "launch_ros.parameter_descriptions": ["ParameterValue"],
    }
    for module_name, classes in names.items():
        module = types.ModuleType(module_name)
        for name in classes:
            setattr(module, name, lambda *args, _name=name, **kwargs: Recorded(_name, args, kwargs))
        monkeypatch.setitem(sys.modules, module_name, module)


def entities(path):
    """What the launch file describes."""
    spec = importlib.util.spec_from_file_location(path.name.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().args[0]


def executables():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "sld_ros" / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines)


def parameters(executable):
    """Names and defaults of a node's parameters."""
    module = importlib.import_module(executables()[executable].split(":")[0])
    return {field.name: field.default for field in dataclasses.fields(module.Parameters)}


def used_arguments(value):
    """Names of all LaunchConfigurations inside a value."""
    if isinstance(value, Recorded):
        own = [value.args[0]] if value.kind == "LaunchConfiguration" else []
        return own + used_arguments(list(value.args)) + used_arguments(value.kwargs)
    if isinstance(value, dict):
        return [name for item in value.values() for name in used_arguments(item)]
    return (
        [name for item in value for name in used_arguments(item)]
        if isinstance(value, (list, tuple))
        else []
    )


def test_the_four_launch_files_exist():
    assert [f.name for f in FILES] == [
        f"{name}.launch.py" for name in ("demo", "localize", "record", "train")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_arguments_are_declared_described_and_used(launch, path):
    found = entities(path)
    declared = {e.args[0]: e for e in found if e.kind == "DeclareLaunchArgument"}
    assert all(e.kwargs["description"] and "default_value" in e.kwargs for e in declared.values())
    used = used_arguments([e for e in found if e.kind == "Node"])
    if path.name == "demo.launch.py":
        used = ["output", "sequence"]
    assert set(used) == set(declared)


@pytest.mark.ros
@pytest.mark.parametrize(
    "path", [f for f in FILES if f.name != "demo.launch.py"], ids=lambda p: p.name
)
def test_executables_and_parameters_exist(launch, path):
    for node in (e for e in entities(path) if e.kind == "Node"):
        assert node.kwargs["package"] == "sld" and node.kwargs["executable"] in executables()
        known = parameters(node.kwargs["executable"])
        for given in (p for p in node.kwargs["parameters"] if isinstance(p, dict)):
            assert set(given) <= set(known)
            assert all(
                type(known[name]) is value.kwargs["value_type"] for name, value in given.items()
            )
        source = Path(
            importlib.import_module(executables()[node.kwargs["executable"]].split(":")[0]).__file__
        ).read_text()
        assert all(f'"{name}"' in source for name, _ in node.kwargs.get("remappings", []))


@pytest.mark.ros
def test_the_yaml_names_nodes_and_parameters_that_exist():
    for node, content in yaml.safe_load((ROOT / "config" / "robot.yaml").read_text()).items():
        known = parameters(node)
        for name, value in content["ros__parameters"].items():
            assert name in known and isinstance(value, list) == isinstance(known[name], tuple)


def test_the_demo_is_started_with_or_without_a_sequence(launch):
    start = next(
        e for e in entities(ROOT / "launch" / "demo.launch.py") if e.kind == "OpaqueFunction"
    ).kwargs["function"]
    assert start({"output": "out", "sequence": ""})[0].kwargs["cmd"] == [
        "ros2",
        "run",
        "sld",
        "demo",
        "--output",
        "out",
    ]
    assert start({"output": "out", "sequence": "kitchen"})[0].kwargs["cmd"][-2:] == [
        "--sequence",
        "kitchen",
    ]
    assert "demo" in executables()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_real_launch_reads_the_file(path):
    pytest.importorskip(
        "launch_ros",
        reason="launch and launch_ros are not installed (no package registry has them)",
    )
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchContext

    IncludeLaunchDescription(PythonLaunchDescriptionSource(str(path))).visit(LaunchContext())
