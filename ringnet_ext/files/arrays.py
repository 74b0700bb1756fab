"""Files of arrays: pickles, .npy, .npz, .safetensors, .json and those of torch.save, read as untrusted input and told
apart by their content."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .pickles import read_pickle, torch_archive
from .whole import written_whole

_MAX_BYTES = 2**32  # unpacked; the largest model of the family, SMPL-X with 400 directions, has 0.2 GB


def read_file(path: str | os.PathLike):
    """The value in a file: for .npz, .safetensors and .json a dict of arrays, for pickles, .npy and torch.save's
    whatever they hold.

    Nothing in the file is executed, and no more memory is taken than the file's own data needs.
    Raises ValueError, naming the file, for what cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return _read(data)
    except Exception as error:  # broken files raise almost anything in zipfile, its decompressors and numpy's headers
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{os.fspath(path)}: {problem}") from error


def _read(data):
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(b"PK"):
        return _read_archive(data)
    if data.startswith(b"\x93NUMPY"):
        return _read_npy(data)
    if data[8:9] == b"{" and b"\0" in data[:8]:  # the length of what follows
        return _read_safetensors(data)
    if data.lstrip()[:1] == b"{":  # a pickle of text begins with ( or another letter
        return _read_json(data)
    return read_pickle(data)


def _read_npy(data):
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an .npy file of version {version}")
    shape, fortran, dtype = readers[version](file)
    rest = data[file.tell() :]
    if dtype.hasobject:
        return read_pickle(rest)
    if dtype.kind not in "biufSU" or dtype.shape or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} and dtype {dtype}")
    size = math.prod(shape) * dtype.itemsize
    if len(rest) != size:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} needs {size} bytes, got {len(rest)}")
    if not size:
        return np.zeros(shape, dtype)
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")


def _read_archive(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _MAX_BYTES:
            raise ValueError(f"it claims to unpack to more than {_MAX_BYTES >> 30} GiB")
        pickled = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
        if pickled:
            folder = pickled[0].filename.removesuffix("data.pkl")
            return torch_archive(archive.read(pickled[0]), lambda key: archive.read(f"{folder}data/{key}"))
        arrays = {}
        for member in members:
            if not member.filename.endswith(".npy"):
                raise ValueError(f"an archive with {member.filename!r:.80} is no .npz file")
            content = archive.read(member)
            if not content.startswith(b"\x93NUMPY"):
                raise ValueError(f"{member.filename!r:.80} is no array")
            arrays[member.filename.removesuffix(".npy")] = _read_npy(content)
    return arrays


def _read_json(data):
    """A dictionary of numbers, which become arrays, and of anything else."""
    content = json.loads(data)
    return {
        name: np.array(value) if isinstance(value, (list, int, float)) else value for name, value in content.items()
    }


def _read_safetensors(data):
    from safetensors.numpy import load

    return load(data)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as `.npz` (uncompressed) or `.safetensors`, as the name of `path` says; whole or not at all."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with written_whole(path) as file:
            file.write(content)
    elif suffix == ".npz":
        with written_whole(path) as file:
            np.savez(file, **arrays)
    else:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in .npz or .safetensors")


# An .npz as numpy.savez writes it, for small arrays in great number: zipfile takes eight times as long.

_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_VERSION, _UTF8, _STORED, _MIDNIGHT, _OF_1980 = 20, 0x800, 0, 0, 1 << 5 | 1


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Arrays, and what becomes one, as an uncompressed .npz file of less than 4 GiB."""
    members, directory, offset = [], [], 0
    for name, array in ((name, np.asarray(value)) for name, value in arrays.items()):
        file, content = f"{name}.npy".encode(), _npy_header(array.dtype, array.shape) + array.tobytes()
        facts = (_VERSION, _UTF8, _STORED, _MIDNIGHT, _OF_1980, zlib.crc32(content), len(content), len(content))
        members += [_LOCAL.pack(b"PK\3\4", *facts, len(file), 0), file, content]
        directory += [_CENTRAL.pack(b"PK\1\2", _VERSION, *facts, len(file), 0, 0, 0, 0, 0, offset), file]
        offset += _LOCAL.size + len(file) + len(content)
    end = b"PK\5\6", 0, 0, len(arrays), len(arrays), sum(map(len, directory)), offset, 0
    return b"".join([*members, *directory, _END.pack(*end)])


@lru_cache(64)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()
