"""What was built: :func:`show`, and the check that source and build belong together."""

import torch

from ._version import __version__


def check_core() -> None:
    """Raise ImportError, saying what to do, where the compiled core is missing or belongs to another version."""
    try:
        import _ringnet_core
    except ImportError as error:
        raise ImportError(
            f"ringnet_ext {__version__} needs its compiled core, _ringnet_core, which can't be imported ({error}). "
            "Build and install it with `pip install .` in the source tree."
        ) from error
    if _ringnet_core.__version__ != __version__:
        raise ImportError(
            f"ringnet_ext is version {__version__}, but the installed _ringnet_core is {_ringnet_core.__version__}. "
            "Bring them together with `pip install .` in the source tree."
        )


def show() -> None:
    """Print the version, CUDA and its architectures, the SIMD level and the threads in use."""
    import _ringnet_core as core

    cuda = f"yes, architectures {core.cuda_architectures}" if core.cuda_architectures else "no"
    print(f"ringnet_ext {core.__version__}")
    print(f"  core     {core.__file__}")
    print(f"  CUDA     {cuda}")
    print(f"  SIMD     {core.simd_level()}")
    print(f"  threads  {torch.get_num_threads() if core.openmp else 1} (OpenMP {'yes' if core.openmp else 'no'})")
    print(f"  torch    {torch.__version__}")
