"""Writes model files as the field has them, for the tests: FLAME's and SMPL's pickles with chumpy and SciPy inside."""

import io
import pickle
import struct
import sys
import types
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import scipy.sparse


@contextmanager
def chumpy_modules():
    """Stand-ins under chumpy's names, so that pickling writes the references that chumpy's objects have."""
    ch, reordering = types.ModuleType("chumpy.ch"), types.ModuleType("chumpy.reordering")
    ch.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    ch.MatVecMult = type("MatVecMult", (), {"__module__": "chumpy.ch"})
    reordering.Select = type("Select", (ch.Ch,), {"__module__": "chumpy.reordering"})
    modules = {"chumpy": types.ModuleType("chumpy"), "chumpy.ch": ch, "chumpy.reordering": reordering}
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield ch, reordering
    finally:
        for name in modules:
            del sys.modules[name]


def chumpy_array(modules, array):
    """chumpy.ch.Ch around an array, with the state that chumpy keeps."""
    value = modules[0].Ch()
    value.__dict__.update(x=array, _dirty_vars={"x"}, _itr=None, _depends_on_deps={}, _cached_parms={})
    return value


def chumpy_select(modules, array, seed=0):
    """chumpy.reordering.Select that picks `array` out of a larger, shuffled one."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=array.size + 5)
    idxs = rng.permutation(array.size + 5)[: array.size]
    source[idxs] = array.ravel()
    value = modules[1].Select()
    value.__dict__.update(
        a=chumpy_array(modules, source), idxs=idxs, preferred_shape=array.shape, _dirty_vars=set(), _itr=None
    )
    return value


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, data):
        if self.proto:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        else:
            self.write(pickle.STRING + repr(data)[1:].encode() + b"\n")
        self.memoize(data)

    dispatch[bytes] = save_bytes


def python2_pickle(value, protocol):
    """`value` as Python 2 with the NumPy and SciPy of its time pickled it."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol).dump(value)
    data = file.getvalue()
    return data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n")


def fields(model, joints_dtype=np.uint32, regressor=scipy.sparse.csc_matrix):
    """The content of a model file, as plain and sparse arrays."""
    parents = model.parents.astype(joints_dtype)  # -1 becomes 2^32 - 1
    return {
        "v_template": model.v_template,
        "shapedirs": np.concatenate([model.shapedirs, model.expressiondirs], axis=2),
        "posedirs": model.posedirs,
        "J_regressor": regressor(model.J_regressor),
        "kintree_table": np.stack([parents, np.arange(len(parents), dtype=joints_dtype)]),
        "weights": model.lbs_weights,
        "f": model.faces.astype(np.uint32),
        "J": model.J_regressor @ model.v_template,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def flame_2017_pickle(model, protocol=2):
    """A model file with everything that the early ones have: chumpy arrays and selections, a sparse regressor."""
    with chumpy_modules() as modules:
        content = fields(model)
        content["v_template"] = chumpy_array(modules, content["v_template"])
        content["weights"] = chumpy_array(modules, content["weights"])
        content["posedirs"] = chumpy_array(modules, np.asfortranarray(content["posedirs"]))
        content["shapedirs"] = chumpy_select(modules, content["shapedirs"])
        content["J"] = modules[0].MatVecMult()  # computed by chumpy; nobody needs it
        return python2_pickle(content, protocol)


def deca_content(embedding):
    """What DECA's landmark_embedding.npy holds: a dictionary of arrays and torch tensors."""
    import torch

    frontal_faces = np.concatenate([embedding.contour_faces_idx[0], embedding.static_faces_idx])
    frontal_bary = np.concatenate([embedding.contour_bary_coords[0], embedding.static_bary_coords])
    return {
        "static_lmk_faces_idx": embedding.static_faces_idx.astype(np.uint32),
        "static_lmk_bary_coords": embedding.static_bary_coords,
        "dynamic_lmk_faces_idx": torch.tensor(embedding.contour_faces_idx),
        "dynamic_lmk_bary_coords": torch.tensor(embedding.contour_bary_coords),
        "full_lmk_faces_idx": frontal_faces[None],
        "full_lmk_bary_coords": frontal_bary[None],
    }
