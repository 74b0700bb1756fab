"""What a user does with a head, on a GPU: the same as without one.

The operators' own tests run on both devices in tests/ops. Convolutions may multiply in TF32 on a GPU, so what a network
says is compared to a thousandth.
"""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import REQUIRE_CUDA, cuda_works

from ringnet_ext import FLAME, RingNet, builtin_head
from ringnet_ext.commands.main import main
from ringnet_ext.data.synthetic import SyntheticFaces
from ringnet_ext.files.images import write_image
from ringnet_ext.fitting import fit, fit_mesh
from ringnet_ext.geometry.camera import UPRIGHT, project
from ringnet_ext.inference.finders import whole
from ringnet_ext.inference.pipeline import pictures_from, reconstruct_all
from ringnet_ext.training.settings import Execution, TrainingSettings
from ringnet_ext.training.trainer import Trainer


@pytest.fixture(autouse=True)
def cuda():
    if not cuda_works():
        (pytest.fail if REQUIRE_CUDA else pytest.skip)("needs a CUDA device and a build with RINGNET_CUDA=ON")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    faces = SyntheticFaces(identities=8, images_per_identity=4, size=64)
    return faces.load(cache=tmp_path_factory.mktemp("cache"))


def landmarks(people: int, images: int, noise: float = 0.003) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 68, 2) of random people, and whose they are."""
    g, flame = torch.Generator().manual_seed(0), FLAME()
    person = torch.arange(people).repeat_interleave(images)
    shape = torch.randn(people, flame.shape_params, generator=g)[person]
    pose = torch.tensor(UPRIGHT) + 0.3 * torch.randn(len(person), 3, generator=g) * torch.tensor([0.3, 1.0, 0.3])
    points = flame.landmarks(shape, global_pose=pose)
    seen = project(points, torch.tensor([[7.0, 0.0, 0.03]]).expand(len(person), -1))
    return seen + noise * torch.randn(seen.shape, generator=g), person


@pytest.mark.parametrize("options", [{}, {"camera": "perspective", "robust": "huber"}, {"video": True}], ids=str)
def test_fitting_finds_the_same_heads(options):
    seen, person = landmarks(6, 4)
    found = [fit(FLAME().to(d), seen.to(d), person=person, sigma=0.003, **options) for d in ("cpu", "cuda")]
    assert found[1].params.shape.is_cuda and not found[1].failed
    objectives = [f.objective.cpu() for f in found]
    same = (objectives[0] - objectives[1]).abs() < 1e-3 * objectives[0]
    assert same.float().mean() > 0.8, objectives  # a head whose contour has two optima may end in the other
    meshes = [FLAME()(f.shape.cpu()).vertices[same] for f in found]
    assert (meshes[0] - meshes[1]).norm(dim=-1).mean() < 2e-4  # metres


def test_meshes_are_fitted():
    flame = FLAME().to("cuda")
    shape = torch.randn(4, 100, device="cuda")
    vertices = flame(shape, jaw_pose=torch.full((4, 3), 0.1, device="cuda")).vertices
    found = fit_mesh(flame, vertices)
    assert (flame(found.shape.float()).vertices - flame(shape).vertices).norm(dim=-1).mean() < 1e-4


@pytest.mark.parametrize("encoder", ["compact", "resnet50"])
def test_a_network_says_the_same(encoder):
    torch.manual_seed(0)
    model = RingNet(encoder=encoder).eval()
    for value in model.regressor.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.02)  # answers differ from image to image
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8))

    def seen():
        outcomes = reconstruct_all(model, pictures_from(pictures), whole, trust=False)
        return [face.reconstruction for outcome in outcomes for face in outcome.faces]

    expected = seen()
    model.to("cuda")
    for one, other in zip(seen(), expected, strict=True):
        assert np.abs(one.vertices - other.vertices).max() < 1e-3  # metres
        assert np.abs(one.landmarks - other.landmarks).max() < 0.5  # pixels


SETTINGS = TrainingSettings(
    steps=6, rings_per_step=4, ring_size=4, shares=2, learning_rate=1e-4, checkpoint_steps=3, warmup_steps=2
)


@pytest.mark.parametrize("precision, compile", [("float32", False), ("bfloat16", False), ("float32", True)])
def test_training_takes_the_same_steps(faces, tmp_path, precision, compile):
    def trained(device, precision, compile=False):
        torch.manual_seed(0)
        model, settings = RingNet(readout=True).to(device), dataclasses.replace(SETTINGS, precision=precision)
        run = Trainer(model, faces, faces, settings, tmp_path / device, Execution(compile=compile))
        assert run.train()
        return [row["loss"] for row in run.history]

    expected = trained("cpu", "float32")
    assert trained("cuda", precision, compile) == pytest.approx(expected, rel=0.05 if precision == "bfloat16" else 0.02)


def test_commands(tmp_path, faces, capsys):
    for i in range(3):
        write_image(tmp_path / f"{i}.png", faces.images[i])
        np.save(tmp_path / f"{i}.npy", (faces.landmarks[i] + 1) * 32 - 0.5)
    model = RingNet()
    model.limit = 0.9
    model.save(tmp_path / "model.safetensors")
    images = [str(tmp_path / f"{i}.png") for i in range(3)]
    to = ["--device", "cuda", "--landmarks", str(tmp_path)]
    assert (
        main(["infer", *images, *to, "--checkpoint", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "i")])
        == 0
    )
    assert main(["fit", *images, *to, "--out", str(tmp_path / "f")]) == 0
    for out in ("i", "f"):
        assert len(list((tmp_path / out / "mesh").iterdir())) == 3
    capsys.readouterr()
    assert main(["doctor"]) == 0
    assert "everything works" in capsys.readouterr().out


def test_a_head_of_one_s_own_moves_to_the_gpu():
    head = builtin_head()
    flame = FLAME(head)
    pose = torch.tensor([[0.1, 0.4, 0.0]])
    expected = flame(torch.ones(1, 100), global_pose=pose)
    moved = flame.to("cuda")(torch.ones(1, 100, device="cuda"), global_pose=pose.cuda())
    assert (moved.vertices.cpu() - expected.vertices).norm(dim=-1).max() < 1e-6
    assert (moved.landmarks.cpu() - expected.landmarks).norm(dim=-1).max() < 1e-6
