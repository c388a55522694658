"""Installs `sld_core` and `sld_ros` with pip, and the `sld` command line, which needs no ROS."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(path):
    lines = (line.split("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="sld",
    version=ElementTree.parse(ROOT / "package.xml").findtext("version"),
    description="Camera localization by scene landmarks, for ROS 2 and for Python",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["sld_core*", "sld_ros*"]),
    install_requires=requirements("requirements.txt")
    + [
        "numpy",
        # Headless: imports on a machine without libGL, and nothing here opens a window. The code
        # runs with any package that provides cv2; to keep another one, install with --no-deps.
        "opencv-python-headless",
        "matplotlib",
        "PyYAML",
        "scikit-learn",
        "scipy",
    ],
    extras_require={
        "depth": ["transformers"],  # monocular depth by a model of that library
        "test": ["pytest", "pytest-timeout", "hypothesis", "ruff"],
    },
    entry_points={"console_scripts": ["sld = sld_core.cli:main"]},
)
