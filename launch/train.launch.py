"""ros2 launch sld train.launch.py output_folder:=scenes"""

from sld_ros.launch_node import launch_node


def generate_launch_description():
    return launch_node(
        "trainer",
        parameters={
            "output_folder": (str, "Folder that receives the scene files"),
            "device": (str, "Torch device to train on: cpu, cuda or cuda:0"),
        },
        topics={},
    )
