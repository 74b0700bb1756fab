"""Tables and a plot from the suite's results: python benchmarks/report.py benchmarks/results/NAME.json

Of several runs on one machine each case is taken whole from the run in which other processes were least busy.
Prints the README's table as markdown. Writes all tables to docs/benchmark.md and the plot to docs/benchmark.png.
"""

import argparse
import json
from pathlib import Path

OURS, KERNEL, FULL, BOUND = "ringnet_ext", "kernel alone", "full layer", "bound"
PEERS = ("reference", "torch.compile", "smplx", "body-models", "body-models Warp")
FORWARD, BOTH = "forward", "forward + backward"
TITLES = {
    "rodrigues": "Rodrigues, 5 B rotations", "lbs": "lbs", "dense": "lbs, no direction zero", "landmarks": "landmarks",
    "layer": "whole FLAME layer", "fixed": "whole FLAME layer, fixed identity",
}  # fmt: skip


class Results:
    """Entries of the JSON by (op, K, B, direction) and contender."""

    def __init__(self, paths: list[Path]):
        self.cases: dict[tuple, dict[str, dict]] = {}
        self.limits: dict[str, float] = {}
        self.bodies: dict[tuple, dict[str, dict]] = {}  # by (model, direction, B) and contender
        for path in paths:
            loaded = json.loads(path.read_text())
            self.machine, self.date = loaded["machine_info"], loaded["datetime"][:10]
            cases: dict[tuple, dict[str, dict]] = {}
            for entry in loaded["benchmarks"]:
                info, stats = entry["extra_info"], entry["stats"]
                if "body_model" in info:
                    case = info["body_model"], info["direction"], info["B"]
                    self.bodies.setdefault(case, {})[info["contender"]] = {**info, **stats}
                elif "limit" in info:
                    speed = info.get("flops", info.get("bytes")) / stats["median"]
                    self.limits[info["limit"]] = max(speed, self.limits.get(info["limit"], 0))
                    self.method = info["method"]
                else:
                    cases.setdefault((info["op"], info["K"], info["B"], info["direction"]), {})[info["contender"]] = {
                        **info,
                        **stats,
                    }
            for case, found in cases.items():
                if case not in self.cases or busy(found) < busy(self.cases[case]):
                    self.cases[case] = found

    def select(self, op: str, K: int, direction: str) -> list[tuple[int, dict[str, dict]]]:
        """Of one operator, by batch size."""
        return sorted(
            (case[2], found) for case, found in self.cases.items() if case[:2] + case[3:] == (op, K, direction)
        )


def busy(found: dict[str, dict]) -> float:
    """The share of the processors that other processes used during a case."""
    return next(iter(found.values()))["processors_used_by_others"]


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def ratio(entry: dict | None, quartiles: bool = False) -> str:
    """How many times our time; where that is less than once, we lost."""
    if entry is None:
        return "-"
    low, median, high = entry["time_over_ours"]
    text = f"{median:.3g}x"
    if quartiles:
        text += f" ({low:.3g}-{high:.3g})"
    return f"**{text}**" if median < 1 else text


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def row(found: dict[str, dict], quartiles: bool, peers: tuple[str, ...] = PEERS) -> list[str]:
    mine = found[OURS]
    time = duration(mine["median"]) + (f" ({duration(mine['iqr'])})" if quartiles else "")
    return [time, f"{found[BOUND]['time_over_ours'][1]:.0%}", *(ratio(found.get(name), quartiles) for name in peers)]


def shown(results: Results) -> list[str]:
    """The peers that took part."""
    return [name for name in PEERS if any(name in found for found in results.cases.values())]


def summary(results: Results) -> str:
    """The README's table: every batch size of lbs, one of the rest."""
    header = ["K = 150", "direction", "batch", "ours", "of the bound", *PEERS]
    rows = []
    for op, wanted in (
        ("lbs", None), ("dense", (1, 64)), ("landmarks", (1, 192)), ("layer", (1, 64)), ("fixed", (1, 64)), ("rodrigues", (64,)),
    ):  # fmt: skip
        for direction in (FORWARD, BOTH):
            for B, found in results.select(op, 150, direction):
                if OURS in found and (wanted is None or B in wanted):
                    rows.append([TITLES[op], direction, str(B), *row(found, False)])
    return markdown(header, rows)


def bodies(results: Results) -> str:
    """smplx's modules: times, and how many times as fast as they are unchanged."""
    header, rows = (
        ["module's forward", "direction", "batch", "smplx", "lbs replaced", "accelerated", "the bound", "others"],
        [],
    )
    for (model, direction, B), found in results.bodies.items():

        def fast(way):
            low, middle, high = found[way]["times_as_fast_as_smplx"]
            return f"{duration(found[way]['median'])}, {middle:.2g}x ({low:.2g} to {high:.2g})"

        rows.append([
            model, direction, str(B), duration(found["smplx"]["median"]), fast("lbs replaced"), fast("accelerated"),
            duration(found[BOUND]["median"]), f"{busy(found):.2f}",
        ])  # fmt: skip
    return markdown(header, rows)


def everything(results: Results) -> str:
    machine = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    limits = results.limits
    load = ", ".join(f"{x:.1f}" for x in machine["load_average"])
    parts = [
        f"# Benchmarks\n\n{results.date}, {machine['device']}, {machine['threads']} threads, "
        f"SIMD level {machine['simd']}; {packages}. "
        f"Load average at the end (1, 5, 15 minutes): {load}.\n",
        f"Measured limits ({results.method}): {limits['one core'] / 1e9:.1f} GFLOP/s of multiply-adds on one core, "
        f"{limits['all threads'] / 1e9:.1f} on all threads; "
        f"copying {limits['copy'] / 1e9:.1f} GB/s, read and written together.\n"
        if limits
        else "",
        "Ours: median (interquartile range) of a call. Peers: how many times as long, median (quartiles) over rounds "
        "in which all contenders ran in turns; bold where they are faster. Of the bound: how near ours comes to what "
        "the machine can do at all, the longer of the multiply-adds at their measured peak and the bytes at theirs. "
        "Others: the share of the processors that other processes used meanwhile.\n",
    ]
    for op, K in dict.fromkeys(case[:2] for case in results.cases):
        peers = (FULL, *PEERS) if op == "fixed" else PEERS
        for direction in (FORWARD, BOTH):
            rows = [
                [str(B), *row(found, True, peers), f"{busy(found):.2f}"]
                for B, found in results.select(op, K, direction)
                if OURS in found and BOUND in found
            ]
            if rows:
                title = TITLES[op] if op == "rodrigues" else f"{TITLES[op]}, K = {K}"
                parts.append(
                    f"## {title}, {direction}\n\n" + markdown(["B", "ours", "of the bound", *peers, "others"], rows)
                )
    parts.append("## Share of the multiply-add peak, lbs\n\n" + peak_share(results))
    if results.bodies:
        parts.append("## smplx's body models, the module's own forward\n\n" + bodies(results))
    if memory(results):
        parts.append("## Peak memory, forward + backward, beyond inputs, results and gradients\n\n" + memory(results))
    return "\n".join(parts)


def peak_share(results: Results) -> str:
    """Time that the multiply-adds alone would take at their measured peak, as a share of the time taken."""
    rows = []
    for K in sorted({case[1] for case in results.cases if case[0] == "lbs"}):
        forward, both = (dict(results.select("lbs", K, direction)) for direction in (FORWARD, BOTH))
        for B in sorted(forward.keys() & both.keys()):

            def share(found, name):
                return f"{found[name]['fma_seconds'] / found[name]['median']:.0%}" if name in found else "-"

            rows.append([f"{K}", str(B), share(forward[B], KERNEL), share(forward[B], OURS), share(both[B], OURS)])
    return markdown(["K", "B", "forward, kernel alone", "forward, call", "forward + backward, call"], rows)


def memory(results: Results) -> str:
    """In multiples of the size of the results."""
    rows = []
    for (op, K, B, direction), found in results.cases.items():
        cells = {name: entry.get("peak_bytes") for name, entry in found.items()}
        if any(cells.values()) and direction == BOTH:
            size = {
                "lbs": B * 5023 * 12,
                "layer": B * (5023 + 68) * 12,
                "landmarks": B * 68 * 12,
                "rodrigues": 5 * B * 36,
            }[op]
            text = [
                "-" if cells.get(name) is None else f"{cells[name] / 2**20:.1f} MiB ({cells[name] / size:.2g}x)"
                for name in (OURS, *PEERS)
            ]
            rows.append([f"{TITLES[op]}" + ("" if op == "rodrigues" else f", K = {K}") + f", B = {B}", *text])
    return markdown(["", "ours", *PEERS], rows) if rows else ""


def plot(results: Results, path: Path) -> None:
    """Time over batch, a line for each contender, the bound dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("lbs", FORWARD), ("lbs", BOTH), ("landmarks", BOTH), ("layer", BOTH)]
    panels = [panel for panel in panels if results.select(panel[0], 150, panel[1])]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    colours = {
        OURS: "#c0392b", "reference": "#7f8c8d", "torch.compile": "#2980b9", "smplx": "#27ae60",
        "body-models": "#8e44ad", "body-models Warp": "#d68910", BOUND: "black",
    }  # fmt: skip
    lines = {}
    for axis, (op, direction) in zip(axes[0], panels):
        points = results.select(op, 150, direction)
        for name, colour in colours.items():
            xy = [(B, found[name]["median"] * 1e3) for B, found in points if name in found]
            if not xy:
                continue
            style = {"linestyle": "--", "linewidth": 1.2} if name == BOUND else {"marker": "o", "markersize": 3.5}
            if name == OURS:
                style |= {"linewidth": 2.4, "zorder": 5}
            (lines[name],) = axis.loglog(*zip(*xy), color=colour, label=name, **style)
        axis.set_title(f"{TITLES[op]}, {direction}", fontsize=10)
        axis.set_xlabel("batch")
        axis.set_xticks([B for B, _ in points if B != 192], [str(B) for B, _ in points if B != 192], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3, linewidth=0.5)
    axes[0][0].set_ylabel("time of a call, ms")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    figure.suptitle(
        f"FLAME, 5023 vertices, K = 150; {results.machine['device']}, {results.machine['threads']} threads", fontsize=11
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", type=Path, nargs="+", help="written by pytest benchmarks/ --benchmark-only --benchmark-json"
    )
    parser.add_argument(
        "--docs", type=Path, default=Path(__file__).resolve().parents[1] / "docs", help="folder to write to"
    )
    parser.add_argument("--name", default="benchmark", help="of the files written there")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    plot(results, arguments.docs / f"{arguments.name}.png")
    temporary = arguments.docs / f".{arguments.name}.md"
    temporary.write_text(everything(results))
    temporary.replace(arguments.docs / f"{arguments.name}.md")
    print(summary(results))
    if results.bodies:
        print("\n" + bodies(results))


if __name__ == "__main__":
    main()
