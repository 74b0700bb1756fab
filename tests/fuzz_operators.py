"""The operators tried at random: python tests/fuzz_operators.py [--configurations N] [--malformed N] [--seed S]
[--seconds T]

Configurations: random sizes, dtypes, memory layouts, pose and template forms, numbers of threads and subsets of what
requires grad; results and gradients against the reference in float64, and the second call's bits against the first's,
which finds the model prepared.
Malformed calls: one argument of a correct call made wrong; it must raise ValueError or TypeError that names an
argument, and leave the correct call as it was. Prints each finding, with the seed that repeats it, and one line of
summary; exits with 1 if there is any.
"""

import argparse
import random
import re
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from conftest import RandomModel

from ringnet_ext import ops
from ringnet_ext.ops import reference

# Sizes by name: of each argument, by operator. A call's arguments come in this order.
_BODY = {
    "betas": ("B", "K"), "pose": ("B", "P"), "v_template": ("V", 3), "shapedirs": ("V", 3, "K"), "posedirs": ("Q", "W"),
    "J_regressor": ("J", "V"), "parents": ("J",), "lbs_weights": ("V", "J"),
}  # fmt: skip
_EMBEDDING = {
    "faces": ("F", 3), "lmk_faces_idx": ("L",), "lmk_bary_coords": ("L", 3), "contour_faces_idx": (79, "C"),
    "contour_bary_coords": (79, "C", 3),
}  # fmt: skip
ARGUMENTS = {
    "flame_lbs": _BODY,
    "flame_landmarks": {**_BODY, **_EMBEDDING},
    "flame_head": {**_BODY, **_EMBEDDING},
    "batch_rodrigues": {"rot_vecs": ("N", 3)},
    "vertices2landmarks": {
        "vertices": ("B", "V", 3),
        "faces": ("F", 3),
        "lmk_faces_idx": ("L",),
        "lmk_bary_coords": ("L", 3),
    },
}
_INDICES = ("parents", "faces", "lmk_faces_idx", "contour_faces_idx")
_USUAL = ("betas", "pose", "v_template", "rot_vecs", "vertices")  # what the operators themselves differentiate
_SETTINGS = {"neck_joint": 1, "pose2rot": True}


@dataclass
class Call:
    operator: str
    arguments: dict  # name -> tensor, None or setting
    note: str = ""

    def run(self, library=ops) -> tuple:
        outputs = getattr(library, self.operator)(**self.arguments)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def changed(self, **arguments) -> "Call":
        return Call(self.operator, {**self.arguments, **arguments}, self.note)

    def tensors(self) -> dict:
        return {name: value for name, value in self.arguments.items() if isinstance(value, torch.Tensor)}


def _size(rng: random.Random, low: int, high: int) -> int:
    """As often small as big."""
    return min(high, low - 1 + int((high - low + 2) ** rng.random()))


def _laid_out(rng: random.Random, value: torch.Tensor) -> torch.Tensor:
    """The same values somewhere else in memory: as they lie, strided, transposed, at an offset."""
    layout = rng.choice(["contiguous", "contiguous", "strided", "transposed", "offset"])
    if layout == "strided" and value.ndim:
        big = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
        big[..., ::2] = value
        return big[..., ::2]
    if layout == "transposed" and value.ndim > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":
        return torch.cat([value.new_zeros(3), value.flatten()])[3:].view(value.shape)
    return value.clone()


def random_call(rng: random.Random, operator: str | None = None, smallest: int = 0) -> Call:
    """A correct call with a batch of `smallest` or more."""
    operator = operator or rng.choices(list(ARGUMENTS), [4, 4, 4, 1, 2])[0]
    dtype = rng.choice([torch.float32, torch.float64])
    B = max(smallest, _size(rng, 0, 70))
    V, K, J, L, C = (
        _size(rng, 1, 700),
        _size(rng, 0, 40),
        _size(rng, 1, 12),
        _size(rng, 0, 40),
        rng.choice([0, 0, _size(rng, 1, 12)]),
    )
    seed = rng.getrandbits(31)
    model = RandomModel.make(V=V, K=K, J=J, L=L, C=C, seed=seed).to(dtype=dtype)
    betas, pose = model.inputs(B, seed=seed + 1)
    note = f"{operator} V={V} K={K} J={J} L={L} C={C} B={B} {dtype}"
    if operator == "batch_rodrigues":
        return Call(operator, {"rot_vecs": pose.reshape(-1, 3) * rng.choice([0, 1e-6, 1, 6])}, note)
    arguments = {"betas": betas, "pose": pose} | vars(model)
    arguments |= {"neck_joint": rng.randrange(J), "pose2rot": rng.random() < 0.6}
    if C == 0:
        arguments["contour_faces_idx"] = arguments["contour_bary_coords"] = None
    if operator == "vertices2landmarks":
        arguments["vertices"] = torch.randn(B, V, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if not arguments["pose2rot"]:
        arguments["pose"] = reference.batch_rodrigues(pose.reshape(-1, 3)).reshape(B, J, 3, 3)
    accepted = [*ARGUMENTS[operator], *(() if operator == "vertices2landmarks" else ("pose2rot",))]
    if "faces" in accepted and "betas" in accepted:
        accepted.append("neck_joint")
    return Call(operator, {name: arguments[name] for name in accepted}, note)


def varied(rng: random.Random, call: Call) -> Call:
    """The call in another form: a template for each element, batches of one, expanded rows, other layouts, gradients
    wanted."""
    arguments, note = dict(call.arguments), call.note
    batch = next(iter(arguments.values())).shape[0]
    if "betas" in arguments:
        if rng.random() < 0.3:
            noise = torch.linspace(-0.05, 0.05, max(1, batch)).to(arguments["betas"])[:batch, None, None]
            arguments["v_template"] = arguments["v_template"] + noise
            note += " template each"
        if rng.random() < 0.3:  # equal rows, as expand makes them
            name = rng.choice(["betas", "pose", "v_template"])
            if arguments[name].shape[0] == batch > 0 and (name != "v_template" or arguments[name].ndim == 3):
                arguments[name] = arguments[name][:1].expand_as(arguments[name])
                note += f" expanded {name}"
        elif rng.random() < 0.3 and batch > 1 and arguments["v_template"].ndim == 2:
            name = rng.choice(["betas", "pose"])
            arguments[name] = arguments[name][:1]
            note += f" one {name}"
        if arguments["pose2rot"] and rng.random() < 0.2:
            arguments["pose"] = arguments["pose"].unflatten(1, (-1, 3))
            note += " pose in rows"
    if call.operator == "vertices2landmarks" and rng.random() < 0.5:
        for name in ("lmk_faces_idx", "lmk_bary_coords"):
            arguments[name] = arguments[name].expand(batch, *arguments[name].shape)
        note += " own points"
    leaves = set()
    if rng.random() < 0.8:
        usual = [name for name in _USUAL if name in arguments]
        leaves = set(rng.sample(usual, rng.randint(1, len(usual))))
        if rng.random() < 0.15:
            constants = [name for name, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
            leaves.add(rng.choice(constants))
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            if not (value.ndim and value.stride(0) == 0 and value.shape[0] > 1):  # expanded it stays
                value = _laid_out(rng, value)
            arguments[name] = value.detach().requires_grad_(name in leaves)
    return Call(call.operator, arguments, f"{note} leaves {sorted(leaves)}")


def _gradients(outputs, weights, leaves) -> list:
    used = [
        (output, weight)
        for output, weight in zip(outputs, weights, strict=True)
        if weight is not None and output.requires_grad
    ]
    if not leaves or not used:
        return [torch.zeros_like(leaf) for leaf in leaves]
    outputs, weights = zip(*used, strict=True)
    gradients = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]


def check_configuration(seed: int) -> str | None:
    """What is wrong with the configuration of this seed, or None."""
    rng = random.Random(seed)
    call = varied(rng, random_call(rng))
    torch.set_num_threads(rng.choice([1, 2, 3, 4]))
    leaves = {name: value for name, value in call.tensors().items() if value.requires_grad}
    exact = call.changed(
        **{
            name: value.detach().double().requires_grad_(name in leaves)
            for name, value in call.tensors().items()
            if value.is_floating_point()
        }
    )
    want = exact.run(reference)
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(w.shape, generator=generator, dtype=torch.float64) if rng.random() < 0.8 else None for w in want
    ]
    dtype = call.tensors()[next(iter(ARGUMENTS[call.operator]))].dtype
    given = [None if w is None else _laid_out(rng, w.to(dtype)) for w in weights]
    want_gradients = _gradients(
        want, [None if g is None else g.double() for g in given], [exact.arguments[name] for name in leaves]
    )

    results = []
    for threads in (torch.get_num_threads(), rng.choice([1, 2, 4])):
        torch.set_num_threads(threads)
        outputs = call.run()
        results.append([*(o.detach() for o in outputs), *_gradients(outputs, given, list(leaves.values()))])
    names = [f"output {i}" for i in range(len(want))] + [f"gradient of {name}" for name in leaves]
    single = dtype == torch.float32
    # A gradient may be the small rest of large terms, as where a single vertex turns about itself: centimetres times
    # what came in.
    lever = 0.01 * float(torch.stack([torch.zeros(()).double(), *(w.norm() for w in weights if w is not None)]).norm())
    for i, (name, first, second, exactly) in enumerate(zip(names, *results, [*want, *want_gradients], strict=True)):
        if first.shape != exactly.shape or first.dtype != dtype:
            return f"{call.note}: {name} is {first.dtype} {tuple(first.shape)}, expected {dtype} {tuple(exactly.shape)}"
        if not torch.equal(first, second) and not set(leaves) - set(
            _USUAL
        ):  # PyTorch's own sums may depend on the threads
            return f"{call.note}: {name} differs from one call to the next"
        if exactly.numel() == 0:
            continue
        error, size = (first.double() - exactly).detach(), exactly.detach()
        if i < len(want):
            error, bound = error.abs().max(), (1e-6 if single else 1e-13) * max(1.0, float(size.abs().max()))
        else:
            error, bound = error.norm(), (1e-5 if single else 1e-12) * (float(size.norm()) + lever)
        if not error <= bound:
            return f"{call.note}: {name} is off by {float(error):.2g}, at most {bound:.2g} expected"
    return None


# --- malformed calls ---


def _wrong_sizes(rng, value, sizes):
    """One more or one less of what another argument, or the operator, fixes: F and N are free, and so is a batch of
    nothing else."""
    free = {"F", "N"} | ({"B"} if sizes == ("B", "V", 3) else set())
    fixed = [i for i, size in enumerate(sizes) if size not in free and i < value.ndim]
    if not fixed:
        return None
    i = rng.choice(fixed)
    grown = torch.cat([value, value.narrow(i, 0, 1)], dim=i) if value.shape[i] else None
    if grown is None or (rng.random() < 0.5 and value.shape[i] > 2 and sizes != ("B", "V", 3)):
        return value.narrow(i, 0, value.shape[i] - 1) if value.shape[i] > 2 else None
    return None if sizes == ("B", "V", 3) and i == 1 else grown


def _wrong_dimensions(rng, value, sizes):
    kind = rng.choice(["more", "fewer", "none"])
    if kind == "more":
        return value[(None,) * rng.choice([3, 5])]
    return value.flatten()[:1] if kind == "fewer" and value.ndim > 1 and value.numel() else value.new_zeros(())


def _wrong_type(rng, value, sizes):
    return rng.choice([None, 1.5, "tensor", [1, 2], value.numpy(), (), object()])


def _wrong_dtype(rng, value, sizes):
    if value.is_floating_point():
        other = torch.float64 if value.dtype == torch.float32 else torch.float32
        others = [other] if sizes != ("N", 3) else []  # alone it may be either
        return value.to(rng.choice([*others, torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8]))
    return value.to(rng.choice([torch.float32, torch.float64, torch.bool, torch.complex64, torch.uint8, torch.int16]))


def _wrong_layout(rng, value, sizes):
    kind = rng.choice(["coo", "csr", "meta", "nested", "quantized"])
    if kind == "coo":
        return value.to_sparse()
    if kind == "csr":
        return value.to_sparse_csr() if value.ndim == 2 else value.to_sparse()
    if kind == "nested":
        return torch.nested.nested_tensor([value, value])
    if kind == "quantized" and value.is_floating_point():
        return torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8)
    return value.to("meta")


def _wrong_index(rng, name, value, call):
    """An index outside, or parents that aren't a tree."""
    if value.numel() == 0 or name not in _INDICES:
        return None
    value = value.clone()
    place = tuple(rng.randrange(size) for size in value.shape)
    if name == "parents":
        value[place] = rng.choice([place[0], place[0] + 1, 0 if place[0] == 0 else -1, len(value), -2, 2**40])
        return value
    end = (
        len(call.arguments["faces"])
        if name != "faces"
        else call.arguments[next(n for n in ("vertices", "v_template") if n in call.arguments)].shape[-2]
    )
    if name == "faces" and call.operator == "vertices2landmarks":  # only what the landmarks use is read
        if call.arguments["lmk_faces_idx"].numel() == 0:
            return None
        place = (int(call.arguments["lmk_faces_idx"].flatten()[0]), place[1])
    value[place] = rng.choice([-1, end, 2**31, -(2**31), 2**60])
    return value


def malformed(rng: random.Random) -> Call:
    while True:
        call = random_call(rng, smallest=2)
        name = rng.choice([*ARGUMENTS[call.operator], *(n for n in _SETTINGS if n in call.arguments)])
        value, sizes = call.arguments[name], ARGUMENTS[call.operator].get(name)
        if rng.random() < 0.3:  # the reference's way
            constants = [n for n, v in call.tensors().items() if v.is_floating_point() and n not in _USUAL]
            call = call.changed(**{n: call.arguments[n].clone().requires_grad_() for n in constants[:1]})
            call.note += " differentiated constant"
            if name in constants[:1]:
                continue
        if name in _SETTINGS:
            if name == "neck_joint" and call.arguments["contour_faces_idx"] is None:
                continue
            J = len(call.arguments["parents"])
            wrong = (
                rng.choice([-1, J, 10**6, 2**70, "neck", None, 1.5])
                if name == "neck_joint"
                else rng.choice(["x", None, 3, 0.5, []])
            )
            what = repr(wrong)
        elif value is None:  # half a contour
            bary = name == "contour_bary_coords"
            wrong = (
                torch.zeros(79, 3, 3, dtype=call.arguments["betas"].dtype)
                if bary
                else torch.zeros(79, 3, dtype=torch.int64)
            )
            what = "given alone"
        else:
            kind = rng.choice(
                [_wrong_sizes, _wrong_sizes, _wrong_dimensions, _wrong_type, _wrong_dtype, _wrong_layout, _wrong_index]
            )
            if name == "pose" and kind is _wrong_sizes:
                sizes, value = ("B", "P"), value.flatten(1)
            wrong = kind(rng, name, value, call) if kind is _wrong_index else kind(rng, value, sizes)
            if wrong is None and (kind is not _wrong_type or name.startswith("contour_")):
                continue
            what = kind.__name__[1:].replace("_", " ") + (
                f" {tuple(wrong.shape) if not wrong.is_nested else ''} {wrong.dtype} {wrong.layout} {wrong.device}"
                if isinstance(wrong, torch.Tensor) else f" {type(wrong).__name__}"
            )  # fmt: skip
        result = call.changed(**{name: wrong})
        result.note = f"{call.note}: {name} {what}"
        result.correct = call
        return result


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@contextmanager
def _limit(seconds: int):
    def stop(*_):
        raise TimeoutError(f"takes more than {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_malformed(seed: int) -> str | None:
    """What is wrong with how the malformed call of this seed is refused, or None."""
    rng = random.Random(seed)
    call = malformed(rng)
    prepared = rng.random() < 0.5
    before = call.correct.run() if prepared else None
    expected = (ValueError, TypeError) + ((IndexError,) if call.operator == "vertices2landmarks" else ())
    try:
        with _limit(10):
            call.run()
        return f"{call.note}: accepted"
    except expected as error:
        names = "|".join([*ARGUMENTS[call.operator], *_SETTINGS])
        if not re.search(rf"\b({names})\b", str(error)):
            return f"{call.note}: names no argument: {_first_line(error)}"
    except Exception as error:
        return f"{call.note}: {_first_line(error)}"
    after = call.correct.run()
    if prepared and not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return f"{call.note}: changed the correct call's results"
    return None


def fuzz(configurations: int, wrong: int, seed: int = 0, seconds: float = float("inf")) -> tuple[list[str], str]:
    """The findings, and a line that says what was tried."""
    began, threads, findings, done = time.monotonic(), torch.get_num_threads(), [], [0, 0]
    try:
        for which, (count, check) in enumerate(((configurations, check_configuration), (wrong, check_malformed))):
            for number in range(seed, seed + count):
                if time.monotonic() - began > seconds:
                    findings.append(f"out of time: {seconds:.0f} s")
                    break
                done[which] += 1
                try:
                    finding = check(number)
                except Exception as error:
                    finding = _first_line(error)
                if finding:
                    findings.append(f"seed {number}: {finding}")
    finally:
        torch.set_num_threads(threads)
    summary = (
        f"{done[0]} configurations and {done[1]} malformed calls from seed {seed}: {len(findings)} findings, "
        f"{time.monotonic() - began:.0f} s"
    )
    return findings, summary


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configurations", type=int, default=2000)
    parser.add_argument("--malformed", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300, help="time after which it gives up [300]")
    options = parser.parse_args(argv)
    findings, summary = fuzz(options.configurations, options.malformed, options.seed, options.seconds)
    print(*findings, f"fuzz: {summary}", sep="\n")
    return int(bool(findings))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of nested and sparse tensors, about themselves
    sys.exit(main())
