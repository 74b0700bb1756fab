"""What was built and how it fits this machine: :func:`facts`, :func:`problems`, :func:`show`. And the check that source
and build belong together."""

import re

from ._version import __version__


def check_core() -> None:
    """Raise ImportError, saying what to do, where the compiled core is missing or belongs to another version."""
    import torch  # noqa: F401  # before the core, which then uses the OpenMP library that PyTorch has brought

    try:
        import _ringnet_core
    except ImportError as error:
        if re.match(r"lib(gomp|i?omp)", str(error)):
            raise ImportError(
                f"ringnet_ext needs an OpenMP library, and neither PyTorch nor this system has it ({error}). Install "
                "it (Debian: libgomp1; Fedora: libgomp; conda: _openmp_mutex), or build the core for one thread: "
                "`pip install . -C cmake.define.RINGNET_OPENMP=OFF` in the source tree."
            ) from error
        raise ImportError(
            f"ringnet_ext {__version__} needs its compiled core, _ringnet_core, which can't be imported ({error}). "
            "Build and install it with `pip install .` in the source tree."
        ) from error
    if _ringnet_core.__version__ != __version__:
        raise ImportError(
            f"ringnet_ext is version {__version__}, but the installed _ringnet_core is {_ringnet_core.__version__}. "
            "Bring them together with `pip install .` in the source tree."
        )


def openmp_libraries() -> list[str]:
    """The paths of the OpenMP libraries that this process has loaded, whoever wanted them."""
    from threadpoolctl import threadpool_info

    return sorted(pool["filepath"] for pool in threadpool_info() if pool["user_api"] == "openmp")


def facts() -> dict[str, str]:
    """What an issue report needs to say of the compiled core and its threads: under each name a value of one line."""
    import _ringnet_core as core
    import torch

    return {
        "ringnet_ext": core.__version__,
        "core": core.__file__,
        "compiler": core.compiler,
        "CUDA": f"yes, architectures {core.cuda_architectures}" if core.cuda_architectures else "no",
        "SIMD": core.simd_level(),
        "threads": str(torch.get_num_threads()) if core.openmp else "1, for the core was built without OpenMP",
        "OpenMP": ", ".join(openmp_libraries()) or "not loaded",
        "torch": torch.__version__,
    }


def problems() -> list[str]:
    """What slows the operators down or keeps them from running here: for each problem one line that says what to do."""
    import _ringnet_core as core
    import torch

    found = []
    libraries = openmp_libraries()
    if len(libraries) > 1:
        found.append(
            f"{len(libraries)} OpenMP libraries are loaded: {', '.join(libraries)}. Each has threads of its own, "
            "and they compete for the cores. If a wheel of ringnet_ext brought one, install from source with "
            "`pip install .`; otherwise import ringnet_ext in a process without the package that brought the other one."
        )
    if torch.cuda.is_available():
        reinstall = "install it anew on this machine with `pip install . -C cmake.define.RINGNET_CUDA=ON`."
        if not core.cuda_architectures:
            found.append(f"PyTorch finds a GPU, but ringnet_ext was built without CUDA: {reinstall}")
        else:
            for device in range(torch.cuda.device_count()):
                if not _runs_on(core.cuda_architectures, torch.cuda.get_device_capability(device)):
                    found.append(
                        f"cuda:{device}, {torch.cuda.get_device_name(device)}, can't run kernels that were built for "
                        f"architectures {core.cuda_architectures}: {reinstall}"
                    )
    return found


def _runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU can run kernels built for these architectures, named as CMake names them.

    It runs code of its own generation that isn't newer than itself, and the driver compiles older PTX for it. A name
    without a number, like ``all``, covers every GPU."""
    for architecture in architectures.split():
        if not (match := re.match(r"(\d+)(\d)([af]?)(-real|-virtual)?$", architecture)):
            return True
        major, minor, only, kind = int(match[1]), int(match[2]), match[3], match[4]
        if capability == (major, minor):
            return True
        if not only and capability >= (major, minor) and (kind != "-real" or capability[0] == major):
            return True
    return False


def show() -> None:
    """Print what :func:`facts` says, and the problems."""
    for name, value in facts().items():
        print(f"{name:12} {value}")
    for problem in problems():
        print(f"warning: {problem}")
