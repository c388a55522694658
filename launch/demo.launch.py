"""ros2 launch sld demo.launch.py output:=demo [sequence:=DIR]: record, teach and localize, through
nodes that it starts itself"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "output", default_value="demo", description="Folder that receives the report"
            ),
            DeclareLaunchArgument(
                "sequence",
                default_value="",
                description="Folder of a recorded sequence; empty: render a room",
            ),
            OpaqueFunction(function=_start_demo),
        ]
    )


def _start_demo(context):
    command = [
        "ros2",
        "run",
        "sld",
        "demo",
        "--output",
        LaunchConfiguration("output").perform(context),
    ]
    if sequence := LaunchConfiguration("sequence").perform(context):
        command += ["--sequence", sequence]
    return [ExecuteProcess(cmd=command, output="screen")]
