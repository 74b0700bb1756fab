"""Encoders, RingNet, checkpoints."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ringnet_ext import RingNet
from ringnet_ext.detection.squares import fit_square
from ringnet_ext.files.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ringnet_ext.flame import FlameModel, builtin_head
from ringnet_ext.flame.fingerprint import fingerprint
from ringnet_ext.flame.parameters import HeadParams
from ringnet_ext.geometry.camera import FILL
from ringnet_ext.inference.framing import NotAFaceError
from ringnet_ext.network.encoder import ENCODERS, PRETRAINED, CompactEncoder, ResNet50


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RingNet().eval()
    model.limit = 0.9
    return model


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_take_any_size_grey_or_rgb(name, channels):
    encoder = ENCODERS[name]().eval()
    with torch.no_grad():
        features = encoder(torch.rand(2, channels, 96, 96) * 2 - 1)
    assert features.shape == (2, encoder.features) and torch.isfinite(features).all()


def test_compact_encoder_does_not_see_brightness_and_contrast():
    encoder = CompactEncoder().eval()
    images = torch.rand(2, 1, 64, 64) - 0.5
    with torch.no_grad():
        assert torch.allclose(encoder(images), encoder(images * 0.8 + 0.1), atol=1e-2)


def test_grey_and_equal_rgb_are_the_same_image():
    encoder = CompactEncoder().eval()
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_resnet50_has_the_published_size_and_takes_torchvision_keys(tmp_path):
    encoder = ResNet50()
    assert sum(p.numel() for p in encoder.parameters()) == 25_557_032 - 2048 * 1000 - 1000  # without the classifier
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"} <= set(state)
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "r.pth")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "r.safetensors")
    for name in ("r.pth", "r.safetensors"):
        fresh = ResNet50()
        fresh.load_pretrained(tmp_path / name)
        assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def test_resnet50_halves_its_maps_where_the_published_one_does():
    encoder, sizes = ResNet50().eval(), []
    for layer in (encoder.conv1, encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        layer.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        encoder(torch.zeros(1, 3, 224, 224))
    assert sizes == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def test_pretrained_weights_that_do_not_fit_are_refused(tmp_path):
    encoder = ResNet50()
    state = encoder.state_dict()
    for change, message in (
        (lambda s: s.pop("layer2.0.conv1.weight"), "1 keys missing.*layer2.0.conv1.weight"),
        (lambda s: s.update({"extra": torch.zeros(1)}), "1 keys unexpected.*extra"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), "of another shape.*conv1.weight"),
    ):
        broken = dict(state)
        change(broken)
        torch.save(broken, tmp_path / "r.pth")
        with pytest.raises(ValueError, match=message):
            encoder.load_pretrained(tmp_path / "r.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk.pth"):
        encoder.load_pretrained(tmp_path / "junk.pth")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        encoder.load_pretrained(tmp_path / "nowhere.pth")


def test_pretrained_weights_by_name_are_downloaded_and_checked(tmp_path, monkeypatch):
    encoder = ResNet50()
    torch.save(encoder.state_dict(), tmp_path / "r.pth")
    digest = hashlib.sha256((tmp_path / "r.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(torch.hub, "_get_torch_home", lambda: str(tmp_path / "home"))
    for name, ending in (("right", digest), ("wrong", "00000000")):
        shutil.copy(tmp_path / "r.pth", tmp_path / f"{name}-{ending}.pth")
        monkeypatch.setitem(PRETRAINED, name, (tmp_path / f"{name}-{ending}.pth").as_uri())
    monkeypatch.setitem(PRETRAINED, "gone", (tmp_path / "gone-12345678.pth").as_uri())
    fresh = ResNet50()
    fresh.load_pretrained("right")
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(ValueError, match=r"wrong: can't get .*hash"):
        fresh.load_pretrained("wrong")
    with pytest.raises(ValueError, match="gone: can't get file:"):
        fresh.load_pretrained("gone")


def test_params_are_ringnets_vector():
    vector = torch.randn(4, 159)
    params = HeadParams.from_vector(vector)
    assert torch.equal(params.to_vector(), vector)
    assert torch.equal(params.camera, vector[:, 0:3]) and torch.equal(params.global_pose, vector[:, 3:6])
    assert torch.equal(params.jaw_pose, vector[:, 6:9]) and torch.equal(params.shape, vector[:, 9:109])
    assert torch.equal(params.expression, vector[:, 109:159])
    with pytest.raises(ValueError, match="vector"):
        HeadParams.from_vector(torch.zeros(4, 50))


def test_an_untrained_model_starts_at_the_mean_head_in_the_frame(model):
    with torch.no_grad():
        params = model(torch.rand(2, 3, 64, 64) * 2 - 1)
        landmarks = model.landmarks(params)
    assert params.to_vector().shape == (2, 159)
    extent = (landmarks.amax(1) - landmarks.amin(1)).amax(1)
    assert torch.allclose(extent, torch.full((2,), 2 * FILL), atol=0.1)
    # Upright: brows above the chin, and the subject's right, which iBUG numbers first, on the left of the image.
    assert (landmarks[:, 19, 1] < landmarks[:, 8, 1]).all() and (landmarks[:, 36, 0] < landmarks[:, 45, 0]).all()


def test_with_a_leak_every_unit_learns_from_every_image(tmp_path):
    """And a model keeps its leak; with ReLU, the paper's, units are silent for some images."""
    images = torch.randn(1, 1, 64, 64)
    for leak, silent in ((0.1, False), (0.0, True)):
        RingNet(leak=leak).save(tmp_path / "m.safetensors")
        model = RingNet.load(tmp_path / "m.safetensors")
        model(images).to_vector().square().sum().backward()
        for layer in (model.encoder.head, model.regressor.from_features, model.regressor.layers[2]):
            assert bool((layer.bias.grad == 0).any()) == silent


def test_landmarks_are_those_of_the_mesh(model):
    params = HeadParams.from_vector(model.regressor.mean + 0.1 * torch.randn(3, 159))
    posed = model.flame(params.shape, params.expression, params.global_pose, jaw_pose=params.jaw_pose)
    from ringnet_ext.geometry.camera import project

    assert torch.allclose(project(posed.landmarks, params.camera), model.landmarks(params), atol=1e-4)


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "best.safetensors")
    images = torch.rand(2, 3, 64, 64)
    for path in (tmp_path, tmp_path / "best.safetensors"):
        again = RingNet.load(path)
        with torch.no_grad():
            assert torch.equal(again(images).to_vector(), model(images).to_vector())
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
    assert (tmp_path / "best.safetensors").stat().st_size < 4.2 * sum(p.numel() for p in model.parameters())


def test_reconstruct(model):
    image = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    face = model.reconstruct(fit_square(image))
    assert face.vertices.shape == (5023, 3) and face.landmarks.shape == (68, 2) and face.faces.shape == (9976, 3)
    assert np.abs(face.landmarks - np.array([100, 150])).max() < 150 and face.image.shape == (224, 224, 3)
    # y up in the world, y down in the image; half a turn about the root joint leads from one to the other
    root = model.flame(face.params.shape).joints[0, 0].detach().numpy()
    assert np.allclose(face.vertices - root, (face.image_vertices - root) * [1, -1, -1], atol=1e-6)
    with pytest.raises(
        NotAFaceError, match="not a face as the network knows them"
    ):  # to a network that has learnt nothing
        model.reconstruct(image)


class TestCheckpoints:
    def write(self, path):
        write_checkpoint(path, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}, {"step": 7, "list": [1.5]})

    def test_round_trip(self, tmp_path):
        self.write(tmp_path / "c.safetensors")
        tensors, facts = read_checkpoint(tmp_path / "c.safetensors")
        assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3)) and tensors["b"] == 3
        assert facts == {"step": 7, "list": [1.5]}

    def test_every_flipped_byte_and_every_truncation_is_noticed(self, tmp_path):
        path = tmp_path / "c.safetensors"
        self.write(path)
        good = path.read_bytes()
        random = np.random.default_rng(0)
        for position in [*random.integers(0, len(good), 60), len(good) - 1]:
            damaged = bytearray(good)
            damaged[position] ^= 1 << random.integers(0, 8)
            path.write_bytes(damaged)
            try:
                tensors, facts = read_checkpoint(path)
            except CheckpointError:
                continue
            # What is not noticed is white space or the like: the content is the same.
            assert facts == {"step": 7, "list": [1.5]} and torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
        for length in random.integers(0, len(good), 30):
            path.write_bytes(good[:length])
            with pytest.raises(CheckpointError, match=r"c.safetensors"):
                read_checkpoint(path)

    def test_other_files_are_refused(self, tmp_path, model):
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="not a checkpoint of ringnet_ext"):
            read_checkpoint(tmp_path / "other.safetensors")
        self.write(tmp_path / "c.safetensors")
        with pytest.raises(CheckpointError, match="not of a RingNet"):
            RingNet.load(tmp_path / "c.safetensors")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            RingNet.load(tmp_path / "nowhere")

    def test_another_head_is_refused(self, tmp_path, model):
        model.save(tmp_path / "m.safetensors")
        other = replace(model.head, v_template=model.head.v_template * 1.01)
        with pytest.raises(CheckpointError, match="another head than the one given: on version 1 of the built-in one"):
            RingNet.load(tmp_path / "m.safetensors", head=other)

    def test_a_head_is_the_same_in_every_file(self, tmp_path, model):
        """In float32 or float64, in any format, and whatever else is stored with it; its last bits are others in a
        digest."""
        head = replace(model.head, v_template=model.head.v_template * 1.01)
        small = ("v_template", "shapedirs", "expressiondirs", "posedirs", "J_regressor", "lbs_weights")
        half = replace(head, **{name: getattr(head, name).astype(np.float32) for name in small})
        for name, kept in (("a.npz", head), ("b.safetensors", head), ("c.npz", half)):
            kept.save(tmp_path / name)
        arrays = dict(np.load(tmp_path / "a.npz"))
        for name in small:
            arrays[name] = arrays[name].astype(np.float32)
        np.savez_compressed(tmp_path / "d.npz", **arrays)
        heads = [FlameModel.load(path) for path in sorted(tmp_path.iterdir())]
        assert len({fingerprint(each) for each in (head, *heads)}) == 1
        assert len({each.digest() for each in (head, *heads)}) == 1
        assert not fingerprint(head).startswith("builtin")
        assert fingerprint(replace(head, landmarks=None)) == fingerprint(head) != fingerprint(model.head)
        regions = head.regions | {"face": head.regions["face"][1:]}
        weights = np.roll(head.lbs_weights, 1, axis=1)
        changed = [replace(head, landmarks=None), replace(head, regions=regions), replace(head, lbs_weights=weights)]
        assert len({each.digest() for each in (head, *changed)}) == 4

    def test_the_built_in_head_is_known_by_its_version(self, tmp_path, model):
        assert fingerprint(model.head) == "builtin-1"
        model.head.save(tmp_path / "head.npz")
        assert fingerprint(FlameModel.load(tmp_path / "head.npz")) == "builtin-1"
        assert model.checkpoint_facts()["head"] == {"path": None, "fingerprint": "builtin-1"}

    def test_a_head_is_found_from_another_folder_and_beside_the_checkpoint(self, tmp_path, monkeypatch):
        folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
        (folder / "runs" / "a").mkdir(parents=True)
        elsewhere.mkdir()
        head = replace(builtin_head(), v_template=builtin_head().v_template * 1.01)
        head.save(folder / "head.npz")
        monkeypatch.chdir(folder)
        RingNet("head.npz").save("runs/a/best.safetensors")
        monkeypatch.chdir(elsewhere)
        assert fingerprint(RingNet.load(folder / "runs" / "a").head) == fingerprint(head)
        for place in (folder / "runs" / "head.npz", folder / "runs" / "a" / "head.npz"):
            shutil.copy(folder / "head.npz", place)
        (folder / "head.npz").rename(folder / "renamed.npz")
        builtin_head().save(folder / "runs" / "a" / "head.npz")  # another of that name
        assert fingerprint(RingNet.load(folder / "runs" / "a").head) == fingerprint(head)
        (folder / "runs" / "head.npz").unlink()
        with pytest.raises(CheckpointError, match=r"another head than .*runs/a/head.npz: on one of fingerprint"):
            RingNet.load(folder / "runs" / "a")
        (folder / "runs" / "a" / "head.npz").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"its head model, .*project/head.npz, is not there any more.*--head"
        ):
            RingNet.load(folder / "runs" / "a")
        assert fingerprint(RingNet.load(folder / "runs" / "a", folder / "renamed.npz").head) == fingerprint(head)

    def test_a_checkpoint_from_before_the_built_in_head_had_versions(self, tmp_path, model):
        """It holds a digest of the last bits that the head had where it was trained."""
        head = {"path": None, "fingerprint": "0123456789abcdef"}
        facts = model.checkpoint_facts() | {"head": head}
        write_checkpoint(tmp_path / "old.safetensors", model.checkpoint_tensors(), facts)
        assert fingerprint(RingNet.load(tmp_path / "old.safetensors").head) == "builtin-1"
        other = RingNet(replace(model.head, v_template=model.head.v_template * 1.01))
        write_checkpoint(tmp_path / "other.safetensors", other.checkpoint_tensors(), facts)
        with pytest.raises(CheckpointError, match="another head"):
            RingNet.load(tmp_path / "other.safetensors")

    def test_a_head_with_other_landmarks_is_refused(self, model):
        embedding = model.head.landmarks
        more = replace(
            embedding, static_faces_idx=np.resize(embedding.static_faces_idx, 53),
            static_bary_coords=np.resize(embedding.static_bary_coords, (53, 3)),
        )  # fmt: skip
        for landmarks, count in ((None, "none"), (more, "70")):
            with pytest.raises(ValueError, match=f"68 landmarks.* has {count}; .*convert MODEL HEAD.npz --landmarks"):
                RingNet(replace(model.head, landmarks=landmarks))
