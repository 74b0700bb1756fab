"""Pages and a picture of the results in benchmarks/results.

    python benchmarks/report.py                  # writes docs/benchmark*.md and docs/benchmark.png
    python benchmarks/report.py RUN.json ...     # prints the tables of fresh runs, or of any tables (FILE.csv)
    python benchmarks/report.py RUN.json --against benchmarks/results/NAME.csv    # what has changed since

``pytest benchmarks/ --benchmark-only --benchmark-json=RUN.json`` writes RUN.json; tables.py makes a table of it.
"""

import argparse
from pathlib import Path

from tables import Case, Entry, Table, busy, described, read, read_all, read_json, write_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"
OURS, KERNEL, FULL, BOUND = "ringnet_ext", "kernel alone", "full layer", "bound"
UNCHANGED, LINE, ACCELERATED = "smplx", "lbs replaced", "accelerated"
PEERS = ("reference", "torch.compile", "smplx", "body-models", "body-models Warp")
FORWARD, BOTH = "forward", "forward + backward"
TITLES = {
    "rodrigues": "Rodrigues, 5 B rotations",
    "lbs": "lbs",
    "dense": "lbs, no direction zero",
    "landmarks": "landmarks",
    "layer": "whole FLAME layer",
    "fixed": "whole FLAME layer, fixed identity",
}
PUBLISHED = {  # the cases of the summary, by batch size; None: all
    "lbs": None,
    "dense": (1, 64),
    "landmarks": (1, 192),
    "layer": (1, 64),
    "fixed": (1, 64),
    "rodrigues": (64,),
}
READING = """\
*Ours*: the median (and interquartile range) of a call. *Peers*: how many times as long they take, median (and
quartiles) over rounds in which all contenders ran in turns; bold where they are faster. *Of the bound*: how near ours
comes to what the machine can do at all: the longer of the multiply-adds at their measured peak and the bytes at theirs.
*Others*: the share of the processors that other processes used meanwhile.
"""


def duration(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def milliseconds(ms: float) -> str:
    return duration(ms / 1e3)


def ratio(entry: Entry | None, quartiles: bool = False) -> str:
    """How many times our time; where that is less than once, we lost."""
    if entry is None or entry.relative is None:
        return "-"
    text = f"{entry.relative:.3g}x"
    if quartiles:
        text += f" ({entry.relative_q1:.3g}-{entry.relative_q3:.3g})"
    return f"**{text}**" if entry.relative < 1 else text


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def row(found: Case, quartiles: bool, peers: tuple[str, ...]) -> list[str]:
    mine = found[OURS]
    time = milliseconds(mine.median_ms) + (f" ({milliseconds(mine.iqr_ms)})" if quartiles else "")
    bound = f"{found[BOUND].relative:.0%}" if BOUND in found else "-"
    return [time, bound, *(ratio(found.get(name), quartiles) for name in peers)]


def shown(cases: list[Case]) -> tuple[str, ...]:
    """The peers that took part."""
    return tuple(name for name in PEERS if any(name in found for found in cases))


def summary(table: Table) -> str:
    """Every batch size of lbs, some of the rest."""
    rows, peers = [], shown([found for found in table.cases.values() if OURS in found])
    for operator, wanted in PUBLISHED.items():
        for direction in (FORWARD, BOTH):
            for B, found in table.select(operator, 150, direction):
                if OURS in found and (wanted is None or B in wanted):
                    rows.append([TITLES[operator], direction, str(B), *row(found, False, peers)])
    return markdown(["150 coefficients", "direction", "batch", "ours", "of the bound", *peers], rows) if rows else ""


def modules(table: Table) -> str:
    """smplx's modules: times, and how many times as fast they are as unchanged."""

    def fast(entry: Entry) -> str:
        times = f"{1 / entry.relative:.2g}x ({1 / entry.relative_q3:.2g} to {1 / entry.relative_q1:.2g})"
        return f"{milliseconds(entry.median_ms)}, {times}"

    rows = [
        [
            f"{operator}, {coefficients} coefficients",
            direction,
            str(B),
            milliseconds(found[UNCHANGED].median_ms),
            fast(found[LINE]),
            fast(found[ACCELERATED]),
            milliseconds(found[BOUND].median_ms),
            f"{busy(found):.2f}",
        ]
        for (operator, coefficients, B, direction), found in sorted(table.cases.items())
        if {UNCHANGED, LINE, ACCELERATED, BOUND} <= found.keys()
    ]
    header = ["forward of", "direction", "batch", "unchanged", LINE, ACCELERATED, "the bound", "others"]
    return markdown(header, rows) if rows else ""


def runs(table: Table) -> str:
    rows = [
        [run.run.replace("T", " "), run.commit, run.packages, run.load_average.replace(" ", ", ")]
        for run in table.runs.values()
    ]
    return markdown(["run ended, UTC", "commit", "packages", "load average at the end (1, 5, 15 minutes)"], rows)


def limits(table: Table) -> str:
    method = next((run.limits for run in table.runs.values() if run.limits), None)
    if method is None:
        return ""
    said = {
        "gflops_one_core": "GFLOP/s of multiply-adds on one core",
        "gflops_all_threads": "GFLOP/s on all threads",
        "copy_gb_per_s": "GB/s of copying, read and written together",
    }
    measured = [f"{value:.1f} {text}" for name, text in said.items() if (value := table.limit(name)) is not None]
    return f"Measured limits ({method}): {', '.join(measured)}.\n"


def page(table: Table) -> str:
    """Everything that a table holds."""
    parts = [f"# Benchmarks: {described(table.run)}\n", runs(table), limits(table), READING]
    for operator, K in dict.fromkeys(case[:2] for case in table.cases if case[0] in TITLES):
        for direction in (FORWARD, BOTH):
            found = table.select(operator, K, direction)
            peers = ((FULL,) if operator == "fixed" else ()) + shown([case for _, case in found])
            rows = [[str(B), *row(case, True, peers), f"{busy(case):.2f}"] for B, case in found if OURS in case]
            if rows:
                parts += [
                    f"## {titled(operator, K)}, {direction}\n",
                    markdown(["B", "ours", "of the bound", *peers, "others"], rows),
                ]
    for title, text in (
        ("Share of the multiply-add peak, lbs", peak_share(table)),
        ("smplx's body models, the module's own forward", modules(table)),
        ("Peak memory, forward + backward, beyond inputs, results and gradients", memory(table)),
    ):
        parts += [f"## {title}\n", text] if text else []
    return "\n".join(part for part in parts if part)


def titled(operator: str, K: int) -> str:
    return TITLES[operator] if operator == "rodrigues" else f"{TITLES[operator]}, K = {K}"


def peak_share(table: Table) -> str:
    """Time that the multiply-adds alone would take at their measured peak, as a share of the time taken."""

    def share(found: Case, name: str) -> str:
        needed = found[BOUND].arithmetic_ms if BOUND in found else None
        return f"{needed / found[name].median_ms:.0%}" if needed and name in found else "-"

    rows = []
    for K in sorted({case[1] for case in table.cases if case[0] == "lbs"}):
        forward, both = (dict(table.select("lbs", K, direction)) for direction in (FORWARD, BOTH))
        for B in sorted(forward.keys() & both.keys()):
            rows.append([f"{K}", str(B), share(forward[B], KERNEL), share(forward[B], OURS), share(both[B], OURS)])
    return (
        markdown(["K", "B", "forward, kernel alone", "forward, call", "forward + backward, call"], rows) if rows else ""
    )


def memory(table: Table) -> str:
    """In multiples of the size of the results."""
    measured = {
        case: found for case, found in table.cases.items() if any(e.peak_mib is not None for e in found.values())
    }
    peers, rows = shown(list(measured.values())), []
    for (operator, K, B, _), found in measured.items():
        size = B * 12 * {"lbs": 5023, "dense": 5023, "layer": 5023 + 68, "landmarks": 68}[operator] / 2**20
        peaks = [found[name].peak_mib if name in found else None for name in (OURS, *peers)]
        cells = ["-" if peak is None else f"{peak:.1f} MiB ({peak / size:.2g}x)" for peak in peaks]
        rows.append([f"{titled(operator, K)}, B = {B}", *cells])
    return markdown(["", "ours", *peers], rows) if rows else ""


def index(tables: list[Table]) -> str:
    """The summary of every machine."""
    parts = [
        "# Benchmarks\n",
        "[benchmarks/README.md](../benchmarks/README.md) says how this is measured, and how to measure your machine.\n",
        READING,
    ]
    if any(pictured(table) for table in tables):
        parts.append("![Time over batch size, one line a contender, the machine's bound dashed](benchmark.png)\n")
    for table in tables:
        parts += [
            f"## {described(table.run)}\n",
            f"[All batch sizes, operators, quartiles and limits]({page_name(table)})\n",
            summary(table),
        ]
    return "\n".join(parts)


def page_name(table: Table) -> str:
    return f"benchmark_{table.name}.md"


def comparison(new: Table, old: Table) -> str:
    """Our times now and then; and the bound's, which says how much faster or slower the machine was itself."""
    rows = []
    for case, found in new.cases.items():
        for name in (OURS, ACCELERATED):
            if name in found and name in old.cases.get(case, {}):
                then = old.cases[case]
                machine = found[BOUND].median_ms / then[BOUND].median_ms if BOUND in found and BOUND in then else None
                before, after = then[name].median_ms, found[name].median_ms
                cells = milliseconds(before), milliseconds(after), f"{after / before:.2f}"
                rows.append(
                    [
                        f"{case[0]}, K = {case[1]}, {case[3]}",
                        str(case[2]),
                        *cells,
                        "-" if machine is None else f"{machine:.2f}",
                    ]
                )
    return markdown(["", "batch", "then", "now", "now / then", "the bound, now / then"], rows)


PANELS = [("lbs", FORWARD), ("lbs", BOTH), ("landmarks", BOTH), ("layer", BOTH)]


def pictured(table: Table) -> bool:
    """Whether it has a curve for every panel."""
    return all(len(table.select(operator, 150, direction)) > 1 for operator, direction in PANELS)


def plot(tables: list[Table], path: Path) -> None:
    """Time over batch, a line for each contender, the bound dashed; a row of panels a machine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(3.6 * len(PANELS), 3.4 * len(tables) + 0.5), layout="constrained")
    colours = {
        OURS: "#c0392b",
        "reference": "#7f8c8d",
        "torch.compile": "#2980b9",
        "smplx": "#27ae60",
        "body-models": "#8e44ad",
        "body-models Warp": "#d68910",
        BOUND: "black",
    }
    lines = {}
    for part, table in zip(figure.subfigures(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        part.suptitle(f"FLAME, 5023 vertices, K = 150; {table.run.machine}, {table.run.threads} threads", fontsize=11)
        axes = part.subplots(1, len(PANELS), sharey=True)
        for axis, (operator, direction) in zip(axes, PANELS, strict=True):
            points = table.select(operator, 150, direction)
            for name, colour in colours.items():
                xy = [(B, found[name].median_ms) for B, found in points if name in found]
                if not xy:
                    continue
                style = {"linestyle": "--", "linewidth": 1.2} if name == BOUND else {"marker": "o", "markersize": 3.5}
                if name == OURS:
                    style |= {"linewidth": 2.4, "zorder": 5}
                (lines[name],) = axis.loglog(*zip(*xy, strict=True), color=colour, label=name, **style)
            axis.set_title(f"{TITLES[operator]}, {direction}", fontsize=10)
            axis.set_xlabel("batch")
            axis.set_xticks([B for B, _ in points if B != 192], [str(B) for B, _ in points if B != 192], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3, linewidth=0.5)
        axes[0].set_ylabel("time of a call, ms")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    temporary.replace(path)


def pages(tables: list[Table]) -> dict[str, str]:
    """The text of each page by its file's name."""
    return {"benchmark.md": index(tables)} | {page_name(table): page(table) for table in tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="RUN.json or NAME.csv")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare our times with those in this one")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help=f"write the pages here (without files: {DOCS})")
    arguments = parser.parse_args()

    def load(path: Path) -> Table:
        return read_json(path, path.stem) if path.suffix == ".json" else read(path)

    try:
        tables = [load(path) for path in arguments.files] or read_all()
        against = arguments.against and load(arguments.against)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    docs = arguments.docs or (None if arguments.files else DOCS)
    if docs:
        for name, text in pages(tables).items():
            write_whole(docs / name, text)
        if any(map(pictured, tables)):
            plot([table for table in tables if pictured(table)], docs / "benchmark.png")
        print(f"{docs}: {', '.join(pages(tables))}")
    for table in tables if arguments.files else ():
        print(f"{table.name}: {described(table.run)}")
        if against:
            print(f"then: {described(against.run)}\n\n{comparison(table, against)}")
        else:
            print("\n" + "\n".join(filter(None, (summary(table), modules(table)))))


if __name__ == "__main__":
    main()
