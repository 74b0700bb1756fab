"""Files as the projects of the field write them, and the heads that these projects make of them."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from heads import random_model
from smplx.lbs import lbs

from ringnet_ext.commands.pose import main as flame_command
from ringnet_ext.flame import FLAME
from ringnet_ext.flame.parameters import FlameParams, read_parameters
from ringnet_ext.geometry.rotations import matrix_from_axis_angle

T = 3  # heads in files of several


@pytest.fixture(scope="module")
def model():
    model = random_model(V=50, S=300, E=100)
    # Lids that move with the head alone and that no joint depends on: there it doesn't matter whether they are added
    # before the skinning, as ours are, or after it.
    lids = np.zeros((50, 3, 2))
    lids[:6] = np.random.default_rng(5).normal(0, 0.01, (6, 3, 2))
    weights = model.lbs_weights.copy()
    weights[:6] = [0.3, 0.7, 0, 0, 0]
    regressor = model.J_regressor.copy()
    regressor[:, :6] = 0
    return replace(model, eyeliddirs=lids, lbs_weights=weights, J_regressor=regressor)


def numbers(seed=0):
    random = np.random.default_rng(seed)
    widths = dict(shape=300, expression=100, root=3, neck=3, jaw=3, eyes=6, translation=3, eyelids=2)
    values = {name: random.normal(0, 0.3, (T, width)) for name, width in widths.items()}
    return values | {"offset": random.normal(0, 0.003, (1, 50, 3))}


def theirs(
    model, *, shape=None, expression=None, root=None, neck=None, jaw=None, eyes=None, translation=None, eyelids=None,
    offset=0.0,
):  # fmt: skip
    """What every one of these projects computes, by smplx: coefficients on the template and the person's offset, then
    skinning, then the eyelids, as SMIRK and metrical-tracker have them."""
    given = [value for value in (shape, expression, root, neck, jaw, eyes, translation, eyelids) if value is not None]
    batch = max(len(value) for value in given)

    def part(value, width):
        value = np.zeros((1, 0)) if value is None else value
        value = np.pad(value, ((0, 0), (0, width - value.shape[1])))
        return torch.tensor(np.broadcast_to(value, (batch, width)).copy())

    betas = torch.cat([part(shape, 300), part(expression, 100)], 1)
    pose = torch.cat([part(root, 3), part(neck, 3), part(jaw, 3), part(eyes, 6)], 1)
    template = torch.tensor(model.v_template + offset).expand(batch, -1, -1)
    directions = torch.tensor(np.concatenate([model.shapedirs, model.expressiondirs], axis=2))
    vertices, _ = lbs(
        betas,
        pose,
        template,
        directions,
        torch.tensor(model.posedirs).reshape(-1, 36).T,
        torch.tensor(model.J_regressor),
        torch.tensor(model.parents),
        torch.tensor(model.lbs_weights),
    )
    lids = torch.tensor(model.eyeliddirs) @ part(eyelids, 2)[:, None, :, None]
    return vertices + lids[..., 0] + part(translation, 3)[:, None]


def ours(model, params):
    layer = FLAME(model, shape_params=300, expression_params=100, dtype=torch.float64)
    return layer(*params.resized(300, 100, len(model.v_template))).vertices


def six_rows(vectors):
    """PyTorch3D's six numbers: the first two rows."""
    matrices = matrix_from_axis_angle(torch.tensor(vectors).reshape(len(vectors), -1, 3))
    return matrices[..., :2, :].reshape(len(vectors), -1).numpy()


# Each writes a file and says which of the numbers are in it.


def vhap_sequence(folder, n):
    """tracked_flame_params_30.npz"""
    np.savez(
        folder / "tracked_flame_params_30.npz",
        n_processed_frames=T,
        timestep_id=np.array(["a", "b", "c"]),
        shape=n["shape"][0],
        expr=n["expression"],
        rotation=n["root"],
        neck_pose=n["neck"],
        jaw_pose=n["jaw"],
        eyes_pose=n["eyes"],
        translation=n["translation"],
        static_offset=n["offset"],
        tex=np.zeros(100),
        tex_extra=np.zeros((3, 8, 8)),
        lights=np.zeros((9, 3)),
        focal_length=np.array([1.5]),
    )
    return folder / "tracked_flame_params_30.npz", n | {"shape": n["shape"][:1], "eyelids": None}


def vhap_frame(folder, n):
    """flame_param/00000.npz, in float32, of a model with teeth"""
    one = {name: value[:1].astype(np.float32) for name, value in n.items()}
    offset = np.pad(one["offset"], ((0, 0), (0, 12), (0, 0)), constant_values=0.1)
    np.savez(
        folder / "00000.npz", translation=one["translation"], rotation=one["root"], neck_pose=one["neck"],
        jaw_pose=one["jaw"], eyes_pose=one["eyes"], shape=one["shape"][0], expr=one["expression"], static_offset=offset,
    )  # fmt: skip
    return folder / "00000.npz", {name: value.astype(np.float64) for name, value in one.items()} | {"eyelids": None}


def gaussian_avatars(folder, n):
    """point_cloud/iteration_N/flame_param.npz"""
    np.savez(
        folder / "flame_param.npz", shape=n["shape"][0], expr=n["expression"], rotation=n["root"], neck_pose=n["neck"],
        jaw_pose=n["jaw"], eyes_pose=n["eyes"], translation=n["translation"], static_offset=n["offset"][0],
        dynamic_offset=np.zeros((T, 50, 3)),
    )  # fmt: skip
    return folder / "flame_param.npz", n | {"shape": n["shape"][:1], "eyelids": None}


def mica(folder, n):
    """identity.npy"""
    np.save(folder / "identity", n["shape"][0])
    return folder / "identity.npy", {"shape": n["shape"][:1]}


def mica_folder(folder, n):
    np.save(folder / "identity", n["shape"][0])
    np.save(folder / "kpt7", np.zeros((7, 3)))
    np.save(folder / "kpt68", np.zeros((1, 68, 3)))
    (folder / "mesh.obj").write_text("")
    return folder, {"shape": n["shape"][:1]}


def emoca_folder(folder, n):
    """shape.npy and so on beside the pictures of one image"""
    parts = {"shape": n["shape"][0, :100], "exp": n["expression"][0, :50], "pose": np.hstack([n["root"], n["jaw"]])[0]}
    for name, value in (parts | {"tex": np.zeros(50), "detail": np.zeros(128)}).items():
        np.save(folder / f"{name}.npy", value)
    (folder / "geometry_coarse.png").write_bytes(b"")
    names = ("shape", "expression", "root", "jaw")
    return folder, {name: n[name][:1, :100] for name in names} | {"expression": n["expression"][:1, :50]}


def emoca_values(folder, n):
    np.savez(
        folder / "vals.npz", shapecode=n["shape"][:, :100], expcode=n["expression"][:, :50],
        posecode=np.hstack([n["root"], n["jaw"]]), cam=np.ones((T, 3)), texcode=np.zeros((T, 50)),
        lightcode=np.zeros((T, 9, 3)), detailcode=np.zeros((T, 128)), images=np.zeros((T, 3, 8, 8)),
    )  # fmt: skip
    return folder / "vals.npz", {
        "shape": n["shape"][:, :100], "expression": n["expression"][:, :50], "root": n["root"], "jaw": n["jaw"]
    }  # fmt: skip


def smirk(folder, n):
    """What its encoder returns. Its FLAME adds the eyelids without turning them with the head, so the head is upright
    here."""
    np.savez(
        folder / "smirk.npz", shape_params=n["shape"], expression_params=n["expression"][:, :50], jaw_params=n["jaw"],
        pose_params=np.zeros((T, 3)), eyelid_params=n["eyelids"], cam=np.ones((T, 3)),
    )  # fmt: skip
    return folder / "smirk.npz", {
        "shape": n["shape"], "expression": n["expression"][:, :50], "jaw": n["jaw"], "eyelids": n["eyelids"]
    }  # fmt: skip


def smirk_folder(folder, n):
    for name, value in dict(shape_params=n["shape"], expression_params=n["expression"], pose_params=n["root"],
                            jaw_params=n["jaw"], cam=np.ones((T, 3))).items():  # fmt: skip
        np.save(folder / f"{name}.npy", value)
    return folder, {name: n[name] for name in ("shape", "expression", "root", "jaw")}


def metrical_tracker(folder, n):
    """checkpoint/00000.frame"""
    flame = {"exp": n["expression"][:1], "shape": n["shape"][:1], "tex": np.zeros((1, 150)), "sh": np.zeros((1, 9, 3)),
             "eyes": six_rows(n["eyes"][:1]), "eyelids": n["eyelids"][:1], "jaw": six_rows(n["jaw"][:1])}  # fmt: skip
    frame = {
        "flame": flame,
        "camera": {"R": np.zeros((1, 6)), "t": np.zeros((1, 3)), "fl": np.ones((1, 1)), "pp": np.zeros((1, 2))},
        "opencv": {"R": np.eye(3)[None], "t": np.zeros((1, 3)), "K": np.eye(3)[None]},
        "img_size": np.array([512, 512]),
        "frame_id": "00000",
        "global_step": 20,
    }
    torch.save(frame, folder / "00000.frame")
    return folder / "00000.frame", {name: n[name][:1] for name in ("shape", "expression", "eyes", "eyelids", "jaw")}


def smplx(folder, n):
    np.savez(
        folder / "smplx.npz",
        betas=n["shape"],
        expression=n["expression"],
        global_orient=n["root"],
        neck_pose=n["neck"],
        jaw_pose=n["jaw"],
        leye_pose=n["eyes"][:, :3],
        reye_pose=n["eyes"][:, 3:],
        transl=n["translation"],
    )
    return folder / "smplx.npz", n | {"eyelids": None, "offset": 0.0}


def smplx_one_vector(folder, n):
    """400 betas, as the model file has its directions, and the pose of all joints"""
    np.savez(
        folder / "smplx.npz", betas=np.hstack([n["shape"], n["expression"]]), transl=n["translation"],
        full_pose=np.hstack([n["root"], n["neck"], n["jaw"], n["eyes"]]),
    )  # fmt: skip
    return folder / "smplx.npz", n | {"eyelids": None, "offset": 0.0}


def flame_pytorch(folder, n):
    content = dict(
        shape_params=n["shape"][:, :100],
        expression_params=n["expression"][:, :50],
        neck_pose=n["neck"],
        eye_pose=n["eyes"],
        pose_params=np.hstack([n["root"], n["jaw"]]),
        transl=n["translation"],
    )
    np.save(folder / "flame.npy", content, allow_pickle=True)
    return folder / "flame.npy", n | {
        "shape": n["shape"][:, :100], "expression": n["expression"][:, :50], "eyelids": None, "offset": 0.0
    }  # fmt: skip


def photometric_optimization(folder, n):
    content = dict(
        shape=n["shape"][:, :100],
        exp=n["expression"][:, :50],
        pose=np.hstack([n["root"], n["jaw"]]),
        cam=np.ones((T, 3)),
        verts=np.zeros((T, 50, 3)),
        albedos=np.zeros((T, 3, 4, 4)),
        tex=np.zeros((T, 50)),
        lit=np.zeros((T, 9, 3)),
    )
    np.save(folder / "fit.npy", content, allow_pickle=True)
    return folder / "fit.npy", {
        "shape": n["shape"][:, :100], "expression": n["expression"][:, :50], "root": n["root"], "jaw": n["jaw"]
    }  # fmt: skip


def deca(folder, n):
    """The code dictionary, saved"""
    content = dict(
        shape=n["shape"][:, :100],
        exp=n["expression"][:, :50],
        pose=np.hstack([n["root"], n["jaw"]]),
        cam=np.ones((T, 3)),
        tex=np.zeros((T, 50)),
        light=np.zeros((T, 9, 3)),
        detail=np.zeros((T, 128)),
        images=np.zeros((T, 3, 8, 8)),
    )
    scipy.io.savemat(folder / "codes.mat", content)
    return folder / "codes.mat", {
        "shape": n["shape"][:, :100], "expression": n["expression"][:, :50], "root": n["root"], "jaw": n["jaw"]
    }  # fmt: skip


LAYOUTS = (
    vhap_sequence, vhap_frame, gaussian_avatars, mica, mica_folder, emoca_folder, emoca_values, smirk, smirk_folder,
    metrical_tracker, smplx, smplx_one_vector, flame_pytorch, photometric_optimization, deca,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_theirs_is_their_head(model, layout, tmp_path):
    path, content = layout(tmp_path, numbers())
    params = read_parameters(path, torch.float64)
    assert torch.allclose(ours(model, params), theirs(model, **content), atol=1e-6)
    # And through a file of ours.
    params.save(tmp_path / "ours.npz")
    again = read_parameters(tmp_path / "ours.npz", torch.float64)
    assert torch.allclose(ours(model, again), theirs(model, **content), atol=1e-6)


def test_a_tracker_s_other_names_lose_nothing(tmp_path):
    """The report: shape, expr (4, 100), rotation, jaw_pose, eyes_pose gave no expression and no pose."""
    content = dict(
        shape=np.ones((1, 300)),
        expr=np.ones((4, 100)),
        rotation=np.ones((4, 3)),
        jaw_pose=np.full((4, 3), 2.0),
        eyes_pose=np.full((4, 6), 3.0),
    )
    np.savez(tmp_path / "t.npz", **content)
    params = read_parameters(tmp_path / "t.npz")
    assert params.expression.shape == (4, 100) and (params.expression == 1).all() and (params.global_pose == 1).all()
    assert (params.jaw_pose == 2).all() and (params.eye_pose == 3).all() and params.shape.shape == (4, 300)


@pytest.mark.parametrize(
    "content, message",
    [
        (dict(shape=np.ones(5), wrinkles=np.ones(3)), "wrinkles: not among the names that are known"),
        (dict(exp=np.ones(5), shape=np.ones(5), pose=np.ones(6), hand_pose=np.ones(3)), "hand_pose: not among"),
        (dict(betas=np.ones(5), shape=np.ones(5)), "both say what shape is"),
        (dict(pose=np.ones(6), global_orient=np.ones(3), exp=np.ones(3)), "both say what global_pose is"),
        (dict(pose=np.ones(6), shape=np.ones(5)), "pose: expected exp beside it.*or expression"),
        (dict(pose=np.ones(7), exp=np.ones(5)), r"pose: expected shape \(B, 6\), .* got \(1, 7\)"),
        (dict(shape=np.ones(5), rotation=np.ones((1, 3, 3))), r"rotation: expected numbers of shape \(n,\) or"),
        (dict(shape=np.ones(5), dynamic_offset=np.ones((1, 50, 3))), "dynamic_offset: expected zeros"),
        (dict(shape=np.ones(5), static_offset=np.ones((50, 2))), r"static_offset: expected shape \(B, V, 3\)"),
        (dict(shape=np.ones(5), eyelids=np.ones((1, 3))), r"eyelids: expected shape \(B, 2\), got \(1, 3\)"),
        (dict(shape=np.array([1, np.nan])), "shape: holds 1 values that are NaN"),
        (dict(verts=np.ones((1, 50, 3)), trans_verts=np.ones(3), albedo=np.ones(3)), "no parameters: .*DECA's demo"),
        (dict(leye_pose=np.ones(3), reye_pose=np.ones(6)), r"leye_pose and reye_pose: expected shape \(B, 3\)"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(content, message, tmp_path):
    np.savez(tmp_path / "p.npz", **content)
    with pytest.raises(ValueError, match=rf"p.npz: .*{message}"):
        read_parameters(tmp_path / "p.npz")


def test_arrays_without_names(tmp_path):
    np.save(tmp_path / "exp.npy", np.ones(50))
    with pytest.raises(ValueError, match=r"exp.npy: expected shape \(B, 415\) .*, \(B, 300\) .* got \(1, 50\)"):
        read_parameters(tmp_path / "exp.npy")
    np.save(tmp_path / "vector.npy", np.concatenate([[5, 0, 0], [np.pi, 0, 0], [0.1, 0, 0], np.ones(100), np.ones(50)]))
    params = read_parameters(tmp_path / "vector.npy", torch.float64)  # RingNet's 159 numbers of an upright head
    assert (
        params.global_pose.abs().max() < 1e-12 and params.jaw_pose[0, 0] == 0.1 and params.expression.shape == (1, 50)
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: a folder without .npy files"):
        read_parameters(tmp_path / "empty")


def test_frames_are_read_without_running_them(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"flame": {"shape": Evil()}}, tmp_path / "evil.frame")
    with pytest.raises(ValueError, match=r"refused: it asks for 'builtins.print'|__builtin__.print"):
        read_parameters(tmp_path / "evil.frame")
    values = {"shape": torch.arange(12.0).view(3, 4).T[1:], "expr": torch.ones(3, 2, dtype=torch.float64)}
    torch.save(values, tmp_path / "tensors.frame")  # with tensors in place of arrays, of any layout
    params = read_parameters(tmp_path / "tensors.frame")
    assert torch.equal(params.shape, values["shape"]) and torch.equal(params.expression, torch.ones(3, 2))
    data = (tmp_path / "tensors.frame").read_bytes()
    for length in range(0, len(data), 97):
        (tmp_path / "cut.frame").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut.frame"):
            read_parameters(tmp_path / "cut.frame")


def test_what_torch_saves_of_a_long_video_and_of_an_optimisation(tmp_path):
    frames = torch.randn(20_000, 60, generator=torch.Generator().manual_seed(0))
    shape, expression = frames.split([50, 10], dim=1)  # two views of one storage, which is saved once
    torch.save(FlameParams.make(shape=shape[:1], expression=expression)._asdict(), tmp_path / "person.pt")
    assert torch.equal(read_parameters(tmp_path / "person.pt").shape, shape[:1].expand(20_000, -1))
    torch.save(FlameParams.make(shape=shape, expression=expression)._asdict(), tmp_path / "video.pt")
    read = read_parameters(tmp_path / "video.pt")
    assert torch.equal(read.shape, shape) and torch.equal(read.expression, expression) and not read.jaw_pose.any()
    module = torch.nn.ParameterDict({"shape": shape[:2].clone(), "exp": expression[:2].clone()})
    rounded = shape[:2].bfloat16()  # as an encoder under autocast gives
    torch.save({"shape": rounded}, tmp_path / "rounded.pt")
    assert torch.equal(read_parameters(tmp_path / "rounded.pt").shape, rounded.float())
    for saved in (dict(module), module.state_dict()):
        torch.save(saved, tmp_path / "parameters.pt")
        read = read_parameters(tmp_path / "parameters.pt")
        assert torch.equal(read.shape, shape[:2]) and torch.equal(read.expression, expression[:2])


def test_expanded_tensors_do_not_multiply(tmp_path):
    torch.save({"shape": torch.zeros(1).expand(2**26, 300)}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb.pt: .*again and again"):
        read_parameters(tmp_path / "bomb.pt")
    one = torch.zeros(2**20)
    torch.save({str(i): one.view(-1)[:] for i in range(80)}, tmp_path / "bomb.pt")  # 4 MiB, 80 times
    with pytest.raises(ValueError, match=r"bomb.pt: .*again and again"):
        read_parameters(tmp_path / "bomb.pt")


def test_deca_codes_with_more_than_deca_has():
    codes = dict(shape=torch.ones(1, 100), exp=torch.ones(1, 50), pose=torch.zeros(1, 6), cam=torch.ones(1, 3))
    known = dict(
        tex=torch.ones(1, 50), light=torch.ones(1, 9, 3), images=torch.ones(1, 3, 8, 8), detail=torch.ones(1, 128)
    )
    assert FlameParams.from_deca(codes | known)[0].shape.shape == (1, 100)
    with pytest.raises(ValueError, match="expected shape, exp, pose and cam, got neck_pose too"):
        FlameParams.from_deca(codes | {"neck_pose": torch.ones(1, 3)})


def test_what_others_cannot_hold_is_refused():
    params = FlameParams.make(shape=torch.zeros(1, 5), static_offset=torch.ones(1, 4, 3))
    for convert in (params.to_full, lambda: params.to_deca(torch.ones(1, 3)), lambda: params.to_ringnet(None, None)):
        with pytest.raises(ValueError, match=r"static_offset: .* has no such parameters"):
            convert()
    with pytest.raises(ValueError, match="eyelids"):
        FlameParams.make(shape=torch.zeros(1, 5), eyelids=torch.ones(1, 2)).to_full()
    of_mica, camera = FlameParams.make(shape=torch.ones(1, 300)), torch.ones(1, 3)
    for convert in (lambda p: p.to_deca(camera)["shape"], lambda p: p.to_ringnet(camera, camera).shape):
        with pytest.raises(
            ValueError, match=r"shape: .* has 100 coefficients, expected zeros after them; resized\(100"
        ):
            convert(of_mica)
        assert torch.equal(convert(of_mica.resized(100, 50)), torch.ones(1, 100))
    assert of_mica.to_full()[:, :300].all()


def test_vhap_has_one_shape_for_all_frames(tmp_path):
    random = torch.Generator().manual_seed(0)
    shape, frames = torch.randn(1, 20, generator=random), torch.randn(3, 10, generator=random)
    params = FlameParams.make(shape=shape, expression=frames, jaw_pose=frames[:, :3], static_offset=torch.ones(1, 4, 3))
    np.savez(tmp_path / "flame_param.npz", **params.to_vhap(6))
    for value, want in zip(read_parameters(tmp_path / "flame_param.npz"), params.resized(300, 100, 6), strict=True):
        assert torch.equal(value, want) or (not value.any() and not want.any())
    with pytest.raises(ValueError, match="shape: VHAP has one for all frames of a person, expected the same in all"):
        FlameParams.make(shape=frames).to_vhap(6)
    with pytest.raises(ValueError, match="static_offset: VHAP has one for all frames"):
        params._replace(static_offset=torch.randn(3, 4, 3, generator=random)).to_vhap(6)


def test_the_command_takes_a_tracked_head(model, tmp_path, capsys):
    content = numbers()
    path, content = vhap_frame(tmp_path, content)
    model.save(tmp_path / "model.npz")
    arguments = ["--model", str(tmp_path / "model.npz"), "--out", str(tmp_path / "a.npz")]
    assert flame_command([*arguments, "--parameters", str(path)]) == 0
    assert "static_offset has 62 vertices and the model 50" in capsys.readouterr().err
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.allclose(arrays["vertices"], theirs(model, **content).numpy(), atol=1e-6)
    path, content = metrical_tracker(tmp_path, numbers())
    assert flame_command([*arguments, "--parameters", str(path)]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.allclose(arrays["vertices"], theirs(model, **content).numpy(), atol=1e-6)
    replace(model, eyeliddirs=None).save(tmp_path / "model.npz")
    assert flame_command([*arguments, "--parameters", str(path)]) == 1
    assert (
        "eyelids: the model has no directions of them; give their files with --eyelid-files" in capsys.readouterr().err
    )
    for i, name in enumerate(("l", "r")):
        np.save(tmp_path / f"{name}_eyelid.npy", model.eyeliddirs[..., i])
    lids = ["--eyelid-files", str(tmp_path / "l_eyelid.npy"), str(tmp_path / "r_eyelid.npy")]
    assert flame_command([*arguments, "--parameters", str(path), *lids]) == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.allclose(arrays["vertices"], theirs(model, **content).numpy(), atol=1e-6)
