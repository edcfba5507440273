"""The energy that this machine has used, by its own counters, if they can be read.

Processors of Intel and AMD have such counters (RAPL; Linux shows them in ``/sys/class/powercap``,
since 2020 only to root unless an administrator changes it), and so do NVIDIA's data-centre GPUs
(NVML's total energy consumption). Memory, disks and fans are not counted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]  # returns the joules so far, which never fall


def rapl_counters(folder: Path = POWERCAP) -> list[Counter]:
    """One for each processor package whose counter may be read."""
    counters = []
    for package in sorted(folder.glob("intel-rapl:[0-9]*")):
        if ":" in package.name.partition(":")[2]:
            continue  # a part of a package, which the package's counter includes
        try:
            counters.append(_rapl(package))
        except (OSError, ValueError):
            continue
    return counters


def _rapl(package: Path) -> Counter:
    """A package's counter, corrected for its starting again at 0 when it is full."""
    whole = int((package / "max_energy_range_uj").read_text(encoding="utf-8"))
    last = int((package / "energy_uj").read_text(encoding="utf-8"))
    turns = 0

    def read() -> float:
        nonlocal last, turns
        now = int((package / "energy_uj").read_text(encoding="utf-8"))
        turns += now < last
        last = now
        return (turns * whole + now) / 1e6

    return read


def nvml_counters(library: ctypes.CDLL | None = None) -> list[Counter]:
    """One for each NVIDIA GPU that counts its energy."""
    try:
        nvml = library or ctypes.CDLL(NVML)
        count = ctypes.c_uint()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        counters: list[Counter] = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
                continue
            millijoules = ctypes.c_ulonglong()

            def read(
                device: ctypes.c_void_p = device, found: ctypes.c_ulonglong = millijoules
            ) -> float:
                nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(found))
                return found.value / 1e3

            if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)) == 0:
                counters.append(read)
        return counters
    except (OSError, AttributeError):  # no driver, or one without these functions
        return []


class EnergyShares:
    """Energy by job: the energy used is divided evenly among the jobs that run at that time.

    Args:
        counters: this machine's counters; none if nothing can be read.
    """

    def __init__(self, counters: Iterable[Counter] | None = None) -> None:
        self.counters = [*rapl_counters(), *nvml_counters()] if counters is None else [*counters]
        self.running: set[Hashable] = set()
        self.joules: dict[Hashable, float] = {}
        self.last = self._read()

    @property
    def readable(self) -> bool:
        return bool(self.counters)

    def _read(self) -> float:
        try:
            return sum(counter() for counter in self.counters)
        except (OSError, ValueError):  # the file's permissions have changed meanwhile
            self.counters = []
            return 0.0

    def update(self) -> None:
        """Add the energy used since the last call. Call it often: counters start again at 0."""
        if not self.counters:
            return
        now = self._read()
        for job in self.running:
            self.joules[job] = self.joules.get(job, 0.0) + (now - self.last) / len(self.running)
        self.last = now

    def begin(self, job: Hashable) -> None:
        self.update()
        self.running.add(job)

    def end(self, job: Hashable) -> float | None:
        """The joules of a job; None if nothing can be read."""
        self.update()
        self.running.discard(job)
        return self.joules.pop(job, None) if self.readable else None
