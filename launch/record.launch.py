"""ros2 launch sld record.launch.py output_folder:=recordings image:=/camera/image_raw
camera_info:=/camera/camera_info"""

from sld_ros.launch_node import launch_node


def generate_launch_description():
    return launch_node(
        "recorder",
        parameters={"output_folder": (str, "Folder that receives the bags")},
        topics={
            "image": "Topic of the images, raw or compressed",
            "camera_info": "Topic of the calibration",
            "odom": "Topic of the odometry (nav_msgs/Odometry)",
        },
    )
