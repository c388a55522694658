"""Calibration files: what is written is read, and what cannot be used says why."""

import numpy as np
import pytest

from sld_core.camera.calibration import Lenses, guessed_camera, read_calibration
from sld_core.types import SldError

YAML = """image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix: {{rows: 3, cols: 3, data: [500.0, 0, 319.5, 0, 501, 239.5, 0, 0, 1]}}
distortion_model: {model}
distortion_coefficients:
  rows: 1
  cols: 5
  data: [{coefficients}]
"""


def write(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    return tmp_path / "a.yaml"


def test_the_yaml_of_camera_calibration(tmp_path):
    calibration = read_calibration(
        write(tmp_path, YAML.format(model="plumb_bob", coefficients="-0.1, 0, 0, 0, 0"))
    )
    lens = calibration.undistortion(640, 480)
    assert (lens.camera.fx, lens.camera.fy, lens.camera.cx, lens.camera.cy) == (500, 501, 320, 240)
    assert lens.maps is not None and calibration.D[0] == -0.1
    with pytest.raises(SldError, match="image is 320x240 but .*a.yaml is for 640x480"):
        calibration.undistortion(320, 240)


def test_a_matrix_holds_for_images_around_its_principal_point(tmp_path):
    calibration = read_calibration(write(tmp_path, "500 0 319.5\n0 500 239.5\n0 0 1\n"))
    assert (calibration.width, calibration.undistortion(640, 480).camera.cx) == (0, 320)
    with pytest.raises(
        SldError, match="image is 320x200 but .*a.yaml is for images of about 640x480"
    ):
        calibration.undistortion(320, 200)


def test_a_matrix_of_another_image_size_is_refused_and_the_size_named(tmp_path):
    calibration = read_calibration(write(tmp_path, "500 0 319.5\n0 500 239.5\n0 0 1\n"))
    for size in ((1280, 960), (320, 240), (480, 640), (640, 360)):
        with pytest.raises(
            SldError,
            match=f"image is {size[0]}x{size[1]} but .*a.yaml is for images of about "
            "640x480.*scale fx, fy, cx",
        ):
            calibration.undistortion(*size)
    # those of real cameras are off the middle: here by a tenth of the width
    assert (
        read_calibration(write(tmp_path, "500 0 383.5\n0 500 219.5\n0 0 1\n"))
        .undistortion(640, 480)
        .camera.cx
        == 384
    )


def test_a_camera_nobody_calibrated_is_a_guess():
    assert (
        guessed_camera(640, 480).fx,
        guessed_camera(640, 480).cy,
        guessed_camera(640, 480, 500.0).fy,
    ) == (768, 240, 500)
    lenses = Lenses(None)
    assert lenses(640, 480) is lenses(640, 480) and lenses(640, 480).maps is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a list of 9 numbers"),
        ("1 2 3", "not a list of 9 numbers"),
        ("nan 0 1 0 1 1 0 0 1", "finite"),
        ("500 0 1 0 500 1 0 0 2", "expected fx 0 cx"),
        ("0 0 0 0 0 0 0 0 1", "fx and fy > 0"),
        ("500 0 nan 0 500 1 0 0 1", "finite"),
        ("500 0 inf 0 500 1 0 0 1", "finite"),
        ("- a\n- b", "a.yaml: no calibration; expected a 3x3"),
        ("{a: 1}", "lacks 'image_width'"),
        ("[" * 5000, "no calibration"),
        ("a: [", "no calibration"),
        ("!!python/object/apply:os.system [echo]", "no calibration"),
        (YAML.format(model="fov", coefficients="1"), "distortion model 'fov' with 1"),
        (YAML.format(model="plumb_bob", coefficients=".nan, 0, 0, 0, 0"), "finite"),
        (YAML.format(model="plumb_bob", coefficients="a"), "not a list of"),
        (YAML.format(model="[]", coefficients="0"), "a name"),
        (YAML.format(model="plumb_bob", coefficients="0").replace("640", "64000"), "64000x480"),
        (YAML.format(model="plumb_bob", coefficients="0").replace("640", "6.5"), "whole numbers"),
        ("x" * 2**21, "more than 1048576 bytes"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, text, words):
    with pytest.raises(SldError, match=words) as caught:
        read_calibration(write(tmp_path, text))
    assert "a.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(SldError, match="none: cannot be read .No such file"):
        read_calibration(tmp_path / "none")
    (tmp_path / "b").write_bytes(bytes(range(128, 256)))
    with pytest.raises(SldError, match="not text"):
        read_calibration(tmp_path / "b")


def test_distortion_of_the_right_kind_is_needed_at_once(tmp_path):
    assert np.allclose(
        read_calibration(
            write(tmp_path, YAML.format(model="equidistant", coefficients="0.1, 0, 0, 0"))
        ).D,
        [0.1, 0, 0, 0],
    )
