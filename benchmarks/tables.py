"""Compact tables of the suite's results, one a machine: python benchmarks/tables.py RUN.json ... --table NAME

The JSON files are written by ``pytest benchmarks/ --benchmark-only --benchmark-json=RUN.json``. Their results go to
benchmarks/results/NAME.csv, and what each run was made with to benchmarks/results/runs.csv. Of several files each case
is taken whole from the run in which other processes were least busy. A case that the table already has is replaced; the
other cases stay.
"""

import argparse
import csv
import io
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = "runs.csv"


@dataclass(frozen=True)
class Run:
    """What a run was made with, and the machine's limits as it measured them."""

    table: str  # the name of the table that has its results
    run: str  # when it ended, UTC
    commit: str  # of this repository; + where the checkout had changes
    machine: str
    threads: int
    simd: str
    packages: str
    load_average: str  # over 1, 5 and 15 minutes, at the end
    limits: str = ""  # how they were measured
    gflops_one_core: float | None = None
    gflops_all_threads: float | None = None
    copy_gb_per_s: float | None = None  # read and written together


@dataclass(frozen=True)
class Entry:
    """A row: one contender of one case."""

    run: str
    operator: str
    coefficients: int
    batch: int
    direction: str  # forward, or forward + backward
    contender: str
    median_ms: float
    min_ms: float
    iqr_ms: float
    # The time over the baseline's in the same round, quartiles over the rounds. The baseline is ringnet_ext;
    # of smplx's modules it is the unchanged module.
    relative_q1: float | None
    relative: float | None
    relative_q3: float | None
    arithmetic_ms: float | None  # of the bound: the multiply-adds alone, at their measured peak
    peak_mib: float | None  # memory at the peak of a call, beyond inputs, results and gradients
    others: float  # the share of the processors that other processes used during the case

    @property
    def case(self) -> tuple[str, int, int, str]:
        return self.operator, self.coefficients, self.batch, self.direction


Case = dict[str, Entry]  # by contender


@dataclass
class Table:
    """The results on one machine, at one number of threads and one SIMD level."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)
    cases: dict[tuple, Case] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The first: they have machine, threads and SIMD level in common."""
        return next(iter(self.runs.values()))

    def select(self, operator: str, coefficients: int, direction: str) -> list[tuple[int, Case]]:
        """The cases of an operator by batch size."""
        wanted = operator, coefficients, direction
        return sorted(
            ((batch, found) for (o, k, batch, d), found in self.cases.items() if (o, k, d) == wanted),
            key=lambda pair: pair[0],
        )

    def limit(self, name: str) -> float | None:
        """The best value that a run has measured."""
        return max((x for run in self.runs.values() if (x := getattr(run, name)) is not None), default=None)

    def updated(self, *newer: "Table") -> "Table":
        """With the cases of the newer tables in place of its own; each the least disturbed of those. Runs of which
        nothing is left are dropped."""
        runs, cases, new = dict(self.runs), dict(self.cases), {}
        for table in newer:
            first = next(iter(runs.values()), table.run)
            if described(table.run) != described(first):
                raise ValueError(
                    f"table {self.name!r} is of {described(first)}, but the run of {table.run.run} is of "
                    f"{described(table.run)}: give it a table of its own (--table)"
                )
            runs |= table.runs
            for case, found in table.cases.items():
                if case not in new or busy(found) < busy(new[case]):
                    new[case] = found
        cases |= new
        used = {entry.run for found in cases.values() for entry in found.values()}
        return Table(self.name, {name: run for name, run in sorted(runs.items()) if name in used}, cases)


def described(run: Run) -> str:
    """What all runs of a table have in common."""
    return f"{run.machine}, {run.threads} threads, {run.simd}"


def busy(found: Case) -> float:
    """The share of the processors that other processes used during a case."""
    return next(iter(found.values())).others


def read_json(path: Path, name: str = "") -> Table:
    """The table of one run, from pytest-benchmark's JSON with the suite's ``extra_info``."""
    try:
        loaded = json.loads(path.read_text())
        machine, stamp, commit = loaded["machine_info"], loaded["datetime"][:16], loaded["commit_info"]
        entries, limits = [], {}
        for benchmark in loaded["benchmarks"]:
            info, stats = benchmark["extra_info"], benchmark["stats"]
            if "limit" in info:
                limits[info["limit"]] = rounded(info.get("flops", info.get("bytes")) / stats["median"] / 1e9)
                limits["method"] = info["method"]
            else:
                entries.append(_entry(stamp, info, stats))
        run = Run(
            table=name,
            run=stamp,
            commit=(commit.get("id") or "")[:7] + "+" * bool(commit.get("dirty")),
            machine=machine["device"],
            threads=machine["threads"],
            simd=machine["simd"],
            packages=", ".join(f"{package} {version}" for package, version in machine["packages"].items()),
            load_average=" ".join(f"{x:.1f}" for x in machine["load_average"]),
            limits=limits.get("method", ""),
            gflops_one_core=limits.get("one core"),
            gflops_all_threads=limits.get("all threads"),
            copy_gb_per_s=limits.get("copy"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the JSON that pytest benchmarks/ --benchmark-only --benchmark-json=FILE writes, "
            f"found something else ({type(error).__name__}: {error})"
        ) from error
    return Table(name, {stamp: run}, _by_case(entries))


def _entry(run: str, info: dict, stats: dict) -> Entry:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else rounded(seconds * 1e3)

    low, middle, high = map(rounded, info.get("relative") or (None,) * 3)
    return Entry(
        run=run,
        operator=info["op"],
        coefficients=info["K"],
        batch=info["B"],
        direction=info["direction"],
        contender=info["contender"],
        median_ms=ms(stats["median"]),
        min_ms=ms(stats["min"]),
        iqr_ms=ms(stats["iqr"]),
        relative_q1=low,
        relative=middle,
        relative_q3=high,
        arithmetic_ms=ms(info.get("fma_seconds") if info["contender"] == "bound" else None),
        peak_mib=rounded(None if info.get("peak_bytes") is None else info["peak_bytes"] / 2**20),
        others=rounded(info["processors_used_by_others"]),
    )


def _by_case(entries: list[Entry]) -> dict[tuple, Case]:
    cases: dict[tuple, Case] = {}
    for entry in entries:
        cases.setdefault(entry.case, {})[entry.contender] = entry
    return cases


def rounded(value: float | None) -> float | None:
    """To five significant digits, so that a page may show three."""
    return None if value is None else float(f"{value:.5g}")


def read(path: Path) -> Table:
    """The table in a CSV file; what its runs were made with is in runs.csv beside it."""
    if path.suffix != ".csv" or path.name == RUNS:
        raise ValueError(f"{path}: expected a table, a file NAME.csv beside {RUNS}")
    runs = {run.run: run for run in _read_rows(path.with_name(RUNS), Run) if run.table == path.stem}
    entries = _read_rows(path, Entry)
    for entry in entries:
        if entry.run not in runs:
            raise ValueError(f"{path}: a row is of the run {entry.run!r}, which {RUNS} beside it doesn't have")
    return Table(path.stem, runs, _by_case(entries))


def read_all(folder: Path = RESULTS) -> list[Table]:
    return [read(path) for path in sorted(folder.glob("*.csv")) if path.name != RUNS]


def write(table: Table, folder: Path = RESULTS) -> None:
    """NAME.csv and the table's rows of runs.csv; those of other tables stay."""
    runs = folder / RUNS
    others = [run for run in (_read_rows(runs, Run) if runs.exists() else []) if run.table != table.name]
    _write_rows(runs, Run, sorted([*others, *table.runs.values()], key=lambda run: (run.table, run.run)))
    _write_rows(
        folder / f"{table.name}.csv", Entry, [entry for case in table.cases.values() for entry in case.values()]
    )


def _read_rows(path: Path, kind: type) -> list:
    columns = {column.name: column.type for column in fields(kind)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise ValueError(f"{path}: expected the columns {','.join(columns)}, found {reader.fieldnames}")
        try:
            return [kind(**{name: _value(row[name], columns[name]) for name in columns}) for row in reader]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _value(text: str, kind: object):
    if kind is str:
        return text
    if kind is int:
        return int(text)
    return None if text == "" and kind is not float else float(text)


def _write_rows(path: Path, kind: type, rows: list) -> None:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [column.name for column in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in asdict(row).items()} for row in rows)
    write_whole(path, lines.getvalue())


def _cell(value):
    return f"{value:.5g}" if isinstance(value, float) and abs(value) < 1e5 else value


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--table", required=True, metavar="NAME", help="of the machine, for instance epyc")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"default: {RESULTS}")
    arguments = parser.parse_args()
    target = arguments.results / f"{arguments.table}.csv"
    try:
        table = read(target) if target.exists() else Table(arguments.table)
        table = table.updated(*(read_json(path, arguments.table) for path in arguments.runs))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    write(table, arguments.results)
    print(f"{target}: {len(table.cases)} cases of {len(table.runs)} runs")


if __name__ == "__main__":
    main()
