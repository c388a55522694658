"""Undistortion and pixel decoding against numbers computed by hand."""

import cv2
import numpy as np
import pytest

from sld_core.camera.encodings import depth_mm_from_raw, rgb_from_encoded, rgb_from_raw
from sld_core.camera.undistortion import undistortion
from sld_core.types import SldError

K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])


def test_half_pixel_is_added_and_no_maps_are_made_without_distortion():
    identity = undistortion(K, [0.0] * 5, "plumb_bob", 100, 80)
    assert (identity.camera.cx, identity.camera.cy) == (50.5, 40.5)
    assert identity.maps is None


@pytest.mark.parametrize(
    "model, D, distort",
    [
        ("plumb_bob", [0.1, 0, 0, 0, 0], lambda r: r * (1 + 0.1 * r**2)),
        (
            "rational_polynomial",
            [0.1, 0, 0, 0, 0, 0.2, 0, 0],
            lambda r: r * (1 + 0.1 * r**2) / (1 + 0.2 * r**2),
        ),
        ("equidistant", [0.0, 0.1, 0, 0], lambda r: np.arctan(r) * (1 + 0.1 * np.arctan(r) ** 4)),
    ],
)
def test_a_point_moves_as_its_model_says(model, D, distort):
    made = undistortion(K, D, model, 100, 80)
    ramp = np.repeat(
        np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (80, 1, 1)), 3, axis=2
    )  # value = column
    r = 0.4  # column 90 of the pinhole image, on the row of the principal point
    assert made(ramp)[40, 90, 0] == pytest.approx(50 + 100 * distort(r), abs=0.6)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((np.zeros(9), [], "", 100, 80), "not calibrated"),
        ((K, [0.1, 0.2], "plumb_bob", 100, 80), "2 coefficients"),
        ((K, [0.1] * 5, "fov", 100, 80), "'fov'"),
        ((K, [np.nan] * 5, "plumb_bob", 100, 80), "finite"),
    ],
)
def test_unusable_calibrations_say_why(arguments, words):
    with pytest.raises(SldError, match=words):
        undistortion(*arguments)


def test_another_image_size_is_refused_with_both_sizes():
    with pytest.raises(SldError, match="50x40.*100x80"):
        undistortion(K, [], "plumb_bob", 100, 80)(np.zeros((40, 50, 3), np.uint8))


@pytest.mark.parametrize(
    "encoding, pixel",
    [("rgb8", [1, 2, 3]), ("bgr8", [3, 2, 1]), ("rgba8", [1, 2, 3, 9]), ("bgra8", [3, 2, 1, 9])],
)
def test_colours_come_in_order_and_padding_is_cut(encoding, pixel):
    rows = [bytes(pixel) * 2 + b"\xff" * 5] * 3  # 2x3 pixels and 5 bytes of padding
    rgb = rgb_from_raw(b"".join(rows), encoding, 2, 3, len(rows[0]))
    assert rgb.shape == (3, 2, 3) and (rgb == [1, 2, 3]).all()


def test_mono_becomes_grey():
    assert rgb_from_raw(bytes([7, 8]), "mono8", 2, 1, 2).tolist() == [[[7, 7, 7], [8, 8, 8]]]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((b"", "16UC1", 2, 1, 4), "16UC1"),
        ((bytes(5), "rgb8", 2, 1, 6), "5 bytes"),
        ((bytes(6), "rgb8", 2, 1, 4), "step 4"),
    ],
)
def test_unreadable_images_say_why(arguments, words):
    with pytest.raises(SldError, match=words):
        rgb_from_raw(*arguments)


def test_png_keeps_every_value_and_rubbish_is_refused():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert (rgb_from_encoded(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()) == rgb).all()
    for rubbish in (b"", b"no image"):
        with pytest.raises(SldError, match="JPEG or PNG"):
            rgb_from_encoded(rubbish)


def test_16_bit_grey_keeps_its_high_byte_in_either_order():
    assert rgb_from_raw(bytes([0, 7, 255, 8]), "mono16", 2, 1, 4).tolist() == [[[7] * 3, [8] * 3]]
    assert rgb_from_raw(bytes([7, 0, 8, 255]), "mono16", 2, 1, 4, big_endian=True).tolist() == [
        [[7] * 3, [8] * 3]
    ]


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_are_named_by_their_first_two_rows(pattern):
    red, green, blue = 200, 100, 50
    value = {"r": red, "g": green, "b": blue}
    mosaic = np.tile(
        np.array(
            [[value[pattern[0]], value[pattern[1]]], [value[pattern[2]], value[pattern[3]]]],
            np.uint8,
        ),
        (8, 8),
    )
    padded = np.pad(mosaic, ((0, 0), (0, 3)))  # rows padded to the step
    rgb = rgb_from_raw(padded.tobytes(), f"bayer_{pattern}8", 16, 16, 19)
    assert (rgb == [red, green, blue]).all()


@pytest.mark.parametrize(
    "encoding, order",
    [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")],
)
@pytest.mark.parametrize(
    "yuv, rgb",
    [
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
        ((235, 128, 128), (255, 255, 255)),
    ],
)  # BT.601, studio range
def test_yuv422_has_its_chroma_in_order(encoding, order, yuv, rgb):
    y, u, v = yuv
    pixels = bytes([u, y, v, y] if order == "uyvy" else [y, u, y, v]) * 2
    assert np.abs(rgb_from_raw(pixels * 3, encoding, 4, 3, 8).astype(int) - rgb).max() <= 2


def test_luma_of_yuv422_is_that_of_its_pixel():
    rgb = rgb_from_raw(bytes([128, 16, 128, 235]), "yuv422", 2, 1, 4)
    assert rgb[0, 0].max() <= 1 and rgb[0, 1].min() >= 254


def test_an_odd_width_is_no_yuv422():
    with pytest.raises(SldError, match="even size"):
        rgb_from_raw(bytes(6), "yuv422", 3, 1, 6)


def test_depth_comes_in_millimetres_and_nonsense_is_none():
    metres = np.array([[1.0, 0.0015, np.nan, np.inf, -1.0, 70.0]], np.float32)
    for order in "<>":
        raw = metres.astype(order + "f4").tobytes()
        assert depth_mm_from_raw(raw, "32FC1", 6, 1, 24, order == ">").tolist() == [
            [1000, 2, 0, 0, 0, 0]
        ]
    assert depth_mm_from_raw(bytes([1, 2]), "16UC1", 1, 1, 2).tolist() == [[513]]
    assert depth_mm_from_raw(bytes([1, 2]), "16UC1", 1, 1, 2, big_endian=True).tolist() == [[258]]
    with pytest.raises(SldError, match="expected one of 16UC1"):
        depth_mm_from_raw(b"", "rgb8", 1, 1, 3)


def test_depth_is_undistorted_by_the_nearest_value_at_any_resolution():
    made = undistortion(K, [0.1, 0, 0, 0, 0], "plumb_bob", 100, 80)
    columns = np.tile(np.arange(1, 101, dtype=np.uint16), (80, 1))
    # column 90 shows what is at 50 + 100 * 0.4 * (1 + 0.1 * 0.16) = 90.64, so the value of column
    # 91
    assert made.nearest(columns)[40, 90] == 92 and made.nearest(columns)[40, 50] == 51
    assert set(np.unique(made.nearest(columns * 100))) <= {100 * i for i in range(101)}
    assert made.nearest(columns)[40, 99] == 0  # beyond what the lens saw
    half = columns[::2, ::2]
    assert (
        made.nearest(half)[20, 45] == half[20, 45]
    )  # centre 91 of the whole image shows 91.7: within the same column of the half
    assert undistortion(K, [], "", 100, 80).nearest(half) is half
