"""Build the C++ op `hrm::magic_norm` for ExecuTorch's Python runtime and for torch, on Linux.

    python -m hrm_edge.export.to_executorch.magic_norm_op -o libmagic_norm.so
    hrm-edge export CHECKPOINT -o BUNDLE -t executorch --norm-op
    HRM_EDGE_OPERATORS=libmagic_norm.so hrm-edge generate BUNDLE "Hello"

The environment may name another compiler and its options: CXX, CXXFLAGS. For a runtime of one's own
compile magic_norm.cpp beside its other kernels instead; without HRM_EDGE_TORCH it needs no torch.
"""

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click

from hrm_edge.errors import HRMEdgeError
from hrm_edge.quiet import quiet_imports

SOURCE = Path(__file__).with_name("magic_norm.cpp")
OPTIONS = "-O3 -march=native -DNDEBUG"


def build(out: Path) -> None:
    """Compile the op into the shared library `out`; takes about ten seconds.

    Raises HRMEdgeError naming the compiler if there is none or it fails.
    """
    command = [*shlex.split(os.environ.get("CXX", "g++")), *_arguments(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise HRMEdgeError(
            f"{command[0]}: no such C++ compiler ({error.strerror}); install one (Debian: apt "
            "install g++) or name one in the environment: CXX"
        ) from None
    if done.returncode:
        lines = [s for s in done.stderr.splitlines() if "error" in s or "ld: " in s]
        raise HRMEdgeError(f"{command[0]} cannot build {SOURCE.name}: {(lines or [''])[0].strip()}")


def load(library: Path) -> Any:
    """torch.ops.hrm.magic_norm: (x, skip, eps) -> (normed, residual), from a built library."""
    with quiet_imports():
        torch: Any = importlib.import_module("torch")
        importlib.import_module("executorch.extension.pybindings.portable_lib")
    torch.ops.load_library(library.absolute())
    return torch.ops.hrm.magic_norm


def _arguments(out: Path) -> list[str]:
    try:
        binding = importlib.util.find_spec("executorch.extension.pybindings._portable_lib")
        cpp: Any = importlib.import_module("torch.utils.cpp_extension")
    except ModuleNotFoundError as error:
        raise HRMEdgeError(f"{error.name} is missing: pip install 'hrm-edge[executorch]'") from None
    assert binding is not None and binding.origin is not None
    runtime = Path(binding.origin)
    return [
        *("-std=c++20", "-fPIC", "-shared", *shlex.split(os.environ.get("CXXFLAGS", OPTIONS))),
        *("-DET_USE_THREADPOOL", "-DHRM_EDGE_TORCH"),
        *(f"-I{path}" for path in (runtime.parents[2] / "include", *cpp.include_paths())),
        *(str(SOURCE), "-o", str(out)),
        *(f"-L{path}" for path in (runtime.parent, *cpp.library_paths())),
        *(f"-l:{runtime.name}", "-ltorch_cpu", "-lc10"),
    ]


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The library.")
def main(out: Path) -> None:
    try:
        build(out)
    except HRMEdgeError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: hrm::magic_norm. Use it with HRM_EDGE_OPERATORS={out}")


if __name__ == "__main__":
    main()
