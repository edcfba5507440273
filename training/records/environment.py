"""The facts of a run: versions, device, memory, commit."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

PACKAGES = (
    "torch", "torchvision", "timm", "accelerate", "detectron2", "fvcore", "pycocotools", "hotcoco",
    "numpy", "Pillow", "tifffile",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a number; missing ones absent."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of this checkout with "+changes" where it has any; "unknown" outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit, status = (
            subprocess.check_output(
                ["git", *arguments], cwd=root, text=True, stderr=subprocess.DEVNULL, timeout=10
            )
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.strip() + ("+changes" if status.strip() else "")


def device_name(device: torch.device | str) -> str:
    """The name of the GPU, or of the processor with the number of threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type == "mps":
        return f"Apple's GPU, {platform.processor() or platform.machine()}"
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"cpu: {name}, {torch.get_num_threads()} thread(s)"


def warn_of_slow_bf16(precision: str, device: torch.device | str) -> None:
    """Warn of bf16 on a processor on which it is many times slower than float32."""
    if precision == "bf16" and torch.device(device).type == "cpu" and not computes_in_bf16():
        logger.warning(
            "bf16 is many times slower than float32 here (16 times where it was measured): this "
            "processor (%s) has no bf16 instructions that PyTorch uses. Train in float32: "
            "--precision no, or SOLVER.AMP.ENABLED False",
            device_name(device),
        )


def computes_in_bf16() -> bool:
    """Whether oneDNN, PyTorch's library on CPUs, computes in bf16 here; True if that is unknown.

    It does with AVX-512 on x86 and with the bf16 extension on Arm. Without them PyTorch multiplies
    bf16 matrices in plain loops. PyTorch's own tests use the same operator to find out.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not torch.backends.mkldnn.is_available():
        return True
    return bool(supported())


def peak_memory_mb() -> float:
    """Peak memory since the start, in MB: allocated on the GPU, without one of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_mb()


def peak_rss_mb() -> float:
    """The largest memory of this process so far, in MB.

    On Linux it is read from ``/proc``, because ``getrusage`` also counts what the parent process
    held when it was forked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(
            line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines()
        )
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) / 2**10
    if sys.platform == "win32":
        import psutil  # elsewhere it imports resource itself

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
