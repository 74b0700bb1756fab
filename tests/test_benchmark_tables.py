"""The compact tables of benchmark results, and the pages that are made from them."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
if not (BENCHMARKS / "tables.py").exists():
    pytest.skip("benchmarks/ is not here: a source distribution leaves it out", allow_module_level=True)

FORWARD, BOTH = "forward", "forward + backward"


@pytest.fixture(scope="module")
def tables():
    return _module("tables")


@pytest.fixture(scope="module")
def report():
    return _module("report")


def _module(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def benchmark(contender, median, *, op="lbs", K=150, B=64, direction=FORWARD, relative=None, others=0.0, **more):
    """An entry of pytest-benchmark's JSON as the suite makes it; seconds."""
    info = {"op": op, "K": K, "B": B, "direction": direction, "contender": contender}
    info |= {"relative": relative or [1.0] * 3, "processors_used_by_others": others, **more}
    return {"extra_info": info, "stats": {"median": median, "min": 0.9 * median, "iqr": 0.1 * median}}


def write_run(path, *entries, time="2026-01-02T03:04:05", device="A CPU", threads=2, simd="avx2"):
    machine = {"device": device, "threads": threads, "simd": simd, "packages": {"torch": "2.13.0", "smplx": "0.1.28"}}
    machine["load_average"] = [0.5, 0.25, 0.125]
    commit = {"id": "0123456789abcdef", "dirty": True}
    path.write_text(
        json.dumps({"machine_info": machine, "datetime": time, "commit_info": commit, "benchmarks": list(entries)})
    )
    return path


def test_a_table_holds_what_the_run_measured(tables, tmp_path):
    limits = [
        {"extra_info": {"limit": "one core", "flops": 1e9, "method": "a loop"}, "stats": {"median": 0.01}},
        {"extra_info": {"limit": "copy", "bytes": 2e9, "method": "a loop"}, "stats": {"median": 0.1}},
    ]
    run = write_run(
        tmp_path / "run.json",
        benchmark("ringnet_ext", 0.00123456, peak_bytes=3 << 20),
        benchmark("smplx", 0.0123, relative=[9.0, 10.0, 11.0], peak_bytes=None),
        benchmark("bound", 0.001, relative=[0.8, 0.81, 0.82], fma_seconds=0.0005),
        *limits,
    )
    tables.write(tables.read_json(run, "mine"), tmp_path)
    table = tables.read(tmp_path / "mine.csv")
    ((case, found),) = table.cases.items()
    assert case == ("lbs", 150, 64, FORWARD)
    assert found["ringnet_ext"].median_ms == pytest.approx(1.23456, rel=1e-4)
    assert found["ringnet_ext"].min_ms == pytest.approx(0.9 * 1.23456, rel=1e-4)
    assert found["ringnet_ext"].iqr_ms == pytest.approx(0.1 * 1.23456, rel=1e-4)
    assert found["ringnet_ext"].peak_mib == 3 and found["smplx"].peak_mib is None
    assert (found["smplx"].relative_q1, found["smplx"].relative, found["smplx"].relative_q3) == (9, 10, 11)
    assert found["bound"].arithmetic_ms == 0.5 and found["smplx"].arithmetic_ms is None
    assert table.run == tables.Run(
        table="mine",
        run="2026-01-02T03:04",
        commit="0123456+",
        machine="A CPU",
        threads=2,
        simd="avx2",
        packages="torch 2.13.0, smplx 0.1.28",
        load_average="0.5 0.2 0.1",
        limits="a loop",
        gflops_one_core=100,
        gflops_all_threads=None,
        copy_gb_per_s=20,
    )


def test_each_case_is_of_the_least_disturbed_run(tables, tmp_path):
    first = write_run(
        tmp_path / "1.json",
        *(benchmark(who, t, B=1, others=0.3) for who, t in (("ringnet_ext", 1e-3), ("smplx", 9e-3))),
        *(benchmark(who, t, B=8, others=0.1) for who, t in (("ringnet_ext", 2e-3), ("smplx", 8e-3))),
        time="2026-01-01T00:00:00",
    )
    second = write_run(
        tmp_path / "2.json",
        *(benchmark(who, t, B=1, others=0.2) for who, t in (("ringnet_ext", 3e-3), ("smplx", 7e-3))),
        *(benchmark(who, t, B=8, others=0.2) for who, t in (("ringnet_ext", 4e-3), ("smplx", 6e-3))),
        time="2026-01-01T01:00:00",
    )
    for order in ((first, second), (second, first)):
        table = tables.Table("mine").updated(*(tables.read_json(path, "mine") for path in order))
        medians = {B: [entry.median_ms for entry in found.values()] for B, found in table.select("lbs", 150, FORWARD)}
        assert medians == {1: [3, 7], 8: [2, 8]}


def test_a_new_run_replaces_its_cases_and_no_others(tables, tmp_path):
    def command(name, *runs):
        arguments = [*runs, "--table", name, "--results", tmp_path]
        return subprocess.run(
            [sys.executable, BENCHMARKS / "tables.py", *arguments], capture_output=True, text=True, timeout=60
        )

    old = write_run(
        tmp_path / "old.json",
        *(benchmark("ringnet_ext", 1e-3, B=B, others=0.0) for B in (1, 8)),
        time="2026-01-01T00:00",
    )
    new = write_run(tmp_path / "new.json", benchmark("ringnet_ext", 2e-3, B=8, others=0.4), time="2026-02-01T00:00:00")
    other = write_run(tmp_path / "other.json", benchmark("ringnet_ext", 5e-3), device="Another CPU")
    for arguments in (("mine", old), ("other", other), ("mine", new)):
        assert command(*arguments).returncode == 0
    table = tables.read(tmp_path / "mine.csv")
    assert {B: found["ringnet_ext"].median_ms for B, found in table.select("lbs", 150, FORWARD)} == {1: 1, 8: 2}
    assert set(table.runs) == {"2026-01-01T00:00", "2026-02-01T00:00"}
    assert [t.name for t in tables.read_all(tmp_path)] == ["mine", "other"]

    before = (tmp_path / "mine.csv").read_bytes()
    refused = command("mine", other)
    assert refused.returncode == 1 and "Another CPU" in refused.stderr and "a table of its own" in refused.stderr
    assert (tmp_path / "mine.csv").read_bytes() == before

    whole = write_run(
        tmp_path / "whole.json", *(benchmark("ringnet_ext", 3e-3, B=B) for B in (1, 8)), time="2026-03-01T00:00"
    )
    assert command("mine", whole).returncode == 0
    assert set(tables.read(tmp_path / "mine.csv").runs) == {"2026-03-01T00:00"}


@pytest.mark.parametrize("setting", [{"device": "B"}, {"threads": 4}, {"simd": "avx512"}], ids=lambda s: next(iter(s)))
def test_machines_threads_and_simd_levels_are_not_mixed(tables, tmp_path, setting):
    one = tables.read_json(write_run(tmp_path / "1.json", benchmark("ringnet_ext", 1e-3)), "mine")
    two = tables.read_json(write_run(tmp_path / "2.json", benchmark("ringnet_ext", 1e-3), **setting), "mine")
    with pytest.raises(
        ValueError, match=r"table 'mine' is of A CPU, 2 threads, avx2, but .*: give it a table of its own"
    ):
        one.updated(two)


def test_files_that_are_no_results_are_refused(tables, tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"machine_info": ')
    for name in ("list.json", "half.json"):
        with pytest.raises(ValueError, match=f"{name}: expected the JSON that pytest benchmarks/"):
            tables.read_json(tmp_path / name)
    tables.write(tables.read_json(write_run(tmp_path / "run.json", benchmark("ringnet_ext", 1e-3)), "mine"), tmp_path)
    path = tmp_path / "mine.csv"
    good = path.read_text()
    for bad, message in (
        (good.replace("median_ms", "median"), "expected the columns run,operator,"),
        (good.replace("2026-01-02T03:04", "2026-01-03T00:00"), "a row is of the run '2026-01-03T00:00'"),
        (good.replace(",150,", ",many,"), "line 2: invalid literal"),
    ):
        assert bad != good
        path.write_text(bad)
        with pytest.raises(ValueError, match=message):
            tables.read(path)


def test_a_page_says_who_is_faster_and_by_how_much(tables, report, tmp_path):
    run = write_run(
        tmp_path / "run.json",
        benchmark("ringnet_ext", 0.004),
        benchmark("kernel alone", 0.002, relative=[0.4, 0.5, 0.6]),
        benchmark("smplx", 0.012, relative=[2.0, 3.0, 4.0]),
        benchmark("torch.compile", 0.002, relative=[0.25, 0.5, 0.75]),
        benchmark("bound", 0.001, relative=[0.2, 0.25, 0.3], fma_seconds=0.0005),
        benchmark("ringnet_ext", 0.01, direction=BOTH, peak_bytes=2 * 64 * 5023 * 12),
        benchmark("bound", 0.001, direction=BOTH, fma_seconds=0.001),
        benchmark("smplx", 0.006, op="smplx.FLAME", K=20),
        benchmark("lbs replaced", 0.003, op="smplx.FLAME", K=20, relative=[0.4, 0.5, 0.8]),
        benchmark("accelerated", 0.001, op="smplx.FLAME", K=20, relative=[0.125, 0.2, 0.25]),
        benchmark("bound", 0.0005, op="smplx.FLAME", K=20),
    )
    table = tables.read_json(run, "mine")
    page = report.page(table)
    assert "| B | ours | of the bound | torch.compile | smplx | others |" in page
    assert "| 64 | 4 ms (400 us) | 25% | **0.5x (0.25-0.75)** | 3x (2-4) | 0.00 |" in page
    assert "| 150 | 64 | 25% | 12% | 10% |" in page  # of the multiply-add peak: kernel, call, with backward
    assert "| 3.7 MiB (1x) |" not in page and "| 7.4 MiB (2x) |" in page
    module = (
        "| smplx.FLAME, 20 coefficients | forward | 64 | 6 ms | 3 ms, 2x (1.2 to 2.5) | 1 ms, 5x (4 to 8) | 500 us |"
    )
    assert module in page
    assert "| lbs | forward | 64 | 4 ms | 25% | **0.5x** | 3x |" in report.summary(table)

    slower = write_run(
        tmp_path / "slower.json", benchmark("ringnet_ext", 0.006), benchmark("bound", 0.002), benchmark("smplx", 1.0)
    )
    compared = report.comparison(tables.read_json(slower, "now"), table)
    assert "| lbs, K = 150, forward | 64 | 4 ms | 6 ms | 1.50 | 2.00 |" in compared


def test_the_published_pages_are_those_of_the_published_tables(tables, report):
    published = tables.read_all()
    assert {"epyc", "xeon"} <= {table.name for table in published}
    for name, text in report.pages(published).items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name}: run python benchmarks/report.py"
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / "docs" / link).exists(), f"docs/{name} points to {link}"


def test_results_stay_small():
    """Every run's JSON is half a megabyte; a table of it has what a comparison needs."""
    assert sum(path.stat().st_size for path in (BENCHMARKS / "results").iterdir()) < 150_000


def test_the_suite_writes_what_the_tables_read(tables, report, tmp_path):
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install '.[bench]'")
    pytest.importorskip("smplx", reason="needs smplx: pip install '.[bench]'")
    path = tmp_path / "run.json"
    chosen = "rodrigues-forward-B1- and (ringnet_ext or smplx or bound) or MANO-forward-B1- or test_limits and core"
    command = [sys.executable, "-m", "pytest", BENCHMARKS, "-q", "-p", "no:cacheprovider", "--benchmark-only"]
    command += ["--device", "cpu", "--seconds", "0.01", "-k", chosen, f"--benchmark-json={path}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    table = tables.read_json(path, "mine")
    assert set(table.cases) == {("rodrigues", 150, 1, FORWARD), ("smplx.MANO", 10, 1, FORWARD)}
    for (operator, *_), found in table.cases.items():
        baseline = "smplx" if operator.startswith("smplx.") else "ringnet_ext"
        assert found[baseline].relative == 1
        assert all(0 < entry.min_ms <= entry.median_ms for entry in found.values())
    slower = table.cases["rodrigues", 150, 1, FORWARD]
    assert slower["bound"].relative < 1 < slower["smplx"].relative  # the same formula, eager
    assert table.limit("gflops_one_core") > 0.1
    assert "smplx.MANO, 10 coefficients" in report.page(table)
