"""The network as a program: torch.export and ONNX Runtime say what the network on our operators says."""

import cv2
import numpy as np
import pytest
import torch

from ringnet_ext import RingNet
from ringnet_ext.commands import export
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.network.encoder import to_input
from ringnet_ext.network.exportable import OUTPUTS, exported


@pytest.fixture(scope="module")
def pictures():
    clouds = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    return np.stack([cv2.resize(cloud, (224, 224), interpolation=cv2.INTER_CUBIC) for cloud in clouds])


@pytest.fixture(scope="module")
def images(pictures):
    return to_input(torch.from_numpy(pictures).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def network(images):
    """Untrained, but its answers differ from image to image: turned heads, open mouths."""
    torch.manual_seed(0)
    model = RingNet(scale=(0.1, 0.02, 0.4, 0.2, 1.0, 1.0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.regressor.layers[-1].weight.normal_(std=0.15)
        model.train()(images)
    return model.eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("network")
    network.save(path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def wanted(network, pictures):
    """What reconstruct makes of them."""
    faces = network.reconstruct([fit_square(picture) for picture in pictures])
    parameters = torch.cat([face.params.to_vector() for face in faces]).numpy()
    assert np.ptp(parameters[:, 3:6], axis=0).max() > 0.1  # they differ
    return parameters, np.stack([face.vertices for face in faces]), np.stack([face.square_landmarks for face in faces])


@pytest.fixture(scope="module")
def program(folder):
    """Made once for both tests of files, as that takes seconds."""
    return exported(RingNet.load(folder / "model.safetensors"))


def check(outputs, wanted, count):
    for got, want, tolerance in zip(outputs, wanted, (1e-5, 1e-5, 5e-3), strict=True):  # the last are pixels
        assert got.shape == want[:count].shape
        assert np.abs(np.asarray(got) - want[:count]).max() < tolerance


@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_written_programs_say_the_same_at_any_batch(folder, program, images, wanted, suffix, monkeypatch, capsys):
    file = folder / f"model{suffix}"
    if suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, of the test extra")
        pytest.importorskip("onnxscript", reason="needs onnx and onnxscript, of the test extra")
    monkeypatch.setattr(export, "exported", lambda model: program)
    assert export.main([str(folder / "model.safetensors"), "--out", str(file)]) == 0
    assert f"{file}: " in capsys.readouterr().out
    if suffix == ".onnx":
        session = runtime.InferenceSession(file)
        assert [each.name for each in session.get_outputs()] == list(OUTPUTS)
    else:
        module = torch.export.load(file).module()
    for count in (1, 7):
        given = images[:count]
        with torch.no_grad():
            outputs = session.run(None, {"images": given.numpy()}) if suffix == ".onnx" else module(given)
        check(outputs, wanted, count)
    assert not [left for left in folder.iterdir() if left.name.startswith(".")]


def test_the_module_is_a_copy_as_the_network_is_used(network, images, wanted):
    network.train()
    try:
        module = network.exportable()
        with torch.no_grad():
            check(module(images), wanted, 7)
        assert network.training and not module.training
        module.regressor.mean.zero_()
        assert network.regressor.mean.any()
    finally:
        network.eval()


def test_resnet50(images):
    torch.manual_seed(0)
    model = RingNet(encoder="resnet50").eval()
    with torch.no_grad():
        parameters, _, landmarks = model.exportable()(images[:1])
        params = model(images[:1])
        assert torch.equal(parameters, params.to_vector())
        assert torch.allclose(landmarks, (model.landmarks(params) + 1) * 112, atol=1e-3)


def test_wrong_files_are_named(folder, tmp_path, capsys):
    assert export.main([str(folder / "model.safetensors"), "--out", str(tmp_path / "a.bin")]) == 2
    assert "--out: " in capsys.readouterr().err
    assert export.main([str(tmp_path / "none"), "--out", str(tmp_path / "a.pt2")]) == 1
    assert "none" in capsys.readouterr().err and not list(tmp_path.iterdir())
