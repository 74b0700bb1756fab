import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import scipy.sparse
import torch
from flame_files import chumpy_modules, deca_content, fields, flame_2017_pickle, python2_pickle
from heads import random_embedding, random_model

from ringnet_ext.files.arrays import read_file
from ringnet_ext.files.pickles import numbers, read_pickle
from ringnet_ext.flame import FlameModel, LandmarkEmbedding
from ringnet_ext.flame.formats import MODEL_ARRAYS
from ringnet_ext.flame.sources import load_head


@pytest.fixture(scope="module")
def model():
    """400 directions, of which 300 are shapes, as FLAME has them."""
    return random_model(V=23, F=30, S=300, E=100)


def same_model(ours, expected, landmarks=False):
    for name in MODEL_ARRAYS:
        assert np.array_equal(getattr(ours, name), getattr(expected, name)), name
    if landmarks:
        assert ours.landmarks.arrays().keys() == expected.landmarks.arrays().keys()
        for name, array in ours.landmarks.arrays().items():
            assert np.array_equal(array, getattr(expected.landmarks, name)), name
        assert ours.regions.keys() == expected.regions.keys()
        assert all(np.array_equal(ours.regions[name], expected.regions[name]) for name in ours.regions)
    return True


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_early_flame_pickle(model, tmp_path, protocol):
    data = flame_2017_pickle(model, protocol)
    for name in (b"chumpy.ch", b"chumpy.reordering", b"scipy.sparse.csc\n", b"numpy.core.multiarray"):
        assert name in data
    assert "chumpy" not in sys.modules
    (tmp_path / "generic_model.pkl").write_bytes(data)
    assert same_model(FlameModel.load(tmp_path / "generic_model.pkl"), model)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("regressor", [scipy.sparse.csc_matrix, scipy.sparse.csr_matrix, np.array])
def test_late_flame_pickle(model, tmp_path, protocol, regressor):
    content = fields(model, np.int64, regressor)
    (tmp_path / "flame2023.pkl").write_bytes(pickle.dumps(content, protocol))
    assert same_model(FlameModel.load(tmp_path / "flame2023.pkl"), model)


def test_pickle_of_another_byte_order(model, tmp_path):
    content = {
        name: value.astype(value.dtype.newbyteorder(">")) if isinstance(value, np.ndarray) else value
        for name, value in fields(model).items()
    }
    (tmp_path / "flame.pkl").write_bytes(pickle.dumps(content))
    assert same_model(FlameModel.load(tmp_path / "flame.pkl"), model)


def test_npz_of_the_smpl_family(tmp_path):
    body = random_model(J=24, S=10, E=0, landmarks=False)
    np.savez(tmp_path / "smpl.npz", **fields(body, regressor=np.array))
    assert same_model(FlameModel.load(tmp_path / "smpl.npz"), body)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_own_files_round_trip(model, tmp_path, suffix):
    path = tmp_path / f"head{suffix}"
    model.save(path)
    assert same_model(FlameModel.load(path), model, landmarks=True)
    random_model(seed=4, landmarks=False).save(path)  # over the first
    assert FlameModel.load(path).landmarks is None
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    model.save(tmp_path / "head.npz")
    monkeypatch.setattr(np, "savez", lambda file, **arrays: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        random_model(seed=1).save(tmp_path / "head.npz")
    assert os.listdir(tmp_path) == ["head.npz"] and same_model(FlameModel.load(tmp_path / "head.npz"), model)


def test_landmarks_and_regions_beside_the_model(model, tmp_path):
    (tmp_path / "flame.pkl").write_bytes(pickle.dumps(fields(model)))
    (tmp_path / "FLAME_masks.pkl").write_bytes(python2_pickle(model.regions, 2))
    model.landmarks.save(tmp_path / "landmarks.npz")
    paths = dict(landmarks=tmp_path / "landmarks.npz", regions=tmp_path / "FLAME_masks.pkl")
    assert same_model(FlameModel.load(tmp_path / "flame.pkl", **paths), model, landmarks=True)
    for landmarks in (tmp_path / "landmarks.npz", [tmp_path / "landmarks.npz"], model.landmarks):
        assert same_model(load_head(tmp_path / "flame.pkl", landmarks, paths["regions"]), model, landmarks=True)
    with pytest.raises(ValueError, match=r"eyelids: expected two paths, of the left and of the right one, got 'lids"):
        FlameModel.load(tmp_path / "flame.pkl", eyelids="lids.npy")
    with pytest.raises(ValueError, match=r"head.ply: expected a head model file, got a mesh"):
        FlameModel.load(tmp_path / "head.ply")


def test_reading_needs_neither_torch_nor_scipy_nor_chumpy(model, tmp_path):
    (tmp_path / "flame.pkl").write_bytes(flame_2017_pickle(model))
    program = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'chumpy'): sys.modules[name] = None\n"
        "from types import ModuleType\n"
        "sys.modules['ringnet_ext'] = package = ModuleType('ringnet_ext')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "from ringnet_ext.flame import FlameModel\n"
        "print(FlameModel.load(sys.argv[2]).shapedirs.shape)\n"
    )
    import ringnet_ext

    package = os.path.dirname(ringnet_ext.__file__)
    result = subprocess.run(
        [sys.executable, "-c", program, package, tmp_path / "flame.pkl"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.strip() == "(23, 3, 300)", result.stderr


# What is refused, and why


def broken(model, **changes):
    return {name: value for name, value in (fields(model, np.int64) | changes).items() if value is not None}


def table(*parents):
    return np.array([parents, range(len(parents))])


def with_nan(array):
    array = array.copy()
    array.flat[array.size // 2] = np.nan
    return array


@pytest.mark.parametrize(
    "changes, message",
    [
        (lambda m: dict(weights=None), "it lacks weights; it holds v_template, shapedirs"),
        (lambda m: dict(shapedirs=np.zeros((22, 3, 400))), r"shapedirs: .* \(23, 3, S\), got \(22, 3, 300\)"),
        (lambda m: dict(posedirs=m.posedirs[..., :27]), r"posedirs: expected shape \(23, 3, 36\), got \(23, 3, 27\)"),
        (lambda m: dict(v_template=m.v_template.ravel()), r"v_template: expected shape \(V, 3\), got \(69,\)"),
        (lambda m: dict(v_template=np.zeros((0, 3))), "expected"),
        (lambda m: dict(v_template=with_nan(m.v_template)), "v_template: holds 1 values that are NaN or infinite"),
        (lambda m: dict(weights=with_nan(m.lbs_weights)), "lbs_weights: holds 1 values that are NaN"),
        (lambda m: dict(v_template=m.v_template.astype("U8")), "v_template: expected real numbers, got dtype <U8"),
        (lambda m: dict(posedirs="lots"), "posedirs: expected numbers, got str"),
        (lambda m: dict(weights=scipy.sparse.csc_matrix(m.lbs_weights)), "lbs_weights: .* got a sparse matrix"),
        (lambda m: dict(J_regressor=scipy.sparse.csc_matrix((5, 24))), r"J_regressor: .* got \(5, 24\) and \(23, 5\)"),
        (lambda m: dict(J_regressor=m.J_regressor[:4]), r"J_regressor: expected shape \(5, 23\), got \(4, 23\)"),
        (lambda m: dict(f=m.faces + 10), "faces: holds 3[0-9], but there are 23 vertices"),
        (lambda m: dict(f=-m.faces - 1), "faces: holds -23, but there are 23 vertices"),
        (lambda m: dict(f=m.faces + 0.5), "faces: expected integers, got dtype float64"),
        (lambda m: dict(kintree_table=table(-1, 0, 1, 1)), r"posedirs: expected shape \(23, 3, 27\), got"),
        (lambda m: dict(kintree_table=table(-1, 0, 1, 3, 1)), "parent of joint 3 among 0 ... 2, got 3"),
        (lambda m: dict(kintree_table=table(-1, 0, 1, -1, 1)), "parent of joint 3 among 0 ... 2, got -1"),
        (lambda m: dict(kintree_table=table(0, 0, 1, 1, 1)), "for joint 0, got 0"),
        (lambda m: dict(kintree_table=table(-1, 0, 1, 1, 1)[::-1]), "expected the joints 0 ... 4 in its second row"),
        (lambda m: dict(kintree_table=np.zeros((2, 0), int)), r"kintree_table: expected integers of shape \(2, J\)"),
        (lambda m: dict(kintree_table=np.zeros((3, 5))), "kintree_table: expected integers"),
    ],
)
def test_wrong_content_is_refused_with_the_reason(model, tmp_path, changes, message):
    path = tmp_path / "flame.pkl"
    path.write_bytes(pickle.dumps(broken(model, **changes(model))))
    with pytest.raises(ValueError, match=rf"flame.pkl: not a head model: .*{message}"):
        FlameModel.load(path)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the file is empty"),
        (pickle.dumps([1, 2]), "expected a dictionary with the arrays of a head model, got list"),
        (b"hello, world\n", "cannot be read as a pickle"),
        (b"PK\x03\x04", "BadZipFile"),
        (b"\x93NUMPY\x09\x00", "version"),
        (struct.pack("<Q", 100) + b"{}", "safetensors|SafetensorError|header"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=f"file: .*{message}"):
        FlameModel.load(tmp_path / "file")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        FlameModel.load(tmp_path / "none.pkl")


# Nothing that a file asks for is run. Every payload makes a directory when Python's own pickle reads it.


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def payload_system(marker):
    return pickle.dumps(Evil(os.system, f"mkdir {marker}"), 0)


def payload_eval(marker):
    return pickle.dumps(Evil(eval, f"__import__('os').mkdir({marker!r})"), 4)


def payload_exec_python2(marker):
    return pickle.dumps(Evil(exec, f"import os; os.mkdir({marker!r})"), 2)


def payload_instance_opcode(marker):
    return b"(S" + repr(marker).encode() + b"\nios\nmkdir\n."


def payload_object_opcode(marker):
    return b"(cos\nmkdir\nS" + repr(marker).encode() + b"\no."


def payload_through_numpy_object_array(marker):
    array = np.empty(2, dtype=object)
    array[1] = Evil(os.mkdir, marker)
    return pickle.dumps({"v_template": array})


def payload_through_numpy_function(marker):
    name = f"import os; os.mkdir({marker!r})"
    return b"cnumpy.testing._private.utils\nrunstring\n(S" + repr(name).encode() + b"\n}tR."


def payload_through_numpy_attribute(marker):
    name = b"\x8c\x15numpy.lib._npyio_impl\x8c\x08os.mkdir\x93"
    return b"\x80\x04" + name + b"\x8c" + bytes([len(marker)]) + marker.encode() + b"\x85R."


def payload_through_scipy_state(marker):
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    matrix.data = Evil(os.mkdir, marker)
    return pickle.dumps({"J_regressor": matrix}, 2)


def payload_through_chumpy_state(marker):
    with chumpy_modules() as (ch, _):
        value = ch.Ch()
        value.x = Evil(os.mkdir, marker)
        return pickle.dumps({"v_template": value}, 2)


def payload_through_build_of_an_array(marker):
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    evil = payload_system(marker)[:-1]
    dtype = b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
    return array + b"(I1\n(I1\nt" + dtype + b"I00\n(l" + evil + b"atb."


def payload_through_torch_storage(marker):
    inner = payload_system(marker)
    return pickle.dumps(Evil(torch.storage._load_from_bytes, inner), 2)


def payload_in_a_key_nobody_reads(marker):
    return pickle.dumps(fields(random_model()) | {"author": Evil(os.mkdir, marker)}, 2)


PAYLOADS = [value for name, value in globals().items() if name.startswith("payload_")]


def as_pickle(payload):
    return payload


def as_npy(payload):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    return header.getvalue() + payload


def as_npz(payload):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("v_template.npy", as_npy(payload))
    return file.getvalue()


@pytest.mark.parametrize("wrap", [as_pickle, as_npy, as_npz])
@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__.removeprefix("payload_"))
def test_no_file_runs_anything(tmp_path, payload, wrap):
    marker = tmp_path / "ran"
    data = payload(str(marker))
    try:  # the payload works on readers that run what they read
        with chumpy_modules():
            pickle.loads(data)
    except Exception:
        pass
    assert marker.is_dir()
    marker.rmdir()

    (tmp_path / "file").write_bytes(wrap(data))
    for load in (FlameModel.load, LandmarkEmbedding.load):
        with pytest.raises(ValueError, match=r"file: .*refused: it asks for '"):
            load(tmp_path / "file")
    assert not marker.exists()


# Broken files give errors: no crash, no hang, no memory for what is not in the file


def flame_pickle(tmp_path):
    return flame_2017_pickle(random_model(V=9, F=8, S=3, E=2))


def own_npz(tmp_path):
    random_model(V=9, F=8, S=3, E=2).save(tmp_path / "whole.npz")
    return (tmp_path / "whole.npz").read_bytes()


def compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", **fields(random_model(V=9, F=8, S=3, E=2), regressor=np.array))
    return (tmp_path / "whole.npz").read_bytes()


def own_safetensors(tmp_path):
    random_model(V=9, F=8, S=3, E=2).save(tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


def deca_npy(tmp_path):
    content = deca_content(random_embedding(np.random.default_rng(0), 8, 3, 2))
    np.save(tmp_path / "whole.npy", content, allow_pickle=True)
    return (tmp_path / "whole.npy").read_bytes()


@pytest.mark.filterwarnings("ignore")  # NumPy's and zipfile's, about what they see in broken headers
@pytest.mark.parametrize("make", [flame_pickle, own_npz, compressed_npz, own_safetensors, deca_npy])
def test_truncations_and_bit_flips(tmp_path, make):
    load = LandmarkEmbedding.load if make is deca_npy else FlameModel.load
    whole = make(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(whole)
    load(path)
    rng = np.random.default_rng(0)
    start = time.monotonic()
    for length in rng.integers(0, len(whole), 200):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="file: "):
            load(path)
    refused = 0
    for position in rng.integers(0, len(whole), 200):
        data = bytearray(whole)
        data[position] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:  # a flipped bit in a coefficient is still a coefficient
            load(path)
        except ValueError as error:
            assert "file: " in str(error)
            refused += 1
    assert refused > 5
    assert time.monotonic() - start < 60


def array_opcodes(shape, raw):
    dtype = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR"
    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return new + b"(I1\n(" + b"".join(b"I%d\n" % n for n in shape) + b"t" + dtype + b"I00\n" + raw + b"tb"


@pytest.mark.parametrize(
    "program, message",
    [
        (array_opcodes([2**40, 3], b"S''\n") + b".", "needs .* bytes, got 0"),
        (array_opcodes([-1, 3], b"S''\n") + b".", "an array of shape"),
        (b"T\xff\xff\xff\x7fabc.", "ends too early"),
        (b"\x8e" + b"\xff" * 8 + b".", "ends too early"),
        (b"(" * 10**5 + b"l" * 10**5 + b".", "nested deeper"),
        (b"(lq\x00h\x00a.", "contains itself"),
        (b"I" + b"9" * 10**6 + b"\n.", "integer"),
        (b"Pid\n.", "outside of the file"),
        (b"]" * (2**20 + 1) + b".", "more than 1048576 opcodes"),
        (b"}L%dL\nNs." % (2**61 - 1), "a dictionary key of type int"),
        (b"Np%d\n." % (2**61 - 1), "a memo index out of range"),
        (b"\x82\x01.", "refused: opcode"),
        (b"h\x05.", "KeyError"),
        (b".", "pop"),
        (b"cnumpy\nndarray\n}b.", "sets the state"),
        (b"ccollections\nOrderedDict\n)R(NNt\x62.", "sets the state"),
    ],
)
def test_hostile_programs(program, message):
    with pytest.raises(ValueError, match=message):
        read_pickle(program)


def test_shared_parts_do_not_multiply():
    lists = b"]q\x00I1\na" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(50)) + b"."
    value = read_pickle(lists)
    with pytest.raises(ValueError, match="x: refused, a list of"):
        numbers("x", value)
    raw = b"U\xff" + bytes(255)
    repeated = b"(" + raw + b"q\x000" + b"".join(array_opcodes([1], b"h\x00") for _ in range(3)) + b"l."
    with pytest.raises(ValueError, match="needs 8 bytes, got 255"):
        read_pickle(repeated)
    text = b"(X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x000"
    encodings = b"".join(b"c_codecs\nencode\n(h\x00S'latin1'\ntR" for _ in range(10**3))
    with pytest.raises(ValueError, match="again and again"):
        read_pickle(text + encodings + b"l.")


def test_an_archive_that_claims_too_much(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", v_template=np.zeros(1000), posedirs=np.zeros(1000))
    data = bytearray((tmp_path / "bomb.npz").read_bytes())
    record = -1
    while (record := data.find(b"PK\x01\x02", record + 1)) >= 0:  # each entry of the archive's directory
        data[record + 24 : record + 28] = struct.pack("<I", 2**32 - 2)  # its unpacked size
    (tmp_path / "bomb.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"bomb.npz: it claims to unpack to more than 4 GiB"):
        read_file(tmp_path / "bomb.npz")


def test_an_array_that_claims_too_much(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 3)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue() + bytes(48))
    with pytest.raises(ValueError, match=r"huge.npy: .*needs 26388279066624 bytes, got 48"):
        read_file(tmp_path / "huge.npy")


# What an ordinary pickle may hold


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_are_those_of_pickle(protocol):
    array = np.arange(6.0).reshape(2, 3)
    value = {
        "plain": [1, -5, 10**30, 2.5, True, None, "é", b"\xff", b"", (1, 2), (), [], {"a": 1, 3: [2]}, 255, 70000],
        "array": array, "fortran": np.asfortranarray(array), "empty": np.zeros((0, 3)), "bool": array > 2,
        "big": array.astype(">f4"), "scalar": np.float32(3), "text": np.array(["a", "bc"]), "half": np.float16(2),
    }  # fmt: skip
    read = read_pickle(pickle.dumps(value, protocol))
    assert read["plain"] == value["plain"]
    for name in value.keys() - {"plain"}:
        assert np.array_equal(read[name], value[name]) and np.asarray(read[name]).dtype == value[name].dtype, name
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(9)[2:7:2], "c": torch.tensor([[True]])}
    read = read_pickle(pickle.dumps(tensors, protocol))
    for name, tensor in tensors.items():
        assert np.array_equal(read[name], tensor.numpy()) and read[name].dtype == tensor.numpy().dtype, name


def test_sparse_matrices_with_repeated_and_unsorted_entries():
    data, indices, indptr = np.array([1.0, 2, 4, 8]), np.array([2, 0, 2, 1]), np.array([0, 3, 3, 4])
    for kind in (scipy.sparse.csc_matrix, scipy.sparse.csr_matrix, scipy.sparse.csc_array):
        matrix = kind((data, indices, indptr), shape=(3, 3))
        assert np.array_equal(read_pickle(pickle.dumps(matrix)).dense(), matrix.toarray())
