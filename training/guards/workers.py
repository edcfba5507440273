"""The loader's worker processes: their signals, and errors when they die or stand still."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

CHECK_EVERY = 2.0  # seconds
STOPPED_AFTER = 5.0
STALLED_AFTER = 60.0


@dataclass
class SigtermOnlyFromTrainer:
    """Make a loader worker ignore signals, except SIGTERM from its training process.

    Ctrl-C, a preempted job's SIGTERM and Slurm's SIGUSR1 go to all processes of a job. If workers
    died of them, the training would end before it has written its checkpoint. Also, a worker that
    cannot send a batch (no shared memory) ends; by default it would drop the batch, and the
    training would wait for ever.
    """

    training_process: int

    def __call__(self, _worker: int) -> None:
        for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        sys.excepthook = partial(_pass_over_broken_connections, sys.excepthook)
        Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
        if hasattr(signal, "sigwaitinfo"):  # not on macOS
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != self.training_process:
            pass
        os._exit(0)


def prepare_worker() -> None:
    """The same for loaders made by libraries: to be called when a worker reads its first sample."""
    from torch.utils.data import get_worker_info  # here, so that commands without torch start soon

    global _is_prepared
    if not _is_prepared and get_worker_info() is not None:
        SigtermOnlyFromTrainer(os.getppid())(0)
        _is_prepared = True


_is_prepared = False


def _pass_over_broken_connections(usual: Any, kind: Any, value: Any, trace: Any) -> None:
    """Print nothing about a broken connection: the training no longer listens to this worker."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        usual(kind, value, trace)


def _end_worker(error: Exception, _batch: Any) -> None:
    os.write(2, f"a loader worker cannot hand over its batch: {error}\n".encode())
    os._exit(1)


def loader_problem(error: BaseException, waits: bool = False) -> str | None:
    """What a dead loader worker means and what to do; None for errors of another kind.

    Args:
        waits: whether the error came while waiting for a batch; then a broken connection means a
            dead worker.
    """
    found = re.search(
        r"DataLoader worker \(pid.*?(killed by signal: [\w ]+|exited unexpectedly)", str(error)
    )
    how = found[1].strip() if found else ""
    no_place = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if (no_place and _comes_from_multiprocessing(error)) or re.search(
        r"shared memory|torch_\d+_\d+.*No space left", str(error)
    ):
        how = how or "no shared memory is left"
    if waits and isinstance(error, (ConnectionError, EOFError)):
        how = "its connection broke"
    if not how:
        return None
    return (
        f"a loader worker ended ({how}): most often shared memory (/dev/shm) is too "
        "small for its batches, or memory is used up. Load without workers (--workers 0, "
        "DATALOADER.NUM_WORKERS 0) or with fewer, or enlarge the shared memory: containers take "
        "--shm-size 8g or --ipc=host"
    )


def _comes_from_multiprocessing(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parent.name == "multiprocessing" for frame in frames)


def hold_dead_workers_back() -> None:
    """Let torch set its handler for dead workers now, so that ``Endings`` can delay it."""
    from torch.utils.data._utils import signal_handling

    with suppress(AttributeError):  # a part of torch that may change
        signal_handling._set_SIGCHLD_handler()


def hush_half_made_loaders() -> None:
    """Hide torch's own error when a loader that could not start its workers is deleted."""
    usual = sys.unraisablehook
    if getattr(usual, "__name__", "") == "hook_of_loaders":
        return

    def hook_of_loaders(unraisable: sys.UnraisableHookArgs) -> None:
        of_loader = "_MultiProcessingDataLoaderIter.__del__" in repr(unraisable.object)
        if not (of_loader and isinstance(unraisable.exc_value, AttributeError)):
            usual(unraisable)

    sys.unraisablehook = hook_of_loaders


class StallWatch:
    """Ends loader workers that stand still while a training waits for them.

    Only on Linux, where their activity can be read.

    Args:
        workers: returns the loader's processes.
    """

    def __init__(self, workers: Callable[[], Sequence[Any]]) -> None:
        self.workers = workers
        self.problem: str | None = None  # what stood still, once it was ended
        self._since: float | None = None
        self._stop = threading.Event()

    def __enter__(self) -> StallWatch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if Path("/proc/self/stat").exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        last: dict[int, str] = {}
        moved = time.monotonic()
        while not self._stop.wait(CHECK_EVERY):
            since = self._since
            if since is None or time.monotonic() - since < CHECK_EVERY:
                moved = time.monotonic()
                continue
            workers = self.workers()
            now = {worker.pid: _activity(worker.pid) for worker in workers}
            stopped = [pid for pid, line in now.items() if line.startswith(("T", "t"))]
            if now != last or not now:
                last, moved = now, time.monotonic()
            still = time.monotonic() - moved
            if still < (STOPPED_AFTER if stopped else STALLED_AFTER):
                continue
            what = "are stopped" if stopped else f"have done nothing for {still:.0f} s"
            self.problem = (
                f"loader workers {what} (processes {', '.join(map(str, now))}) while the training "
                "waits for them: the disk or network of the images may hang. Look there, or load "
                "without workers (--workers 0, DATALOADER.NUM_WORKERS 0)"
            )
            for worker in workers:
                worker.kill()


def _activity(pid: int) -> str:
    """A process's state, and how much it has computed and read."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        read = Path(f"/proc/{pid}/io").read_text(encoding="utf-8")
        return f"{state if state in 'Tt' else ''} {rest[10:12]} {read}"
    except OSError:
        return ""
