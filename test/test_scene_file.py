import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sld_core import scene_file
from sld_core.config.scene import HeadConfig, SceneConfig
from sld_core.files import write_atomically
from sld_core.fine_pass import Templates
from sld_core.models.heads import CellHead, PrototypeHead, SceneHead, Whitening
from sld_core.scene_file import Scene
from sld_core.types import Camera, Landmarks, SceneReport, SldError

CAMERA = Camera(640, 480, 500.0, 501.0, 320.0, 240.0)


def make_scene(kind="cells") -> Scene:
    torch.manual_seed(0)
    config = SceneConfig(backbone="xfeat", head=HeadConfig(kind=kind, hidden=8))
    cells = CellHead(16, 8, 30) if kind == "cells" else PrototypeHead(16, 30, 0.05)
    whitening = Whitening(64, 16)
    whitening.matrix.normal_()
    landmarks = Landmarks(np.random.default_rng(0).normal(size=(30, 3)), np.arange(30))
    report = SceneReport(
        {"tracks": 1.0, "head": 2.5}, {"frames": 3}, [(0, 1.5), (20, 0.5)], {"queries": 0}
    )
    return Scene(
        "kitchen",
        landmarks,
        np.array([5.0, -2.0, 0.0]),
        SceneHead(whitening, cells).eval(),
        CAMERA,
        (-0.5, 0.25),
        config,
        report,
    )


@pytest.fixture
def saved(tmp_path):
    scene_file.save(make_scene(), tmp_path / "a.sld")
    return tmp_path / "a.sld"


@pytest.mark.parametrize("kind", ["cells", "prototype"])
def test_round_trip(tmp_path, kind):
    scene = make_scene(kind)
    assert scene_file.save(scene, tmp_path / "a.sld") == (tmp_path / "a.sld").stat().st_size
    back = scene_file.load(tmp_path / "a.sld")
    assert (back.name, back.camera, back.rolls_rad, back.config) == (
        scene.name,
        scene.camera,
        scene.rolls_rad,
        scene.config,
    )
    assert back.report == scene.report and back.report.loss_curve == [(0, 1.5), (20, 0.5)]
    np.testing.assert_allclose(back.landmarks.xyz_L3, scene.landmarks.xyz_L3, atol=1e-6)
    features = torch.randn(64, 4, 5)
    torch.testing.assert_close(
        back.head(features).score_Lhw, scene.head(features).score_Lhw, atol=0.02, rtol=0.02
    )


def make_templates(landmarks=30, side=11):
    rng = np.random.default_rng(1)
    return Templates(
        rng.integers(-127, 128, (2, landmarks, side, side)).astype(np.int8),
        np.array([0.5, 1.0]),
        rng.normal(size=(landmarks, 3, 2)) / 256,
        np.full((landmarks, 3), 0.5),
        np.full(landmarks, 0.25),
        np.full(landmarks, 1.5),
        np.full(landmarks, 4.0),
        np.arange(landmarks),
        np.full((landmarks, 3, 3), 1e-5),
    )


def test_templates_are_kept(tmp_path):
    templates = make_templates()
    scene_file.save(dataclasses.replace(make_scene(), templates=templates), tmp_path / "a.sld")
    back = scene_file.load(tmp_path / "a.sld").templates
    for field in dataclasses.fields(Templates):
        np.testing.assert_allclose(
            getattr(back, field.name), getattr(templates, field.name), rtol=1e-3, atol=1e-7
        )
    assert scene_file.load(tmp_path / "a.sld").head  # they are no weights of the head


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(patch_SLPP=np.zeros((2, 30, 9, 9), np.int8)), "patch_SLPP of shape"),
        (dict(near_L=np.ones(29)), "near_L of shape"),
        (dict(zoom_S=np.array([0.5, 1e6])), "zoom_S"),
        (dict(axes_L32=np.full((30, 3, 2), np.nan)), "not finite"),
    ],
)
def test_forged_templates_are_refused(tmp_path, change, expected):
    templates = dataclasses.replace(make_templates(), **change)
    scene_file.save(dataclasses.replace(make_scene(), templates=templates), tmp_path / "a.sld")
    with pytest.raises(SldError, match=expected):
        scene_file.load(tmp_path / "a.sld")


def test_a_file_of_the_version_before_answers_without_templates(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[:4] + (1).to_bytes(4, "little") + data[8:])
    assert scene_file.load(saved).templates is None


def test_large_matrices_are_stored_in_bytes_to_within_half_a_step():
    weights = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    packed = scene_file._packed("head.w", weights)
    assert packed["head.w"].dtype == torch.int8
    back = scene_file._unpacked(packed)
    assert list(back) == ["w"]
    step = weights.abs().amax(1, keepdim=True) / 127
    assert ((back["w"] - weights).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("metric", [True, False])
def test_whether_a_scene_is_metric_is_kept(tmp_path, metric):
    scene_file.save(dataclasses.replace(make_scene(), metric=metric), tmp_path / "a.sld")
    assert scene_file.load(tmp_path / "a.sld").metric is metric


def test_a_file_from_before_scenes_without_scale_is_metric(saved):
    before = saved.read_bytes()
    forge(
        saved, lambda b: b.replace(b'\\"metric\\": true', b'\\"matric\\": true')
    )  # as if it were not there
    assert saved.read_bytes() != before and scene_file.load(saved).metric is True


def test_every_damaged_byte_is_one_clear_error(saved, tmp_path):
    """A flipped bit in any region: mark, version, checksum, header, metadata, weights, last
    byte."""
    data = saved.read_bytes()
    broken = tmp_path / "b.sld"
    for at in [*range(60), *range(60, len(data), 97), len(data) - 1]:
        broken.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(SldError) as error:
            scene_file.load(broken)
        assert str(broken) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 3, 39, 40, 41, 100, 2000, -1])
def test_a_truncated_file_is_an_error(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(SldError):
        scene_file.load(saved)


def forge(path, change):
    """Change the contents and make the checksum fit again."""
    body = change(path.read_bytes()[scene_file.HEADER_BYTES :])
    path.write_bytes(
        scene_file.MAGIC + (1).to_bytes(4, "little") + hashlib.sha256(body).digest() + body
    )


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda b: b.replace(b"xfeat", b"yfeat"), "yfeat"),
        (
            lambda b: b.replace(b'weights_sha256\\": \\"', b'weights_sha256\\": \\"0'),
            "not a readable scene",
        ),
        (lambda b: b.replace(b"hidden", b"hiddem"), "hiddem"),
        (lambda b: b[:-8], "not a readable scene"),
        (lambda b: b"\xff" * 8 + b[8:], "not a readable scene"),
        (
            lambda b: b.replace(b'\\"width\\": 640', b'\\"width\\": 000'),
            "not a readable scene|image size",
        ),
    ],
)
def test_a_forged_file_is_an_error(saved, change, expected):
    forge(saved, change)
    with pytest.raises(SldError, match=expected):
        scene_file.load(saved)


def test_other_weights_of_the_backbone_are_refused(saved):
    def other(body):
        at = body.index(b"weights_sha256") + len(b'weights_sha256\\": \\"')
        return body[:at] + (b"0" if body[at : at + 1] != b"0" else b"1") + body[at + 1 :]

    forge(saved, other)
    with pytest.raises(SldError, match="other weights of backbone 'xfeat'"):
        scene_file.load(saved)


def test_weights_are_those_of_the_backbone_in_the_configuration(saved):
    """A file that names one backbone and carries the settings of another."""
    forge(saved, lambda b: b.replace(b'backbone\\": \\"xfeat', b'backbone\\": \\"lite0'))
    with pytest.raises(SldError, match="other weights of backbone"):
        scene_file.load(saved)


def test_not_a_number_is_refused(tmp_path):
    scene = make_scene()
    scene.head.whitening.mean[0] = torch.nan
    scene_file.save(scene, tmp_path / "a.sld")
    with pytest.raises(SldError, match="not finite"):
        scene_file.load(tmp_path / "a.sld")


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda b: b.replace(b'max_side_px\\": 640', b'max_side_px\\": 000'),
            "not a readable scene",
        ),
        (
            lambda b: b.replace(b'max_side_px\\": 640', b'max_side_px\\":   3'),
            "setting image.max_side_px=3: expected a number from 64 to 4096",
        ),
        (
            lambda b: b.replace(b'roll_margin_deg\\": 0.0', b'roll_margin_deg\\": 1e9'),
            "setting decode.roll_margin_deg=1000000000.0: expected a number from 0.0 to 180.0",
        ),
        (
            lambda b: b.replace(b'roll_margin_deg\\": 0.0', b'roll_margin_deg\\": NaN'),
            "from 0.0 to 180.0",
        ),
        (
            lambda b: b.replace(b'min_inliers\\": 10', b'min_inliers\\":  0'),
            "setting pnp.min_inliers=0: expected a number from 4",
        ),
        (
            lambda b: b.replace(b'hidden\\": 8', b'hidden\\": 9'),
            "head of width 8, but head.hidden=9",
        ),
        (
            lambda b: b.replace(b'tracks\\": 1.0', b'tracks\\": {} '),
            "report whose parts are not numbers",
        ),
        (
            lambda b: b.replace(b'metric\\": true', b'metric\\": 1   '),
            "metric '1': expected true or false",
        ),
        (
            lambda b: b.replace(b'metric\\": true', b'metric\\": null'),
            "metric 'None': expected true or false",
        ),
        (lambda b: b.replace(b"kitchen", b"\\\\u001b[2J"[:7]), "readable scene|printable"),
    ],
)
def test_settings_and_report_of_a_forged_file_are_checked(saved, change, expected):
    before = saved.read_bytes()
    forge(saved, change)
    assert saved.read_bytes() != before
    with pytest.raises(SldError, match=expected):
        scene_file.load(saved)


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(b"old")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    write_atomically(Path("/dev/null"), b"new")
    assert Path("/dev/null").is_char_device()


def test_another_version_says_so(saved):
    data = bytearray(saved.read_bytes())
    data[4] = 7
    saved.write_bytes(data)
    with pytest.raises(SldError, match="format version 7"):
        scene_file.load(saved)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(SldError, match="No space left"):
        scene_file.save(dataclasses.replace(make_scene(), name="other"), saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.sld", tmp_path):
        with pytest.raises(SldError):
            scene_file.load(path)
