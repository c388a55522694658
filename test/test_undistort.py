"""Undistortion and pixel decoding against numbers computed by hand."""
import cv2
import numpy as np
import pytest

from sld_core.pixels import rgb_from_encoded, rgb_from_raw
from sld_core.types import SldError
from sld_core.undistort import undistortion

K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])


def test_half_pixel_is_added_and_no_maps_are_made_without_distortion():
    identity = undistortion(K, [0.0] * 5, "plumb_bob", 100, 80)
    assert (identity.camera.cx, identity.camera.cy) == (50.5, 40.5)
    assert identity.maps is None


@pytest.mark.parametrize("model, D, distort", [
    ("plumb_bob", [0.1, 0, 0, 0, 0], lambda r: r * (1 + 0.1 * r**2)),
    ("rational_polynomial", [0.1, 0, 0, 0, 0, 0.2, 0, 0], lambda r: r * (1 + 0.1 * r**2) / (1 + 0.2 * r**2)),
    ("equidistant", [0.0, 0.1, 0, 0], lambda r: np.arctan(r) * (1 + 0.1 * np.arctan(r)**4)),
])
def test_a_point_moves_as_its_model_says(model, D, distort):
    made = undistortion(K, D, model, 100, 80)
    ramp = np.repeat(np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (80, 1, 1)), 3, axis=2)  # value = column
    r = 0.4  # column 90 of the pinhole image, on the row of the principal point
    assert made(ramp)[40, 90, 0] == pytest.approx(50 + 100 * distort(r), abs=0.6)


@pytest.mark.parametrize("arguments, words", [
    ((np.zeros(9), [], "", 100, 80), "not calibrated"),
    ((K, [0.1, 0.2], "plumb_bob", 100, 80), "2 coefficients"),
    ((K, [0.1] * 5, "fov", 100, 80), "'fov'"),
    ((K, [np.nan] * 5, "plumb_bob", 100, 80), "finite"),
])
def test_unusable_calibrations_say_why(arguments, words):
    with pytest.raises(SldError, match=words):
        undistortion(*arguments)


def test_another_image_size_is_refused_with_both_sizes():
    with pytest.raises(SldError, match="50x40.*100x80"):
        undistortion(K, [], "plumb_bob", 100, 80)(np.zeros((40, 50, 3), np.uint8))


@pytest.mark.parametrize("encoding, pixel", [("rgb8", [1, 2, 3]), ("bgr8", [3, 2, 1]), ("rgba8", [1, 2, 3, 9]), ("bgra8", [3, 2, 1, 9])])
def test_colours_come_in_order_and_padding_is_cut(encoding, pixel):
    rows = [bytes(pixel) * 2 + b"\xff" * 5] * 3  # 2x3 pixels and 5 bytes of padding
    rgb = rgb_from_raw(b"".join(rows), encoding, 2, 3, len(rows[0]))
    assert rgb.shape == (3, 2, 3) and (rgb == [1, 2, 3]).all()


def test_mono_becomes_grey():
    assert rgb_from_raw(bytes([7, 8]), "mono8", 2, 1, 2).tolist() == [[[7, 7, 7], [8, 8, 8]]]


@pytest.mark.parametrize("arguments, words", [
    ((b"", "16UC1", 2, 1, 4), "16UC1"), ((bytes(5), "rgb8", 2, 1, 6), "5 bytes"), ((bytes(6), "rgb8", 2, 1, 4), "step 4")])
def test_unreadable_images_say_why(arguments, words):
    with pytest.raises(SldError, match=words):
        rgb_from_raw(*arguments)


def test_png_keeps_every_value_and_rubbish_is_refused():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (rgb_from_encoded(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()) == rgb).all()
    for rubbish in (b"", b"no image"):
        with pytest.raises(SldError, match="JPEG or PNG"):
            rgb_from_encoded(rubbish)
