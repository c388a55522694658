"""ros2 launch sld record.launch.py output_folder:=recordings image:=/camera/image_raw
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
                "output_folder",
                default_value="recordings",
                description="Folder that receives the bags",
            ),
            DeclareLaunchArgument(
                "image", default_value="image", description="Topic of the images, raw or compressed"
            ),
            DeclareLaunchArgument(
                "camera_info",
                default_value="camera_info",
                description="Topic of the camera's calibration",
            ),
            DeclareLaunchArgument(
                "odom",
                default_value="odom",
                description="Topic of the odometry (nav_msgs/Odometry)",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=default_file,
                description="YAML file with parameters of the node",
            ),
            Node(
                package="sld",
                executable="recorder",
                name="recorder",
                output="screen",
                parameters=[
                    LaunchConfiguration("params_file"),
                    {
                        "output_folder": ParameterValue(
                            LaunchConfiguration("output_folder"), value_type=str
                        )
                    },
                ],
                remappings=[
                    (name, LaunchConfiguration(name)) for name in ("image", "camera_info", "odom")
                ],
            ),
        ]
    )
