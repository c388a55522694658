"""Launch files and YAML against the nodes: every argument, executable, parameter and remapping that
they name exists, and a parameter comes from the argument that was given, else from the file.

`launch` is on no package registry. A stand-in that only records what a file declares runs here; it
starts nothing. The last tests use the real one and are skipped where it is missing."""

import ast
import configparser
import dataclasses
import importlib
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
NODES = [path for path in FILES if path.name != "demo.launch.py"]


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
        "launch": ["LaunchContext", "LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument", "OpaqueFunction", "SetEnvironmentVariable"],
        "launch.substitutions": [
            "EnvironmentVariable",
            "LaunchConfiguration",
            "PathJoinSubstitution",
        ],
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
    # what the launch files share must be imported anew, and not stay with the stand-in
    sys.modules.pop("sld_ros.launch_node", None)
    yield
    sys.modules.pop("sld_ros.launch_node", None)


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
    module = importlib.import_module(f"sld_ros.{executable}_node")
    return {field.name: field.default for field in dataclasses.fields(module.Parameters)}


def arguments(path):
    """The launch arguments that a file declares, by name."""
    return {e.args[0]: e for e in entities(path) if e.kind == "DeclareLaunchArgument"}


def started(path, **given):
    """The node that the file starts with these arguments."""
    context = {name: e.kwargs["default_value"] for name, e in arguments(path).items()} | given
    (start,) = (e for e in entities(path) if e.kind == "OpaqueFunction")
    (node,) = start.kwargs["function"](context)
    assert node.kind == "Node" and node.kwargs["package"] == "sld"
    return node.kwargs


def test_the_four_launch_files_exist():
    assert [f.name for f in FILES] == [
        f"{name}.launch.py" for name in ("demo", "localize", "record", "train")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_arguments_are_described_and_the_dds_profile_is_set_where_none_is(launch, path):
    assert all(e.kwargs["description"] for e in arguments(path).values())
    (profile,) = (e for e in entities(path) if e.kind == "SetEnvironmentVariable")
    name, value = profile.args
    assert name == "FASTRTPS_DEFAULT_PROFILES_FILE" and value.args == (name,)
    *folder, file = value.kwargs["default_value"].args[0]
    assert (ROOT / Path(*folder[1:]) / file).is_file() and folder[0].args == ("sld",)


@pytest.mark.ros
@pytest.mark.parametrize("path", NODES, ids=lambda p: p.name)
def test_executables_parameters_and_topics_exist(launch, path):
    settings = {name for name in arguments(path) if name != "params_file"}
    node = started(path, **dict.fromkeys(settings, "/x"))
    assert node["executable"] in executables() and node["name"] == node["executable"]
    known = parameters(node["executable"])
    _, given = node["parameters"]
    assert all(type(known[name]) is value.kwargs["value_type"] for name, value in given.items())
    topics = [topic for topic, _ in node["remappings"]]
    assert settings == {*given, *topics}
    source = (ROOT / "sld_ros" / f"{node['executable']}_node.py").read_text()
    assert all(f'"{topic}"' in source for topic in topics)


@pytest.mark.parametrize("path", NODES, ids=lambda p: p.name)
def test_only_arguments_that_were_given_win_over_the_params_file(launch, path):
    (file,) = started(path)["parameters"]
    assert file.args == ("params_file",)
    for name in set(arguments(path)) - {"params_file"}:
        after = started(path, **{name: "given"})["parameters"][1:]
        assert after == [] or list(after[0]) == [name]


@pytest.mark.ros
def test_the_yaml_names_nodes_and_parameters_that_exist():
    for key, content in yaml.safe_load((ROOT / "config" / "robot.yaml").read_text()).items():
        known = parameters(key.removeprefix("/**/"))
        for name, value in content["ros__parameters"].items():
            assert name in known and isinstance(value, list) == isinstance(known[name], tuple)


def test_the_demo_is_started_with_or_without_a_sequence(launch):
    path = ROOT / "launch" / "demo.launch.py"
    assert started(path, output="out")["arguments"] == ["--output", "out"]
    assert started(path, sequence="kitchen")["arguments"][-2:] == ["--sequence", "kitchen"]
    assert started(path)["executable"] == "demo" and "demo" in executables()


@pytest.mark.ros
@pytest.mark.parametrize("namespace", ["/", "/robot1/front"])
@pytest.mark.parametrize("key", ["/**/localizer", "/**"])
def test_the_file_counts_in_every_namespace(tmp_path, namespace, key):
    """Read by rclpy, as a node that `launch` starts reads it."""
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.dump({key: {"ros__parameters": {"compressed": True}}}))
    given = tmp_path / "given.yaml"
    given.write_text(yaml.dump({"/**": {"ros__parameters": {"scene": "a.sld"}}}))
    command = ["--ros-args", "-r", f"__ns:={namespace}"]
    for path in (ROOT / "config" / "robot.yaml", file, given):
        command += ["--params-file", str(path)]
    code = (
        "import rclpy, sys; from rclpy.node import Node; rclpy.init(args=sys.argv); "
        "print({k: v.value for k, v in Node('localizer')._parameter_overrides.items()})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60
    )
    assert ast.literal_eval(found.stdout) == {
        "odom_frame": "odom",
        "base_frame": "base_link",
        "compressed": True,
        "scene": "a.sld",
    }


def real_parameters(path, **given):
    """What the node is told by the real launch with these arguments."""
    reason = "launch and launch_ros are not installed (no package registry has them)"
    pytest.importorskip("launch_ros", reason=reason)
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    from launch import LaunchContext
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch.substitutions import LocalSubstitution
    from launch.utilities import perform_substitutions

    try:
        get_package_share_directory("sld")
    except PackageNotFoundError:
        pytest.skip("sld is not built (make ros)")
    context = LaunchContext()
    context.launch_configurations.update(given)
    description = PythonLaunchDescriptionSource(str(path)).get_launch_description(context)
    *_, (node,) = [entity.visit(context) for entity in description.entities]
    node._perform_substitutions(context)
    # what is local to the running action (names and remappings) is left out
    parts = [part for part in node.cmd if not isinstance(part[0], LocalSubstitution)]
    words = [perform_substitutions(context, part) for part in parts]
    files = [words[i + 1] for i, word in enumerate(words) if word == "--params-file"]
    told = {}
    for content in (yaml.safe_load(Path(file).read_text()) for file in files):
        for key, values in content.items():
            if key.split("/")[-1] in (node.node_executable, "**"):
                told |= values["ros__parameters"]
    return told, context.environment["FASTRTPS_DEFAULT_PROFILES_FILE"]


def test_the_real_launch_passes_what_was_given_and_else_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    path = ROOT / "launch" / "localize.launch.py"
    told, profile = real_parameters(path)
    assert told == {"odom_frame": "odom", "base_frame": "base_link"}
    assert Path(profile).is_file()
    file = tmp_path / "robot.yaml"
    values = {"compressed": True, "scene": "file.sld"}
    file.write_text(yaml.dump({"/**/localizer": {"ros__parameters": values}}))
    assert real_parameters(path, params_file=str(file))[0] == values
    told, _ = real_parameters(path, params_file=str(file), scene="7", compressed="false")
    assert told == {"compressed": False, "scene": "7"}


def test_the_real_launch_leaves_a_dds_profile_that_is_set(monkeypatch):
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert real_parameters(ROOT / "launch" / "train.launch.py")[1] == "mine.xml"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_real_launch_reads_the_file(path):
    assert real_parameters(path)[1]
