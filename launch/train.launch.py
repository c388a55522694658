"""ros2 launch sld train.launch.py output_folder:=scenes"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription


def generate_launch_description():
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "output_folder",
                default_value="scenes",
                description="Folder that receives the scene files",
            ),
            DeclareLaunchArgument(
                "device",
                default_value="",
                description="Torch device to train on; empty: the default of the core",
            ),
            Node(
                package="sld",
                executable="trainer",
                name="trainer",
                output="screen",
                parameters=[
                    {
                        name: ParameterValue(LaunchConfiguration(name), value_type=str)
                        for name in ("output_folder", "device")
                    }
                ],
            ),
        ]
    )
