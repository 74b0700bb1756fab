"""Reads pickles of arrays without running them.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. The one here calls
nothing and imports nothing: calls become inert records, and after the program has stopped those that are known to stand
for arrays are turned into arrays. A program that names anything else is refused. What is understood:

- numpy arrays, scalars and dtypes of plain numbers, and object arrays of what is understood
- compressed sparse matrices of SciPy, as :class:`Sparse`
- chumpy's objects, as :class:`Inert` records of their state, whose arrays :func:`numbers` finds
- torch tensors and parameters inside other pickles and in torch.save's archives, as numpy arrays

Works for all pickle protocols; byte strings of Python 2 are read as latin1.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .pickle_machine import Call, Global, Machine, Persistent

_MAX_DEPTH = 64  # nesting of real files is below 10
_MAX_REPEATED = 2**28  # bytes: what all frames of a video have in common is saved once, and read for each
_MAX_STEPS, _MAX_COUNT = 2**20, 2**28  # lists of lists in real files have some hundred items, arrays below 2^24 numbers


@dataclass(eq=False)
class Sparse:
    """A compressed sparse matrix: column-wise (CSC) or row-wise (CSR)."""

    shape: tuple[int, int]
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    by_column: bool

    def dense(self) -> np.ndarray:
        """The matrix as a dense float64 array; entries that occur twice are summed. The caller vets `shape` first."""
        counts = np.diff(self.indptr)
        major = np.repeat(np.arange(len(counts)), counts)
        dense = np.zeros(self.shape)
        np.add.at(dense, (self.indices, major) if self.by_column else (major, self.indices), self.data)
        return dense


@dataclass(eq=False)
class Inert:
    """An object whose class is not available here: its name and its state, if that was a dictionary."""

    name: str
    state: dict


def numbers(name: str, value) -> np.ndarray:
    """The array in `value`: an array, a number, a list of equal ones, or a chumpy object that holds or selects one.

    Raises ValueError, naming `name`, for anything else.
    """
    steps, count = _size(value, {})
    if steps > _MAX_STEPS or count > _MAX_COUNT:
        raise ValueError(f"{name}: refused, a list of {steps} items with {count} numbers")
    return _numbers(name, value)


def _size(value, known):
    """How many calls of _numbers `value` takes, and how many numbers pass through them; what is shared counts again."""
    if isinstance(value, np.ndarray):
        return 1, value.size
    if isinstance(value, Inert):
        parts = [part for name, part in value.state.items() if name in ("x", "a", "idxs", "preferred_shape")]
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        return 1, 1
    if id(value) not in known:
        sizes = [_size(part, known) for part in parts]
        known[id(value)] = 1 + sum(steps for steps, _ in sizes), sum(count for _, count in sizes)
    return known[id(value)]


def _numbers(name, value):
    if isinstance(value, Inert):
        if value.name == "chumpy.ch.Ch" and "x" in value.state:
            return _numbers(name, value.state["x"])
        if value.name == "chumpy.reordering.Select" and {"a", "idxs"} <= value.state.keys():
            source, index = (_numbers(name, value.state[part]).ravel() for part in ("a", "idxs"))
            if index.dtype.kind not in "iu" or not ((index >= 0) & (index < len(source))).all():
                raise ValueError(f"{name}: selects elements that are not there")
            shape = value.state.get("preferred_shape")
            return source[index] if shape is None else source[index].reshape(_shape(_numbers(name, shape).tolist()))
        raise ValueError(f"{name}: a {value.name} has no values that can be read without running it")
    if isinstance(value, (list, tuple)):
        items = [item if isinstance(item, (bool, int, float)) else _numbers(name, item) for item in value]
        shapes = {np.shape(item) for item in items}
        if len(shapes) > 1:
            raise ValueError(f"{name}: a list of arrays of different shapes, {', '.join(map(str, list(shapes)[:4]))}")
        return np.array(items)
    if not isinstance(value, (np.ndarray, np.generic, int, float)):
        raise ValueError(f"{name}: expected numbers, got {type(value).__name__}")
    return np.asarray(value)


def read_pickle(data: bytes):
    """The value that `data` describes: dict, list, tuple, str, bytes, numbers, arrays, Sparse, Inert.

    Raises ValueError for anything that is not a complete pickle of such values. Runs none of it.
    """
    value, _ = _read_at(memoryview(data), 0)
    return value


def torch_archive(data: bytes, storage: Callable[[str], bytes]):
    """The value of `data.pkl` in a file of torch.save, as :func:`read_pickle`; `storage` reads the numbers under a
    key."""
    known: dict = {}

    def numbers_of(key):
        if not (isinstance(key, tuple) and len(key) == 5 and key[0] == "storage" and isinstance(key[1], Inert)):
            raise ValueError("a torch storage of unknown form")
        _, kind, name, _, count = key
        if kind.name not in _STORAGES or not isinstance(name, str) or not name.isdigit():
            raise ValueError(f"a torch storage of type {kind.name}")
        if (kind.name, name) not in known:
            known[kind.name, name] = _torch_numbers(kind.name, count, storage(name))
        return known[kind.name, name]

    return _read_at(memoryview(data), 0, persistent=numbers_of)[0]


def _read_at(data, start, persistent=None):
    """The value of the pickle that begins at `start`, and the place where it ends."""
    machine = Machine(data, start, _allowed)
    try:
        machine.run()
        value = _Resolver(persistent, budget=8 * len(data) + _MAX_REPEATED).resolve(machine.result)
        return value, machine.position
    except _MALFORMED as error:
        problem = f"{type(error).__name__}: {error}"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"cannot be read as a pickle of arrays, near byte {machine.position} of {len(data)}: {problem}")


_MALFORMED = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, struct.error)


def _names(modules, *names):
    return {f"{module}.{name}" for module in modules for name in names}


_BUILTINS = ("__builtin__", "builtins")
_RECONSTRUCT = _names(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct")
_SCALAR = _names(("numpy.core.multiarray", "numpy._core.multiarray"), "scalar")
_FROM_BUFFER = _names(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer")
_NEW_OBJECT = _names(("copy_reg", "copyreg"), "_reconstructor")
_CSC = _names(("scipy.sparse.csc", "scipy.sparse._csc"), "csc_matrix", "csc_array")
_CSR = _names(("scipy.sparse.csr", "scipy.sparse._csr"), "csr_matrix", "csr_array")
_COLLECTIONS = _names(_BUILTINS, "set", "frozenset", "list", "tuple")
_EMPTY_BYTES = _names(_BUILTINS, "bytes")
_BFLOAT16 = "torch.BFloat16Storage"
_STORAGES = {_BFLOAT16: np.dtype("<u2")} | {
    f"torch.{name}Storage": np.dtype(code)
    for name, code in {
        "Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1",
        "Byte": "u1", "Bool": "?",
    }.items()
}  # fmt: skip
_KNOWN = (
    {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"}
    | {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.storage._load_from_bytes"}
    | _names(_BUILTINS, "object")
    | _RECONSTRUCT | _SCALAR | _FROM_BUFFER | _NEW_OBJECT | _CSC | _CSR | _COLLECTIONS | _EMPTY_BYTES | _STORAGES.keys()
)  # fmt: skip


def _allowed(name):
    # No object of chumpy's is ever made: any of its names may stand in a record.
    return name in _KNOWN or name.startswith("chumpy.")


@dataclass
class _Resolver:
    """Turns the machine's records into values. Each record is turned once, however often it is referred to."""

    persistent: object  # what a persistent id stands for, as a function; None where there are none
    budget: int  # bytes and items that may go through calls: a small file can name one array a million times
    outside: set[int] = field(default_factory=set)  # arrays that persistent ids stand for
    done: dict = field(default_factory=dict)
    depth: int = 0

    def resolve(self, value):
        if not isinstance(value, (list, tuple, dict, Call, Global, Persistent)):
            return value
        key = id(value)
        if key in self.done:
            if self.done[key] is self:
                raise ValueError("an object that contains itself")
            return self.done[key]
        if self.depth == _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
        self.done[key] = self
        self.depth += 1
        if isinstance(value, dict):
            result = {name: self.resolve(item) for name, item in value.items()}
        elif isinstance(value, (list, tuple)):
            result = type(value)(self.resolve(item) for item in value)
        elif isinstance(value, Global):
            result = Inert(value.name, {})
        elif isinstance(value, Persistent):
            if self.persistent is None:
                raise ValueError("refused: it refers to objects outside of the file")
            result = self.persistent(self.resolve(value.key))
            if isinstance(result, np.ndarray) and id(result) not in self.outside:
                self.outside.add(id(result))
                self.budget += 2 * result.nbytes
        else:
            result = self.call(value.function.name, value)
        self.depth -= 1
        self.done[key] = result
        return result

    def spend(self, amount):
        self.budget -= amount
        if self.budget < 0:
            raise ValueError("refused: it repeats its data again and again")

    def call(self, name, call):
        args, state = self.resolve(call.args), self.resolve(call.state)
        if name == "torch._utils._rebuild_tensor_v2":  # its storage isn't copied: many tensors may be views of one
            return _torch_tensor(*args[:4], self.spend)
        parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
        self.spend(sum(len(x) for x in (*args, *parts) if isinstance(x, (str, bytes, list, tuple))))
        self.spend(sum(x.size for x in (*args, *parts) if isinstance(x, np.ndarray)))
        if name in _NEW_OBJECT:  # (class, object, None), as protocols 0 and 1 make objects
            if not args or not isinstance(args[0], Inert):
                raise ValueError("makes an object of something that is no class")
            name, args = args[0].name, ()
        if name in _RECONSTRUCT | {"numpy.ndarray"}:
            _version, shape, dtype, fortran, raw = state
            return _array(shape, dtype, raw, "F" if fortran else "C")
        if name == "numpy.dtype":
            return _dtype(args[0], state)
        if name in _SCALAR:
            return _array((), args[0], args[1], "C")[()]
        if name in _FROM_BUFFER:
            raw, dtype, shape, order = args
            return _array(shape, dtype, raw, order)
        if name == "_codecs.encode":
            text, encoding = args
            if encoding not in ("latin1", "latin-1"):
                raise ValueError(f"bytes encoded as {encoding!r:.40}")
            return text.encode("latin1")
        if name in _EMPTY_BYTES and not args:
            return b""
        if name in _CSC | _CSR:
            return _sparse(state, by_column=name in _CSC)
        if name in _COLLECTIONS and len(args) <= 1:
            items = args[0] if args else []
            if not isinstance(items, (list, tuple)):
                raise ValueError(f"a collection made of {type(items).__name__}")
            return list(items)
        if name == "torch.storage._load_from_bytes":
            return _torch_storage(args[0])
        if name == "torch._utils._rebuild_parameter":
            return args[0]
        if name.startswith("chumpy."):
            return Inert(name, state if isinstance(state, dict) else {})
        raise ValueError(f"refused: it calls {name!r}")


def _dtype(code, state):
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248]|O8?|[SU][0-9]{1,4})", code):
        raise ValueError(f"refused: a numpy array of dtype {code!r:.40}")
    dtype = np.dtype(code)
    if state is not None and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
        dtype = dtype.newbyteorder(state[1])
    return dtype


def _shape(shape):
    shape = tuple(shape)
    if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 8:
        raise ValueError(f"an array of shape {shape!r:.80}")
    return shape


def _array(shape, dtype, raw, order):
    """An array over `raw`, which must be exactly as long as `shape` says: sizes come from data, never from a claim."""
    shape = _shape(shape)
    if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise ValueError("an array without a dtype or an order")
    count = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(raw, list) or len(raw) != count:
            raise ValueError(f"an object array of shape {shape} without its {count} objects")
        if not shape:
            return raw[0]
        if len(shape) == 1:
            return raw
        raise ValueError(f"refused: an object array of shape {shape}")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes) or len(raw) != count * dtype.itemsize:
        got = f"{len(raw)} bytes" if isinstance(raw, bytes) else type(raw).__name__
        raise ValueError(f"an array of shape {shape} and dtype {dtype} needs {count * dtype.itemsize} bytes, got {got}")
    if not count:
        return np.zeros(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def _sparse(state, by_column):
    if not isinstance(state, dict):
        raise ValueError("a sparse matrix without its state")
    shape = _shape(state["_shape"] if "_shape" in state else state["shape"])
    data, indices, indptr = (state[name] for name in ("data", "indices", "indptr"))
    if len(shape) != 2 or not all(isinstance(a, np.ndarray) and a.ndim == 1 for a in (data, indices, indptr)):
        raise ValueError("a sparse matrix must have two dimensions, and one each for data, indices, indptr")
    if data.dtype.kind not in "fiu" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise ValueError(f"a sparse matrix of dtypes {data.dtype}, {indices.dtype}, {indptr.dtype}")
    major, minor = shape[::-1] if by_column else shape
    indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    if (
        len(indptr) != major + 1
        or indptr[0] != 0
        or (np.diff(indptr) < 0).any()
        or not indptr[-1] == len(indices) == len(data)
        or (len(indices) and not (0 <= indices.min() and indices.max() < minor))
    ):
        raise ValueError(f"a sparse matrix of shape {shape} whose indices do not fit")
    return Sparse(shape, data, indices, indptr, by_column)


def _torch_storage(data):
    """The numbers of a torch storage, from what `torch.save(storage, _use_new_zipfile_serialization=False)` wrote:
    pickles of a magic number, a version, a system description, the storage's id and the list of ids; then the bytes."""
    if not isinstance(data, bytes):
        raise ValueError("a torch storage that is no bytes")
    data = memoryview(data)

    def storage(key):
        if not (isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage" and isinstance(key[1], Inert)):
            raise ValueError("a torch storage of unknown form")
        return key[1].name, key[4]

    position = 0
    values = []
    for _ in range(5):
        value, position = _read_at(data, position, persistent=storage)
        values.append(value)
    if values[0] != 0x1950A86A20F9469CFC6C or not isinstance(values[3], tuple):
        raise ValueError("a torch storage of unknown form")
    name, count = values[3]
    if name not in _STORAGES:
        raise ValueError(f"a torch storage of type {name}")
    if position + 8 > len(data) or struct.unpack_from("<q", data, position)[0] != count:
        raise ValueError("a torch storage that ends too early")
    return _torch_numbers(name, count, bytes(data[position + 8 :]))


def _torch_numbers(kind, count, raw):
    """A storage's numbers; bfloat16, which NumPy doesn't have, as float32."""
    numbers = _array((count,), _STORAGES[kind], raw, "C")
    return (numbers.astype("<u4") << 16).view("<f4") if kind == _BFLOAT16 else numbers


def _torch_tensor(storage, offset, shape, stride, spend):
    """A copy of a view of a storage. `spend` is told how many bytes it takes."""
    shape, stride = _shape(shape), _shape(stride)
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(stride) != len(shape) or type(offset) is not int:
        raise ValueError("a torch tensor of unknown form")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if count and not 0 <= offset <= last < len(storage):
        raise ValueError(f"a torch tensor of shape {shape} over {len(storage)} numbers")
    if not count:
        return np.zeros(shape, storage.dtype)
    size = storage.itemsize
    spend(count * size)  # before it is made: an expanded tensor is larger than its storage
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [s * size for s in stride]).copy()
