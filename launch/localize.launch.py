"""ros2 launch sld localize.launch.py scene:=room.sld image:=/camera/image_raw
camera_info:=/camera/camera_info"""

from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def generate_launch_description():
    default_file = PathJoinSubstitution([FindPackageShare("sld"), "config", "robot.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "scene",
                default_value="",
                description="Scene file (.sld); empty: wait for ~/load_scene",
            ),
            DeclareLaunchArgument(
                "image", default_value="image", description="Topic of the images"
            ),
            DeclareLaunchArgument(
                "camera_info",
                default_value="camera_info",
                description="Topic of the camera's calibration",
            ),
            DeclareLaunchArgument(
                "compressed",
                default_value="false",
                description="The images are sensor_msgs/CompressedImage",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=default_file,
                description="YAML file with parameters of the node",
            ),
            Node(
                package="sld",
                executable="localizer",
                name="localizer",
                output="screen",
                parameters=[
                    LaunchConfiguration("params_file"),
                    {
                        "scene": ParameterValue(LaunchConfiguration("scene"), value_type=str),
                        "compressed": ParameterValue(
                            LaunchConfiguration("compressed"), value_type=bool
                        ),
                    },
                ],
                remappings=[
                    ("image", LaunchConfiguration("image")),
                    ("camera_info", LaunchConfiguration("camera_info")),
                ],
            ),
        ]
    )
