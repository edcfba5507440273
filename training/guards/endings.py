"""Ends a process on a signal: it first saves, within 30 seconds; a second signal ends it at once.

SIGINT (Ctrl-C), SIGTERM (a preempted job, ``docker stop``) and SIGHUP (a closed terminal) end
every command with exit code 130, 143 or 129. During a training, :class:`Endings` delays the end
until a checkpoint is written. SIGUSR1, which Slurm sends before the end of a job's time, only asks
for a checkpoint.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from backbones.whole_files import remove_unfinished

logger = logging.getLogger(__name__)

ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
CHECKPOINT = getattr(signal, "SIGUSR1", None)
CHILD = getattr(signal, "SIGCHLD", None)
ALARM = getattr(signal, "SIGALRM", None)
DEADLINE = 28.0  # seconds from the first signal; schedulers and torchrun kill after 30
PATIENCE = 14.0  # seconds that the current step gets to end, where other processes wait for it
LEAVE_TO_CHILDREN = 6.0  # seconds
SAME = 1.0  # signals within so many seconds count as one: a launcher passes Ctrl-C on
REQUEUE = "FCMAE_REQUEUE"  # set to 1: after SIGUSR1's checkpoint, Slurm is asked to start again
PARENT = "FCMAE_PARENT"  # the process that started this one, which ends with it
Handlers = dict[int, Callable[[int, Any], Any]]  # by the signals' numbers

_asked_early = threading.Event()  # SIGUSR1 came before the training


class EndedError(SystemExit):
    """A signal ended this process; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`EndedError`, so that ``finally`` blocks run.

    SIGHUP stays ignored under ``nohup``; Ctrl-C raises Python's own ``KeyboardInterrupt``.
    SIGUSR1 ends nothing; a training that begins later acts on it after its first step.
    """

    def end(number: int, _frame: Any) -> NoReturn:
        raise EndedError(number)

    handlers: Handlers = dict.fromkeys(ENDING, end)
    handlers[signal.SIGINT] = signal.default_int_handler
    if CHECKPOINT is not None:
        _asked_early.clear()
        handlers[CHECKPOINT] = lambda *_: _asked_early.set()
    with _handlers(handlers):
        yield


@contextmanager
def _handlers(handlers: Handlers) -> Iterator[None]:
    """Set signal handlers while this is open: only in the main thread, not for ignored signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number, handler in handlers.items():
        if not _is_ignored(number):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored(number: int) -> bool:
    """Whether a signal is to be ignored: SIGHUP under ``nohup``.

    SIGINT never is, although a shell makes its background processes ignore it.
    """
    now = signal.getsignal(number)
    return now is None or (now == signal.SIG_IGN and number != signal.SIGINT)


class Endings:
    """Delays ending signals until the training has acted on them.

    A second thread makes sure that the process ends in time, even if the training hangs in a
    library: at the deadline, or at a second signal, it ends the process and says what is lost.

    Args:
        lost: says what is lost if the process ends now.
        patience: seconds after which a signal interrupts the code in :meth:`interruptible`; None
            for never. Of several processes the first need not wait. Another process, which would
            leave the others in the middle of a step, waits for half of their time.
    """

    def __init__(self, lost: Callable[[], str], patience: float | None = 0.0) -> None:
        self.lost, self.patience = lost, patience
        self._received_at = 0.0
        self.received: int | None = None
        self.checkpoint_asked = False
        self._waits = self._holds = False
        self._child_ended: tuple[int, Any] | None = None

    def __enter__(self) -> Endings:
        self.checkpoint_asked = _asked_early.is_set()
        _asked_early.clear()
        noted = [*ENDING, *([CHECKPOINT] if CHECKPOINT else [])]
        handlers: Handlers = dict.fromkeys(noted, self._note)
        if self.patience and ALARM:
            handlers[ALARM] = lambda *_: self._interrupt()
        self._of_child = signal.getsignal(CHILD) if CHILD else None
        if CHILD and callable(self._of_child):  # torch's, which raises where a loader's worker died
            handlers[CHILD] = self._note_child
        self._stack = _handlers(handlers)
        self._stack.__enter__()
        self._sockets: tuple[socket.socket, ...] = ()
        if threading.current_thread() is threading.main_thread():
            self._sockets = socket.socketpair()
            for each in self._sockets:
                each.setblocking(False)
            self._before = signal.set_wakeup_fd(
                self._sockets[1].fileno(), warn_on_full_buffer=False
            )
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._sockets:
            signal.set_wakeup_fd(self._before)
            if self.patience and ALARM:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._sockets[1].send(b"\0")  # no signal's number: the thread ends
            self._thread.join()
            for each in self._sockets:
                each.close()
        self._stack.__exit__(None, None, None)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While this is open, a signal interrupts, at once or after :attr:`patience`.

        To be used between steps, where the weights are complete.

        Raises:
            EndedError: at a signal, or at once if one came before.
            RuntimeError: torch's, if a loader worker died; outside of this it is delayed.
        """
        self._holds, self._waits = True, self.patience is not None
        try:
            if self._child_ended:
                self._note_child(*self._child_ended)
            self._interrupt()
            yield
        finally:
            self._holds = self._waits = False

    def _note_child(self, number: int, frame: Any) -> None:
        self._child_ended = None if self._holds else (number, frame)
        if self._holds and callable(self._of_child):
            self._of_child(number, frame)

    def _note(self, number: int, _frame: Any) -> None:
        if number == CHECKPOINT:
            self.checkpoint_asked = True
            return
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            if self.patience and ALARM:
                signal.setitimer(signal.ITIMER_REAL, self.patience)
            self._interrupt()

    def _interrupt(self) -> None:
        """Raise if a signal has come and the running code may be interrupted."""
        if not (self.received and self._waits) or self.patience is None:
            return
        if time.monotonic() - self._received_at >= self.patience:
            self._waits = False
            raise EndedError(self.received)

    def _watch(self) -> None:
        """In a thread: end the process at the deadline, or at a second signal."""
        first: int | None = None
        began = 0.0
        while True:
            left = None if first is None else max(0.0, began + DEADLINE - time.monotonic())
            ready, _, _ = select.select([self._sockets[0]], [], [], left)
            if not ready:
                end_at_once(first or signal.SIGTERM, f"no checkpoint within {DEADLINE:.0f} s", self)
            for number in self._sockets[0].recv(4096):
                if number == 0:
                    return
                if number not in ENDING or _is_ignored(number):
                    continue
                if first is None:
                    first, began = number, time.monotonic()
                    _say(f"{signal.Signals(number).name}: a checkpoint, then the end; "
                         "a second signal ends at once")  # fmt: skip
                elif time.monotonic() - began > SAME:
                    end_at_once(number, "a second signal", self)


def end_at_once(number: int, why: str, endings: Endings) -> NoReturn:
    """End this process from any thread, its own children first; say what is lost."""
    _say(f"ended at once ({why}); lost: {endings.lost()}")
    kill_children()
    with suppress(Exception):
        remove_unfinished()
    os._exit(128 + number)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())  # not print: the main thread may be within it


def kill_children() -> None:
    """End this process's loader workers, which hold nothing that can be lost."""
    for process in multiprocessing.active_children():
        process.kill()


def end_soon(number: int) -> None:
    """Make sure that children that do not react do not keep this process from ending."""

    def insist() -> None:
        time.sleep(LEAVE_TO_CHILDREN)
        kill_children()
        time.sleep(LEAVE_TO_CHILDREN)
        os._exit(128 + number)

    threading.Thread(target=insist, daemon=True).start()


def requeue_is_asked() -> bool:
    return os.environ.get(REQUEUE) == "1"


def requeue(run: Callable[[Sequence[str]], Any] = subprocess.check_call) -> None:
    """Ask Slurm to start this job again."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        logger.warning("%s is 1, but this is not a Slurm job: SLURM_JOB_ID is not set", REQUEUE)
        return
    try:
        run(["scontrol", "requeue", job])
        logger.warning("Slurm was asked to start job %s again", job)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("Slurm could not be asked to start job %s again: %s", job, error)


def end_with_parent() -> None:
    """End this process by SIGTERM when the one that started it ends, on Linux.

    Only for children whose parent put its number into their environment; not for those of a
    launcher in between.
    """
    parent = os.environ.pop(PARENT, None)
    if parent != str(os.getppid()) or sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if parent != str(os.getppid()):  # it ended in between
        raise EndedError(signal.SIGTERM)
