"""ros2 launch sld demo.launch.py output:=demo [sequence:=DIR]: record, teach and localize, through
nodes that it starts itself"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from sld_ros.launch_node import set_profile


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "output", default_value="demo", description="Folder that receives the report"
            ),
            DeclareLaunchArgument(
                "sequence",
                default_value="",
                description="Folder of a recorded sequence. Empty: a room is rendered",
            ),
            set_profile(),
            OpaqueFunction(function=_start_demo),
        ]
    )


def _start_demo(context):
    arguments = ["--output", LaunchConfiguration("output").perform(context)]
    if sequence := LaunchConfiguration("sequence").perform(context):
        arguments += ["--sequence", sequence]
    return [Node(package="sld", executable="demo", output="screen", arguments=arguments)]
