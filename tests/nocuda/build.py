"""Builds the no-op CUDA for the installed torch: `python tests/nocuda/build.py OUT` makes OUT/libcuda.so.1.

Preloaded into a process (LD_PRELOAD), it replaces the CUDA runtime, driver, cuBLAS and NCCL on a machine without a GPU.
torch's dispatch, autocast, caching allocator, choice of attention kernel and autograd threads, NCCL's process group,
FSDP, Composer's Trainer and Triton run as on a GPU, but kernels do nothing. So it shows devices, dtypes, arguments,
memory, waits, and the data that ranks send each other; it shows no computed numbers, no speed and no order of streams.
Preload it only into child processes: beside a real GPU it would train nothing, without any message.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
SITE = Path(sysconfig.get_paths()["purelib"])
# All functions of these families that torch needs are ours; other libraries (cuDNN, cuSPARSE, …) remain NVIDIA's.
OURS = re.compile(r"(__cuda|cuda|cublas|nccl|cu[A-Z])")
THEIRS = re.compile(r"(cudnn|cusparse|cusolver|cufft|curand|cuFile)")


def why_not() -> str | None:
    """What this machine lacks for the build; None if it lacks nothing."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"the no-op CUDA is for Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if missing := [tool for tool in ("gcc", "nm") if not shutil.which(tool)]:
        return f"the no-op CUDA is built with gcc and nm, and there is no {missing[0]}"
    if not list((SITE / "torch/lib").glob("libtorch_cuda.so")):
        return "the torch that is installed is no CUDA build"
    if not include_folder():
        return "no cuda_runtime_api.h among the installed packages (triton brings one)"
    return None


def include_folder() -> Path | None:
    """CUDA's headers, from the first package of NVIDIA or Triton that has all of them."""
    candidates = (SITE / place for place in ("nvidia/cu13/include", "triton/backends/nvidia/include"))
    return next((folder for folder in candidates if (folder / "crt/host_defines.h").is_file()), None)


def runtime_version() -> int:
    """CUDA version of torch: 12060 is 12.6."""
    match = re.search(r"cuda.*= '(\d+)\.(\d+)", (SITE / "torch/version.py").read_text())
    assert match, "why_not() has checked that torch is a CUDA build"
    return 1000 * int(match[1]) + 10 * int(match[2])


def build(out: Path) -> Path:
    """Compile the library; its path.

    Raises:
        CalledProcessError: the compiler refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    version = f"-DRUNTIME_VERSION={runtime_version()}"
    objects = [out / f"{name}.o" for name in ("nocuda", "nccl")]
    for made in objects:
        source = HERE / f"{made.stem}.c"
        _run("gcc", "-fPIC", "-O1", "-w", f"-I{include_folder()}", version, "-c", str(source), "-o", str(made))
    have = set(re.findall(r" T (\w+)", _run("nm", *map(str, objects))))
    wanted: set[str] = set()
    for library in (SITE / "torch/lib").glob("*.so"):
        wanted |= set(re.findall(r" U (\w+)", _run("nm", "-D", "--undefined-only", str(library))))
    missing = sorted(name for name in wanted - have if OURS.match(name) and not THEIRS.match(name))
    (out / "others.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing))
    library = out / "libcuda.so.1"
    sources = [*map(str, objects), str(out / "others.c")]
    _run("gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", str(library), *sources, "-lpthread")
    (out / "libcuda.so").unlink(missing_ok=True)
    (out / "libcuda.so").symlink_to(library.name)  # the library that Triton links against
    return library


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
