"""ros2 launch sld localize.launch.py scene:=room.sld image:=/camera/image_raw
camera_info:=/camera/camera_info"""

from sld_ros.launch_node import launch_node


def generate_launch_description():
    return launch_node(
        "localizer",
        parameters={
            "scene": (str, "Scene file (.sld); without one, wait for ~/load_scene"),
            "compressed": (bool, "The images are sensor_msgs/CompressedImage"),
            "device": (str, "Torch device: cpu, cuda or cuda:0"),
        },
        topics={"image": "Topic of the images", "camera_info": "Topic of the calibration"},
    )
