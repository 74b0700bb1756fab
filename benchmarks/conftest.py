"""Options of the benchmark suite, and what its JSON says of the machine."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    group = parser.getgroup("ringnet_ext benchmarks")
    group.addoption("--quick", action="store_true", help="B = 1 and 64 and K = 150 only, half a minute to two")
    group.addoption("--full", action="store_true", help="K = 400 for every operator, not for lbs alone")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--device", default=device, help=f"cpu or cuda (default: {device})")
    group.addoption(
        "--seconds", type=float, default=0.3, help="per contender and case, at least three calls (default 0.3)"
    )
    group.addoption(
        "--patience",
        type=float,
        default=0,
        help="seconds to wait before a case while other processes are busy (default 0)",
    )


def pytest_benchmark_update_machine_info(config, machine_info):
    import _ringnet_core
    from contenders import versions

    for name in ("node", "release", "processor", "python_build", "python_compiler"):
        machine_info.pop(name, None)
    device = torch.device(config.getoption("--device"))
    machine_info["device"] = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else machine_info.get("cpu", {}).get("brand_raw", "CPU")
    )
    machine_info["device_type"] = device.type
    machine_info["threads"] = torch.get_num_threads()
    machine_info["simd"] = _ringnet_core.simd_level()
    machine_info["packages"] = versions()
    machine_info["load_average"] = os.getloadavg()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """The statistics and what extra_info adds are the result; thousands of single timings aren't."""
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        for name in ("options", "params"):
            entry.pop(name, None)
