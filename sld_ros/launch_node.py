"""What the launch files of the nodes have in common.

A parameter's value is, in this order: the launch argument where one was given, what the params_file
says, the default of the node."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"


def launch_node(
    executable: str, parameters: dict[str, tuple[type, str]], topics: dict[str, str]
) -> LaunchDescription:
    """Start one node of sld under the name of its executable.

    `parameters` (type and description) and `topics` (description) become launch arguments."""
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=f"{text}. Empty: as params_file")
        for name, (_, text) in parameters.items()
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=name, description=text)
        for name, text in topics.items()
    ]
    params_file = DeclareLaunchArgument(
        "params_file",
        default_value=_config("robot.yaml"),
        description="YAML file with parameters of the node",
    )

    def start(context: LaunchContext) -> list[Node]:
        given = {
            name: ParameterValue(LaunchConfiguration(name), value_type=kind)
            for name, (kind, _) in parameters.items()
            if LaunchConfiguration(name).perform(context) != ""
        }
        node = Node(
            package="sld",
            executable=executable,
            name=executable,
            output="screen",
            # the later ones win
            parameters=[LaunchConfiguration("params_file"), *([given] if given else [])],
            remappings=[(name, LaunchConfiguration(name)) for name in topics],
        )
        return [node]

    return LaunchDescription(
        [*arguments, params_file, set_profile(), OpaqueFunction(function=start)]
    )


def set_profile() -> SetEnvironmentVariable:
    """Images need more shared memory than Fast DDS takes by default: use our profile, unless one is
    set."""
    profile = EnvironmentVariable(PROFILE, default_value=_config("fastdds.xml"))
    return SetEnvironmentVariable(PROFILE, profile)


def _config(name: str) -> PathJoinSubstitution:
    """A file in config/, where it is installed."""
    return PathJoinSubstitution([FindPackageShare("sld"), "config", name])
