"""What a call costs beside its kernel, at batch 1, in this source and another, measured in turns.

    python benchmarks/host_time.py HERE OTHER

HERE and OTHER are PYTHONPATHs, each with a checkout and its compiled core. The head is so small that the kernels take
next to nothing. One process runs for each; they take turns of a few milliseconds, and the fastest turn of each counts,
over several pairs of processes, because where a process has its memory makes a difference of some percent.
"""

import argparse
import os
import subprocess
import sys
import time

CALLS = 60  # of a turn
CASES = tuple(
    f"{name} {way}" for name in ("lbs", "landmarks", "head", "layer", "rodrigues") for way in ("forward", "backward")
)


def cases() -> dict:
    """name -> a function without arguments: one call, or one call and its backward pass."""
    import numpy as np
    import torch

    from ringnet_ext import ops
    from ringnet_ext.flame import FLAME, FlameModel, LandmarkEmbedding

    rng = np.random.default_rng(0)
    V, F, J = 24, 30, 5
    layer = FLAME(
        FlameModel(
            v_template=rng.normal(0, 0.1, (V, 3)),
            shapedirs=rng.normal(0, 0.01, (V, 3, 4)),
            expressiondirs=rng.normal(0, 0.01, (V, 3, 3)),
            posedirs=rng.normal(0, 0.01, (V, 3, 36)),
            J_regressor=np.full((J, V), 1 / V),
            parents=[-1, 0, 1, 1, 1],
            lbs_weights=np.full((V, J), 1 / J),
            faces=rng.permuted(np.tile(np.arange(V), (F, 1)), axis=1)[:, :3],
            landmarks=LandmarkEmbedding(
                rng.integers(0, F, 51),
                rng.dirichlet(np.ones(3), 51),
                rng.integers(0, F, (79, 17)),
                rng.dirichlet(np.ones(3), (79, 17)),
            ),
        )
    )
    body = layer.v_template, layer.shapedirs, layer.posedirs, layer.J_regressor, layer.parents, layer.lbs_weights
    points = layer.faces, layer.lmk_faces_idx, layer.lmk_bary_coords, layer.contour_faces_idx, layer.contour_bary_coords
    given = [torch.randn(1, size).mul_(0.1) for size in (7, 15, 4, 3, 3, 3, 3, 6)]
    leaves = [t.clone().requires_grad_() for t in given]
    weights = {}

    def calls(args):
        betas, pose, *named = args
        return {
            "lbs": lambda: ops.flame_lbs(betas, pose, *body)[:1],
            "landmarks": lambda: (ops.flame_landmarks(betas, pose, *body, *points),),
            "head": lambda: ops.flame_head(betas, pose, *body, *points)[::2],
            "layer": lambda: layer(*named)[::2],
            "rodrigues": lambda: (ops.batch_rodrigues(pose.view(5, 3)),),
        }

    def backward(name, call):
        def step():
            outputs = call()
            torch.autograd.backward(outputs, weights.setdefault(name, [torch.ones_like(o) for o in outputs]))

        return step

    made = {f"{name} forward": call for name, call in calls(given).items()}
    return made | {f"{name} backward": backward(name, call) for name, call in calls(leaves).items()}


def serve() -> None:
    """Answers the name of a case with the microseconds that one call of a turn took."""
    made = cases()
    for name in map(str.strip, sys.stdin):
        call = made[name]
        for _ in range(CALLS // 4):  # awake
            call()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        print((time.perf_counter() - start) / CALLS * 1e6, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("here", nargs="?")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=CASES)
    options = parser.parse_args()
    if options.here is None:
        serve()
        return

    def start(path):
        command, environment = [sys.executable, __file__], os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def turn(process, case) -> float:
        print(case, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    best = {case: [float("inf")] * 2 for case in options.cases}
    for _ in range(options.pairs):
        processes = [start(options.here), start(options.other)]
        for n in range(options.rounds):
            for case, times in best.items():
                for i in (0, 1) if n % 2 else (1, 0):
                    times[i] = min(times[i], turn(processes[i], case))
        for process in processes:
            process.stdin.close()
            process.wait()
    print(f"{'microseconds a call':24}{'here':>8}{'other':>8}{'ratio':>8}")
    for case, (here, other) in best.items():
        print(f"{case:24}{here:8.1f}{other:8.1f}{here / other:8.3f}")


if __name__ == "__main__":
    main()
