"""Monocular depth: preprocessing by hand, ONNX networks, damaged ones; the real small network where
../shared is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sld_core.depth.monocular import PREPROCESSING, MonocularDepth
from sld_core.types import SldError

SHARED = Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
NETWORK = SHARED / "models/tcmonodepth_small_192x320.onnx"


# A network needs no package to be written: protobuf fields are (number << 3 | type), then a varint
# or a length and its bytes.


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def part(field, data):
    data = data.encode() if isinstance(data, str) else data
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor_info(field, name, shape):
    """ValueInfoProto of a float tensor; a word in the shape is a size that is not fixed."""
    sides = b"".join(
        part(1, part(2, side) if isinstance(side, str) else number(1, side)) for side in shape
    )
    return part(field, part(1, name) + part(2, part(1, number(1, 1) + part(2, sides))))


def write_network(path, input_shape, axis=1, input_name="image", operator="ReduceMean"):
    """A network of one operator: the mean over the colours."""
    attribute = part(5, part(1, "axes") + number(8, axis) + number(20, 7))
    node = part(1, part(1, input_name) + part(2, "depth") + part(4, operator) + attribute)
    output_shape = [1 if i == axis else side for i, side in enumerate(input_shape)]
    graph = (
        node
        + part(2, "graph")
        + tensor_info(11, input_name, input_shape)
        + tensor_info(12, "depth", output_shape)
    )
    path.write_bytes(number(1, 8) + part(7, graph) + part(8, number(2, 13)))
    return path


@pytest.fixture
def image():
    """480 rows of 640 pixels: red grows to the right, the rest is constant."""
    image = np.full((480, 640, 3), 30, np.uint8)
    image[..., 0] = np.arange(640) * 255 // 639
    return image


# By hand: 480 -> 518 is 1.07917; 640 * 1.07917 = 690.67 = 49.3 * 14 -> 49 * 14 = 686. 360 -> 518 is
# 1.43889; 540 * 1.43889 = 777 = 55.5 * 14, half to even -> 56 * 14 = 784. 1000x999: 999 -> 518,
# 1000 -> 518.5 -> 518. 518 = 37 * 14.
@pytest.mark.parametrize(
    "size, expected",
    [
        ((640, 480), (686, 518)),
        ((540, 360), (784, 518)),
        ((360, 540), (518, 784)),
        ((518, 518), (518, 518)),
        ((1000, 999), (518, 518)),
        ((1920, 1080), (924, 518)),
    ],
)
def test_sizes_of_depth_anything(size, expected):
    assert PREPROCESSING["imagenet"].size(*size) == expected
    assert all(side % 14 == 0 for side in expected)


def test_values_of_depth_anything():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:] = (255, 0, 51)
    values = PREPROCESSING["imagenet"].values(image, 4, 4)
    # (1 - .485) / .229, (0 - .456) / .224, (.2 - .406) / .225
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[2, 3], [2.2489083, -2.0357143, -0.9155556], atol=1e-6)


def test_raw_values_are_left_alone():
    image = np.full((4, 6, 3), 200, np.uint8)
    assert (PREPROCESSING["raw255"].values(image, 3, 2) == 200).all()
    assert PREPROCESSING["raw255"].size(6, 4) == (6, 4)


def test_a_network_of_fixed_size(tmp_path, image):
    mono = MonocularDepth(write_network(tmp_path / "net.onnx", [1, 3, 48, 64]), "raw255")(image)
    assert mono.shape == (480, 640) and mono.dtype == np.float32
    # the mean of (red, 30, 30); averaged over 10x10 pixels and interpolated between
    np.testing.assert_allclose(mono[240, 100:540], (image[240, 100:540, 0] + 60.0) / 3, atol=0.5)


def test_a_network_with_channels_last(tmp_path, image):
    last = MonocularDepth(write_network(tmp_path / "last.onnx", [1, 48, 64, 3], axis=3), "raw255")(
        image
    )
    first = MonocularDepth(write_network(tmp_path / "first.onnx", [1, 3, 48, 64]), "raw255")(image)
    np.testing.assert_array_equal(last, first)


def test_a_network_of_any_size_and_its_preprocessing(tmp_path, image):
    """An unknown network is taken for a Depth-Anything: (686, 518) and ImageNet's mean and
    deviation."""
    mono = MonocularDepth(write_network(tmp_path / "any.onnx", [1, 3, "height", "width"]))(image)
    red = image[240, :, 0] / 255
    expected = ((red - 0.485) / 0.229 + (30 / 255 - 0.456) / 0.224 + (30 / 255 - 0.406) / 0.225) / 3
    np.testing.assert_allclose(mono[240, 5:-5], expected[5:-5], atol=0.01)


def test_a_file_beside_the_network_says_how(tmp_path, image):
    path = write_network(tmp_path / "net.onnx", [1, 3, 48, 64])
    (tmp_path / "net.onnx.json").write_text(json.dumps({"preprocessing": "raw255"}))
    np.testing.assert_array_equal(
        MonocularDepth(path)(image), MonocularDepth(path, "raw255")(image)
    )
    assert not np.allclose(MonocularDepth(path)(image), MonocularDepth(path, "imagenet")(image))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"preprocessing": 3}', '{"preprocessing": "magic"}']
)
def test_a_bad_file_beside_the_network(tmp_path, text):
    path = write_network(tmp_path / "net.onnx", [1, 3, 48, 64])
    (tmp_path / "net.onnx.json").write_text(text)
    with pytest.raises(SldError, match=r"net\.onnx\.json.*preprocessing"):
        MonocularDepth(path)


@pytest.mark.parametrize(
    "shape, axis", [([1, 4, 48, 64], 1), ([1, 3, 48], 1), ([1, 3, 99999, 64], 1)]
)
def test_networks_that_take_no_image(tmp_path, shape, axis):
    with pytest.raises(SldError, match="expected"):
        MonocularDepth(write_network(tmp_path / "net.onnx", shape, axis))


def test_a_network_without_one_number_per_pixel(tmp_path, image):
    network = MonocularDepth(write_network(tmp_path / "net.onnx", [1, 3, 48, 64], axis=2))
    with pytest.raises(SldError, match="one finite number per pixel"):
        network(image)


def test_files_that_are_no_network(tmp_path):
    (tmp_path / "damaged.onnx").write_bytes(b"no network")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "weights.pth").write_bytes(b"x")
    for name, text in (
        ("damaged.onnx", "not a usable ONNX"),
        ("empty.onnx", "0 bytes"),
        ("missing.onnx", "cannot be read"),
        ("weights.pth", "expected an .onnx file"),
    ):
        with pytest.raises(SldError, match=text):
            MonocularDepth(tmp_path / name)
    with pytest.raises(SldError, match="expected auto or one of"):
        MonocularDepth(tmp_path / "damaged.onnx", "magic")


def test_an_image_of_another_type_is_a_mistake(tmp_path):
    network = MonocularDepth(write_network(tmp_path / "net.onnx", [1, 3, 48, 64]))
    with pytest.raises(ValueError, match="expected uint8"):
        network(np.zeros((48, 64, 3), np.float32))


@pytest.fixture
def transformers(monkeypatch):
    """In place of the optional package: a model whose depth is the mean colour, and what it was
    asked for."""
    import sys
    from types import SimpleNamespace

    import torch

    asked = SimpleNamespace(calls=[], model_type="depth_anything", estimates="relative")

    class Model:
        config = SimpleNamespace(depth_estimation_type=None)

        def eval(self):
            self.config.depth_estimation_type = asked.estimates
            return self

        def __call__(self, pixel_values):
            return SimpleNamespace(predicted_depth=pixel_values.mean(1))

    def load(result):
        def from_pretrained(name, **options):
            asked.calls.append(options)
            if name == "unreachable/model":
                raise OSError("We couldn't connect to the hub")
            return result()

        return SimpleNamespace(from_pretrained=from_pretrained)

    def processor(images, return_tensors):
        return {
            "pixel_values": torch.from_numpy(images[::2, ::2].copy()).permute(2, 0, 1)[None].float()
        }

    config = load(lambda: SimpleNamespace(model_type=asked.model_type))
    module = SimpleNamespace(
        AutoConfig=config,
        AutoImageProcessor=load(lambda: processor),
        AutoModelForDepthEstimation=load(Model),
    )
    monkeypatch.setitem(sys.modules, "transformers", module)
    return asked


def test_a_transformers_model_runs_no_code_of_others(transformers):
    mono = MonocularDepth("some/model")(np.full((48, 64, 3), 40, np.uint8))
    assert mono.shape == (48, 64) and (mono == 40).all()
    assert all(options["trust_remote_code"] is False for options in transformers.calls)
    assert transformers.calls[-1]["use_safetensors"] is True


def test_a_metric_transformers_model_gives_inverse_depth_too(transformers):
    transformers.estimates = "metric"
    assert MonocularDepth("some/model")(np.full((48, 64, 3), 40, np.uint8)) == pytest.approx(1 / 40)


def test_transformers_models_that_cannot_be_used(transformers, tmp_path):
    with pytest.raises(SldError, match="cannot be had from the hub.*give the path"):
        MonocularDepth("unreachable/model")
    transformers.model_type = "bert"
    with pytest.raises(SldError, match="type bert; expected depth_anything or dpt"):
        MonocularDepth("some/model")


def test_without_transformers_the_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SldError, match="pip install transformers"):
        MonocularDepth("some/model")


@pytest.mark.shared
@pytest.mark.skipif(not NETWORK.exists(), reason=f"no {NETWORK}")
def test_the_real_network_orders_depths():
    """On real kitchen frames its inverse depth goes with the measured one, and auto finds its
    preprocessing."""
    from sld_core.camera.images import read_depth, read_image

    network = MonocularDepth(NETWORK)
    folder = SHARED / "data/kitchen/frames"
    for name in ("frame-000000", "frame-000240"):
        image, depth = (
            read_image(folder / f"{name}.color.jpg"),
            read_depth(folder / f"{name}.depth.png"),
        )
        mono, known = network(image), depth > 0
        assert mono.shape == (480, 640)
        assert np.corrcoef(mono[known], 1 / depth[known])[0, 1] > 0.8
    np.testing.assert_array_equal(mono, MonocularDepth(NETWORK, "raw255")(image))
