"""Every backbone at stride 8: where its cells look, its weights from files, the web or a seed, and
what it costs."""

import dataclasses
import hashlib
import io
import json
import logging
import pickle
import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from test_scene_file import make_scene

from sld_core import cli, scene_file
from sld_core.config.scene import BACKBONES
from sld_core.models import backbone as backbone_module
from sld_core.models import weights
from sld_core.models.backbone import KINDS, Backbone, save_weights, trainable, weights_sha256
from sld_core.models.macs import count_macs
from sld_core.models.torchvision_networks import resnext
from sld_core.types import SldError

SMALL = ("lite0", "xfeat", "lite0+xfeat", "efficientnet-b0", "swin-t", "resnext101-layer2")
LARGE = ("resnext101", "resnext101-layer3")
B0 = KINDS["efficientnet-b0"].files[0]


@pytest.fixture
def no_web(monkeypatch, tmp_path):
    """An empty cache, and no way to the web; the list of addresses that were asked for, and with
    which time-out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    asked = []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def stirred(network, seed=0):
    """The network with statistics of batch normalisation, and biases, that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean") or name.endswith("bias"):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


def test_the_configuration_lists_every_backbone():
    assert tuple(KINDS) == BACKBONES


# networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in BACKBONES]
)
def test_saved_weights_make_the_same_frozen_features(name, tmp_path, monkeypatch):
    """Folding and file together change nothing; the file keeps its record."""
    monkeypatch.setattr(backbone_module, "conv_dtype", lambda device: torch.float32)
    network = stirred(trainable(name, "random", seed=3)).eval()
    save_weights(network, name, tmp_path / "w.safetensors", {"scenes": 7})
    frozen = Backbone(name, str(tmp_path / "w.safetensors"))
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
    assert (
        expected.shape == (2, network.channels, 8, 12)
        and network.channels == KINDS[name].channels == frozen.channels
    )
    torch.testing.assert_close(
        frozen(image), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
    assert not any(p.requires_grad for p in frozen.parameters())
    assert json.loads(weights.read(tmp_path / "w.safetensors")[1]["record"]) == {"scenes": 7}


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_can_be_trained(name):
    network = trainable(name, "random").train()
    torch.manual_seed(0)  # of stochastic depth, which may leave out a block of both images
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = network(image)
    features.mul(
        torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    for key, parameter in network.named_parameters():
        assert (
            parameter.dtype == torch.float32
            and parameter.grad is not None
            and parameter.grad.isfinite().all()
        ), key
        assert parameter.grad.abs().max() > 0 or parameter.numel() <= 4, (
            key
        )  # a tiny one may be dead


def gradient_centre(network, probes, side=160):
    """Mean distance in x and y (pixels) from a cell's centre to the centre of mass of what its
    feature depends on."""
    generator, pixel, found = torch.Generator().manual_seed(0), torch.arange(side) + 0.5, []
    for _ in range(probes):
        image = torch.rand(1, 3, side, side, generator=generator, requires_grad=True)
        features = network(image)[0]
        i, j = torch.randint(8, 12, (2,), generator=generator).tolist()
        direction = torch.randn(len(features), generator=generator) / (
            features.detach().std((1, 2)) + 1e-9
        )
        (features[:, i, j] * direction).sum().backward()
        energy = image.grad[0].square().sum(0)
        found.append(
            [
                float((energy.sum(0) * pixel).sum() / energy.sum()) - 8 * (j + 0.5),
                float((energy.sum(1) * pixel).sum() / energy.sum()) - 8 * (i + 0.5),
            ]
        )
    return np.mean(found, 0)


@pytest.mark.parametrize(
    "name, given, probes, expected",
    [
        ("swin-t", "random", 8, 0),
        ("lite0", "random", 24, 0),
        ("efficientnet-b0", "random", 16, -3.5),
        ("resnext101-layer2", "random", 6, -3.5),
        ("xfeat", "random", 24, -5),  # as they are padded
        ("lite0", "", 24, -4),
        ("xfeat", "", 24, -1.5),
    ],
)  # training moves both by half a cell
def test_where_a_cell_looks(name, given, probes, expected):
    """In pixels right of and below its centre, as documented in models.torchvision_networks."""
    network = trainable(name, given).eval().requires_grad_(False)
    assert np.abs(gradient_centre(network, probes) - expected).max() < 2


@pytest.mark.parametrize("name, step", [("resnext101-layer2", 8), ("efficientnet-b0", 16)])
def test_moving_the_image_moves_the_features_as_many_cells(name, step, monkeypatch):
    """Away from the border nothing else changes; EfficientNet has stages at stride 16."""
    monkeypatch.setattr(backbone_module, "conv_dtype", lambda device: torch.float32)
    backbone = Backbone(name, "random")
    big = torch.rand(1, 3, 400, 400, generator=torch.Generator().manual_seed(0))
    here, there = (
        backbone(big[..., :352, :352])[0],
        backbone(big[..., step : step + 352, step : step + 352])[0],
    )
    cells = step // 8
    a, b = here[:, 20 + cells : 24 + cells, 20 + cells : 24 + cells], there[:, 20:24, 20:24]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    assert (here[:, 20:24, 20:24] - b).abs().max() > 0.05 * a.abs().max()


def test_resnext_keeps_stride_8_by_dilation_and_projects_without_distortion():
    """layer3 and layer4 change no resolution, so that their cells look where those of layer2 do."""
    body = resnext(4).body
    convolutions = [
        m
        for layer in (body.layer3, body.layer4)
        for m in layer.modules()
        if isinstance(m, torch.nn.Conv2d)
    ]
    assert {m.stride for m in convolutions} == {(1, 1)}
    assert body.layer3[-1].conv2.dilation == (2, 2) and body.layer4[-1].conv2.dilation == (4, 4)
    rows = body.reduce.weight[:, :, 0, 0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(512), atol=1e-4, rtol=0)


def test_random_weights_are_those_of_the_seed_and_leave_torch_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for name in ("xfeat", "efficientnet-b0"):
        one = first_parameter(trainable(name, "random", 1))
        assert torch.equal(one, first_parameter(trainable(name, "random", 1)))
        assert not torch.equal(one, first_parameter(trainable(name, "random", 2)))
    assert torch.equal(torch.get_rng_state(), state)
    random = first_parameter(trainable("xfeat", "random", 1))
    assert not torch.equal(random, first_parameter(trainable("xfeat")))


def first_parameter(network):
    return next(iter(network.parameters())).detach()


# weights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As torchvision ships them: the whole network, here of an old torch that did not count
    batches."""
    import torchvision

    path = tmp_path_factory.mktemp("checkpoint") / "b0.pth"
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = stirred(torchvision.models.efficientnet_b0()).state_dict()
    torch.save({k: t for k, t in state.items() if not k.endswith("num_batches_tracked")}, path)
    return path


def test_a_checkpoint_of_the_whole_network_is_taken_by_path(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    network = trainable("efficientnet-b0", str(checkpoint))
    assert torch.equal(
        network.body.features[5][1].block[1][0].weight, state["features.5.1.block.1.0.weight"]
    )
    assert torch.equal(network.body.features[0][1].running_var, state["features.0.1.running_var"])


def other(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("efficientnet-b1", lambda p: None, "efficientnet-b1 .*is not in it"),
        ("swin-t", lambda p: None, "not weights of backbone swin-t"),
        (
            "efficientnet-b0",
            lambda p: other(p, lambda s: s.pop("features.4.1.block.0.0.weight")),
            "features.4.1.block.0.0.weight is not in it",
        ),
        (
            "efficientnet-b0",
            lambda p: other(p, lambda s: s.update({"features.0.0.weight": torch.zeros(3)})),
            "0.0.weight has another shape",
        ),
        (
            "efficientnet-b0",
            lambda p: other(p, lambda s: s.update(model={"a": 1})),
            "expected a state dict",
        ),
        (
            "efficientnet-b0",
            lambda p: p.write_bytes(p.read_bytes()[:5000]),
            "not readable as weights",
        ),
        (
            "efficientnet-b0",
            lambda p: p.write_bytes(b"\x10\0\0\0\0\0\0\0{" + b"\0" * 50),
            "not readable as weights",
        ),
        ("efficientnet-b0", lambda p: p.write_bytes(b""), "not readable as weights"),
        (
            "efficientnet-b0",
            lambda p: p.write_bytes(pickle.dumps(print)),
            "not readable as weights",
        ),
        ("efficientnet-b0", lambda p: p.unlink(), "No such file"),
        ("efficientnet-b0", lambda p: (p.unlink(), p.mkdir()), "expected a file"),
        ("lite0", lambda p: None, "no backbone is named in it"),
        (
            "lite0",
            lambda p: save_weights(trainable("xfeat"), "xfeat", p, {}),
            "weights of backbone 'xfeat', expected 'lite0'",
        ),
        ("xfeat", lambda p: save_weights(torch.nn.Linear(2, 2), "xfeat", p, {}), "is not in it"),
    ],
)
def test_files_of_other_weights_are_one_clear_error(checkpoint, tmp_path, name, change, expected):
    path = tmp_path / "w.pth"
    shutil.copy(checkpoint, path)
    change(path)
    with pytest.raises(SldError, match=expected) as error:
        Backbone(name, str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_restrictive_licence_is_logged(checkpoint, monkeypatch, caplog):
    assert "CC-BY-NC 4.0" in weights.LICENCES["c38310e5"]
    monkeypatch.setitem(
        weights.LICENCES, weights.sha256_of(checkpoint)[:8], weights.LICENCES["c38310e5"]
    )
    with caplog.at_level(logging.WARNING):
        Backbone("efficientnet-b0", str(checkpoint))
    assert "CC-BY-NC 4.0" in caplog.text and str(checkpoint) in caplog.text


@pytest.mark.parametrize("given", ["", "imagenet"])
def test_weights_that_cannot_be_downloaded_are_one_clear_error(no_web, tmp_path, caplog, given):
    with pytest.raises(SldError) as error:
        Backbone("efficientnet-b0", given)
    for part in (B0.url, str(tmp_path / "torch"), "no route to host", "pass the path"):
        assert part in str(error.value)
    assert no_web == [(B0.url, weights.TIMEOUT_S)] and weights.TIMEOUT_S <= 10
    assert f"downloading {B0.url}" in caplog.text
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").iterdir())


class Answer(io.BytesIO):
    def __init__(self, data, length):
        super().__init__(data)
        self.headers = {"Content-Length": str(length)}


def test_a_download_is_checked_and_kept(no_web, monkeypatch, tmp_path):
    file = weights.WebFile(
        f"https://example.org/net-{hashlib.sha256(b'tensors').hexdigest()[:8]}.pth"
    )

    def serve(data, length):
        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(data, length))

    serve(b"tens", 7)
    with pytest.raises(SldError, match="4 of 7 bytes came"):
        weights.fetch(file)
    assert not list((tmp_path / "torch").rglob("*.pth"))
    serve(b"tensors", 7)
    path = weights.fetch(file)
    assert path.read_bytes() == b"tensors"
    serve(b"", 0)
    assert weights.fetch(file) == path and path.read_bytes() == b"tensors"  # not asked for again
    path.write_bytes(b"other")
    with pytest.raises(SldError, match="its name says .*delete it"):
        weights.fetch(file)


def test_installed_weights_need_no_web(no_web):
    Backbone("lite0", "imagenet")
    with pytest.raises(SldError, match="no ImageNet weights"):
        Backbone("lite0+xfeat", "imagenet")
    assert no_web == []


def test_the_hash_tells_weights_apart(tmp_path):
    joined = hashlib.sha256((weights.LITE0.sha256 + weights.XFEAT.sha256).encode()).hexdigest()
    assert weights_sha256("lite0+xfeat") == joined  # that of every scene file there is
    save_weights(trainable("xfeat"), "xfeat", tmp_path / "a", {})
    first = weights_sha256("xfeat", str(tmp_path / "a"))
    assert first == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    save_weights(trainable("xfeat"), "xfeat", tmp_path / "a", {"steps": 1})
    hashes = {
        first,
        weights_sha256("xfeat", str(tmp_path / "a")),
        weights_sha256("xfeat"),
        weights_sha256("xfeat", "random"),
        weights_sha256("lite0", "random"),
    }
    assert len(hashes) == 5


# the scene file -----------------------------------------------------------------------------------


def test_a_scene_keeps_to_the_weights_it_was_taught_with(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir(), here.mkdir()
    save_weights(trainable("xfeat", "random"), "xfeat", there / "w.safetensors", {})
    scene = make_scene()
    scene = dataclasses.replace(
        scene,
        config=dataclasses.replace(scene.config, backbone_weights=str(there / "w.safetensors")),
    )
    scene_file.save(scene, there / "a.sld")
    assert scene_file.load(there / "a.sld").config == scene.config
    shutil.copy(there / "a.sld", here / "a.sld")
    (there / "w.safetensors").rename(there / "moved")
    with pytest.raises(
        SldError, match="w.safetensors, which are not here; copy that file to .*here/w.safetensors"
    ):
        scene_file.load(here / "a.sld")
    shutil.copy(there / "moved", here / "w.safetensors")
    assert scene_file.load(here / "a.sld").config.backbone_weights == str(here / "w.safetensors")
    save_weights(trainable("xfeat"), "xfeat", here / "w.safetensors", {})
    with pytest.raises(SldError, match="other weights of backbone 'xfeat'"):
        scene_file.load(here / "a.sld")


# the benchmark ------------------------------------------------------------------------------------


def test_multiplications_by_hand():
    x = torch.zeros(1, 8, 10, 12)
    conv = torch.nn.Conv2d(8, 16, 3, padding=1, groups=4)
    assert count_macs(conv, x) == 10 * 12 * 16 * (8 // 4) * 9
    assert conv.weight.device.type == "cpu"
    assert count_macs(torch.nn.Linear(7, 5), torch.zeros(3, 11, 7)) == 3 * 11 * 7 * 5


def test_multiplications_of_attention_by_hand():
    """Swin-T at 448x448, where windows of 7x7 fit: 112x112 tokens of 96 channels, then 56x56 of
    192, two blocks each."""

    def block(tokens, c):  # queries, keys, values, projection (4), MLP (8); scores and values
        return tokens * (12 * c * c + 2 * 49 * c)

    expected = 112**2 * 96 * 48 + 2 * block(112**2, 96) + 56**2 * 384 * 192 + 2 * block(56**2, 192)
    assert count_macs(Backbone("swin-t", "random"), torch.zeros(1, 3, 448, 448)) == expected


def test_bench_backbones(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert (
        cli.main(
            [
                "bench",
                "backbones",
                "--only",
                "xfeat",
                "--size",
                "64x32",
                "--repeat",
                "1",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    row = json.loads(out.read_text())["xfeat"]
    assert (
        row["channels"] == 64
        and row["p50_ms"] > 0
        and row["parameters"] == sum(p.numel() for p in Backbone("xfeat").parameters())
    )
    assert "xfeat" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--only", "vgg"], "no backbone 'vgg'; there are lite0, xfeat"),
        (["--size", "64"], "expected WIDTHxHEIGHT"),
        (["--size", "8x64"], "32 to"),
        (["--repeat", "0"], "at least 1"),
    ],
)
def test_bench_backbones_refuses(options, expected, capsys):
    assert cli.main(["bench", "backbones", *options]) == 2
    assert expected in capsys.readouterr().err
