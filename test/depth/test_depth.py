"""Depth completion: methods by hand, honest hiding, the benchmark."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from sld_core import cli
from sld_core.bench.depth_completion import trials
from sld_core.bench.depth_completion.command import MASKS
from sld_core.bench.depth_completion.errors import depth_errors
from sld_core.bench.depth_completion.masking import blocks, mask, regions
from sld_core.config.mapping import DepthConfig, GaussianProcessConfig
from sld_core.depth import gaussian_process, paper
from sld_core.depth.completion import DEFAULT, METHODS, method_of, scale_and_shift
from sld_core.types import Camera, Frame, SldError

SHARED = Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
NETWORK = SHARED / "models/tcmonodepth_small_192x320.onnx"
needs_network = pytest.mark.skipif(not NETWORK.exists(), reason=f"no {NETWORK}")
FAST = [name for name in METHODS if name != "paper"]


@pytest.fixture(scope="module")
def corner():
    """Depth, monocular depth and image (48x64) of a floor that meets a wall. The monocular depth is
    an affine function of the inverse depth, as the ideal network's."""
    rng = np.random.default_rng(5)
    rows = np.arange(48)[:, None] + np.zeros((1, 64))
    inverse = np.where(rows < 20, 0.25, 0.25 + (rows - 20) * 0.02)
    image = np.where(rows[..., None] < 20, [90, 90, 160], [160, 130, 90]) + rng.integers(
        -4, 5, (48, 64, 1)
    )
    return (
        (1 / inverse).astype(np.float32),
        (3 * inverse - 0.4).astype(np.float32),
        image.astype(np.uint8),
    )


@pytest.fixture(scope="module")
def hidden():
    mask = np.zeros((48, 64), bool)
    mask[10:34, 20:44] = True
    return mask


# methods ------------------------------------------------------------------------------------------


def test_scale_and_shift_are_found_exactly():
    mono = np.linspace(0.1, 2, 50)
    assert scale_and_shift(mono, 0.5 * mono + 0.125) == pytest.approx((0.5, 0.125), abs=1e-9)


def test_scale_and_shift_ignore_outliers():
    mono = np.linspace(0.1, 2, 100)
    inverse = 0.5 * mono + 0.125
    inverse[::10] = 5.0
    assert scale_and_shift(mono, inverse) == pytest.approx((0.5, 0.125), abs=5e-3)


def test_scale_shift_completes_an_ideal_network_exactly(corner, hidden):
    depth, mono, image = corner
    completed = METHODS["scale_shift"](np.where(hidden, 0, depth), mono, image)
    np.testing.assert_allclose(completed, depth, rtol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_what_was_measured_stays(corner, hidden, name):
    """Also where zeros, NaN, infinity and negative numbers stand for what was not."""
    depth, mono, image = corner
    known = np.where(hidden, 0, depth)
    marked = known.copy()
    marked[12, 22], marked[13, 22], marked[14, 22] = np.nan, np.inf, -1
    completed = METHODS[name](marked, mono, image)
    assert completed.dtype == np.float32 and np.isfinite(completed).all() and (completed > 0).all()
    np.testing.assert_array_equal(completed[~hidden], depth[~hidden])
    np.testing.assert_array_equal(completed, METHODS[name](known, mono, image))


def test_the_default_completes_the_corner(corner, hidden):
    """Within 2 %, though the network knows nothing, and within 1 % where it helps; that is, both
    are used."""
    depth, mono, image = corner
    known = np.where(hidden, 0, depth)
    blind = depth_errors(METHODS[DEFAULT](known, np.zeros_like(mono), image), depth, hidden)
    seeing = depth_errors(METHODS[DEFAULT](known, mono, image), depth, hidden)
    assert blind.absrel < 0.02 and seeing.absrel < 0.01 and seeing.absrel < blind.absrel


def test_the_default_is_repeatable(corner, hidden):
    depth, mono, image = corner
    first, second = (
        METHODS[DEFAULT](np.where(hidden, 0, depth), mono, image, np.random.default_rng(3))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_a_gaussian_process_goes_through_its_samples(corner):
    """Without noise, and every known pixel a sample: the prediction there is the measurement."""
    depth, mono, image = corner
    known = np.where(np.indices(depth.shape).sum(0) % 2, 0, depth)
    filled = gaussian_process.fill(
        known,
        mono,
        image,
        np.random.default_rng(0),
        GaussianProcessConfig(samples=4000, noise=1e-6),
    )
    np.testing.assert_allclose(filled[known > 0], depth[known > 0], rtol=2e-3)
    np.testing.assert_allclose(filled, depth, rtol=0.05)


def test_completed_depths_stay_in_range(corner, hidden):
    """Between 0.7 times the nearest and 1.3 times the farthest known depth, or as configured."""
    depth, mono, image = corner
    known, wild = np.where(hidden, 0, depth), np.where(hidden, -50, mono).astype(np.float32)
    assert METHODS["scale_shift"](known, wild, image).max() <= 1.3 * known.max() * 1.0001
    tight = method_of(DepthConfig(max_depth_ratio=1.0))
    assert tight(known, wild, image).max() <= known.max() * 1.0001


@pytest.mark.parametrize("name", METHODS)
def test_too_little_to_complete_from(corner, name):
    depth, mono, image = corner
    few = np.zeros_like(depth)
    few[0, :9] = 1
    with pytest.raises(SldError, match="9 known depths"):
        METHODS[name](few, mono, image)


# the paper's regressor ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(corner, hidden):
    depth, mono, image = corner
    return paper.fit(np.where(hidden, np.nan, depth), mono, image)


def test_the_paper_s_settings(fitted, hidden):
    settings = fitted.regressor.get_params()
    assert (
        settings["hidden_layer_sizes"] == (100, 50)
        and settings["random_state"] == 42
        and settings["max_iter"] == 1000
    )
    assert fitted.scaler.n_samples_seen_ == int(0.8 * (~hidden).sum())  # 80 % of the known pixels
    assert (
        fitted.loss_curve[-1] < fitted.loss_curve[0]
        and fitted.test_mae < 0.3
        and fitted.test_mse < 0.2
    )


def test_one_pixel_is_as_the_whole_image(corner, fitted):
    depth, mono, image = corner
    whole = paper.predict_image(fitted, mono, image)
    for x, y in ((0, 0), (63, 0), (5, 40), (63, 47)):
        assert paper.predict_depth(
            fitted.regressor, fitted.scaler, mono, image, (x, y)
        ) == pytest.approx(whole[y, x], rel=1e-9)
    with pytest.raises(ValueError, match=r"\(64, 0\)"):
        paper.predict_depth(fitted.regressor, fitted.scaler, mono, image, (64, 0))


def test_features_are_in_the_paper_s_order():
    mono, image = np.array([[0.5, 0.6]], np.float32), np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    np.testing.assert_allclose(
        paper.features(mono, image), [[0.5, 1, 2, 3, 0, 0], [0.6, 4, 5, 6, 1, 0]], rtol=1e-6
    )


def test_a_part_of_the_pixels_can_be_chosen(corner):
    depth, mono, image = corner
    assert paper.fit(depth, mono, image, max_pixels=500).scaler.n_samples_seen_ == 500


# honest hiding ------------------------------------------------------------------------------------


def test_errors_by_hand():
    truth, predicted = np.array([[1.0, 2.0, 4.0, 0.0, 9.0]]), np.array([[1.1, 2.0, 2.0, 5.0, 1.0]])
    errors = depth_errors(predicted, truth, np.array([[True, True, True, True, False]]))
    assert (
        errors.pixels == 3
        and errors.mae == pytest.approx(2.1 / 3)
        and errors.mse == pytest.approx((0.01 + 4) / 3)
    )
    assert errors.absrel == pytest.approx((0.1 + 0 + 0.5) / 3) and errors.delta1 == pytest.approx(
        2 / 3
    )
    with pytest.raises(ValueError, match="nothing to measure"):
        depth_errors(predicted, truth, np.zeros((1, 5), bool))


def test_blocks_and_regions_are_whole():
    """About a quarter of the image, in pieces: few borders between masked and not, unlike scattered
    pixels."""
    for make in (blocks, regions):
        masked = make((120, 160), np.random.default_rng(1))
        borders = (masked[:, 1:] != masked[:, :-1]).mean() + (masked[1:] != masked[:-1]).mean()
        assert 0.2 < masked.mean() < 0.4 and borders < 0.06


@pytest.mark.parametrize("kind", MASKS)
def test_only_known_depths_are_masked(corner, kind):
    depth, _, image = corner
    holes = depth.copy()
    holes[:, :10], holes[0, 12] = 0, np.nan
    masked = mask(holes, image, kind, np.random.default_rng(0))
    assert masked.any() and (holes[masked] > 0).all()
    np.testing.assert_array_equal(masked, mask(holes, image, kind, np.random.default_rng(0)))


@pytest.mark.parametrize("name", METHODS)
def test_hidden_depths_teach_nothing(corner, hidden, name):
    """Poisoned truth under the mask changes no bit of what is completed."""
    depth, mono, image = corner
    poisoned = np.where(hidden, 1e6, depth)
    clean = trials.complete(METHODS[name], depth, mono, image, hidden).depth_HW
    other = trials.complete(METHODS[name], poisoned, mono, image, hidden).depth_HW
    np.testing.assert_array_equal(clean, other)
    assert clean[hidden].max() < 10


# the benchmark ------------------------------------------------------------------------------------


@pytest.fixture
def frames(corner, tmp_path):
    """Three frames of the corner."""
    depth, _, image = corner
    paths = [tmp_path / f"{i}.depth.png" for i in range(3)]
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    for path in paths:
        cv2.imwrite(str(path), np.round(1000 * depth).astype(np.uint16))
    return [
        Frame(
            path.name[0],
            tmp_path / "image.png",
            Camera(64, 48, 50.0, 50.0, 32.0, 24.0),
            np.eye(4),
            path,
        )
        for path in paths
    ]


def test_frames_whose_depth_cannot_be_used_are_left_out_and_named(corner, frames, caplog):
    def run(frames):  # with a network that knows the inverse depth
        return trials.run_trials(frames, lambda image: corner[1], "blocks", 12, 0, lambda _: None)

    cv2.imwrite(str(frames[0].depth_path), np.zeros((48, 64), np.uint16))
    frames[1].depth_path.write_bytes(b"no image")
    found = run(frames)
    assert [trial.name for trial in found] == ["2"] and trials.summary(found)["images"] == 1
    assert (
        "0.depth.png: too few known depths" in caplog.messages[0]
        and "1.depth.png: " in caplog.messages[1]
    )
    caplog.clear()
    with pytest.raises(
        SldError,
        match="none of 2 frames can be used; the first, 0: .*0.depth.png: too few known depths",
    ):
        run(frames[:2])
    assert not caplog.messages


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_where_results_cannot_be_written_is_told_before_the_work(tmp_path, capsys, option):
    given = ["--frames", str(tmp_path / "nowhere"), "--model", "net.onnx", option, str(tmp_path)]
    assert cli.main(["bench", "depth", *given]) == 2
    assert (
        f"{option} {tmp_path} is a folder; expected the name of a file" in capsys.readouterr().err
    )


# real rooms ---------------------------------------------------------------------------------------


@pytest.mark.shared
@needs_network
@pytest.mark.parametrize("room", ["office", pytest.param("kitchen", marks=pytest.mark.slow)])
def test_the_default_beats_the_others_in_real_rooms(room, tmp_path, capsys):
    assert (
        cli.main(
            [
                "bench",
                "depth",
                "--frames",
                str(SHARED / "data" / room),
                "--list",
                "map.txt",
                "--model",
                str(NETWORK),
                "--max-images",
                "2",
                "--json",
                str(tmp_path / "out.json"),
                "--report",
                str(tmp_path / "out.html"),
            ]
        )
        == 0
    )
    out = json.loads((tmp_path / "out.json").read_text())
    assert (
        out["images"] == 2
        and out["default_method"] == DEFAULT
        and out["default_mae_mm"] == out[f"{DEFAULT}_mae_mm"]
    )
    assert (
        out["default_mae_mm"] < 0.9 * out["scale_shift_mae_mm"]
        and out["default_mae_mm"] < out["paper_mae_mm"]
    )
    for prefix in ("default", "paper", "scale_shift", "hist_gradient_boosting"):
        assert (
            all(
                out[f"{prefix}_{key}"] > 0 for key in ("mse_mm2", "s_per_image", "delta1", "absrel")
            )
            and out[f"{prefix}_delta1"] <= 1
        )
    assert "default" in capsys.readouterr().out and "<img" in (tmp_path / "out.html").read_text()


@needs_network
@pytest.mark.shared
@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--max-images", "0"], "at least 1"),
        (["--model", "no.onnx"], "cannot be read"),
        (["--list", "none.txt"], "no such file"),
    ],
)
def test_bench_refuses(capsys, arguments, text):
    given = [
        "--frames",
        str(SHARED / "data/kitchen"),
        "--model",
        str(NETWORK),
        "--list",
        "map.txt",
        *arguments,
    ]
    assert cli.main(["bench", "depth", *given]) == 2
    assert text in capsys.readouterr().err
