"""Rows of the bench of faults: what happens to trainings."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fault_bench import Bench, Row, judged
from fault_processes import (
    ROOT,
    STEPS,
    TRAININGS,
    Training,
    are_equal,
    is_under_way,
    limit_files,
    limit_memory,
    small_file_system,
    steps_saved,
    wait_for,
    weights,
)

from training.command_line.jobs import finished_steps

KILLS = 20
ENDINGS = (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))


def lost_after_resume(bench: Bench, training: Training, out: Path) -> str:
    """Resume a run to its end and compare it with one that nothing happened to."""
    again = bench.train(training, out, "--resume")
    if (code := again.end()) != 0:
        return f"the run: resuming ends with {code}: {again.line()}"
    same = are_equal(weights(out, training.final), weights(bench.whole(training), training.final))
    return "nothing" if same else "the same bits"


def signals(bench: Bench, training: Training, name: str, code: int) -> Row:
    out = bench.fresh()
    run = bench.train(training, out, workers=1)
    wait_for(lambda: is_under_way(out), run)
    run.signal(getattr(signal, name))
    row = judged(run, f"{name} to its process group, then --resume", training.name, code)
    steps = max(0, finished_steps(out) - steps_saved(out)) if (out / "checkpoints").exists() else 0
    row.lost = f"{steps} steps" if steps else lost_after_resume(bench, training, out)
    row.right = row.right and row.lost == "nothing"
    return row


def killed(bench: Bench, training: Training) -> Row:
    """SIGKILL at twenty random moments of as many runs as that takes."""
    generator = random.Random(0)
    began = time.monotonic()
    kills, runs, lost = 0, 0, "nothing"
    bench.whole(training)
    while kills < KILLS and lost == "nothing":
        runs += 1
        out = bench.fresh()
        while True:
            run = bench.train(training, out, "--resume")
            run.process.join(generator.uniform(0.3, 2.5) if kills < KILLS else None)
            if run.process.exitcode is not None:
                break
            run.kill()
            kills += 1
        same = run.process.exitcode == 0 and are_equal(
            weights(out, training.final), weights(bench.whole(training), training.final)
        )
        lost = "nothing" if same else f"the same bits: {run.line()}"
    done = f"killed (SIGKILL) at {kills} random moments of {runs} runs, each time --resume"
    return Row(done, training.name, 0 if lost == "nothing" else 1, run.line(), lost,
               time.monotonic() - began, lost == "nothing")  # fmt: skip


def _flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    file.write_bytes(content)


def _to_broken_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "cut by its last byte": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "emptied": lambda f: f.write_bytes(b""),
    "a byte changed in its middle": lambda f: _flip(f, 0.5),
    "a byte changed near its end": lambda f: _flip(f, 0.9),
    "its second half zeroed": lambda f: f.write_bytes(
        f.read_bytes()[: f.stat().st_size // 2].ljust(f.stat().st_size, b"\0")
    ),
    "removed": lambda f: f.unlink(),
    "a text in its place": lambda f: f.write_text("no weights", encoding="utf-8"),
    "a broken link in its place": _to_broken_link,
    "all of it noise": lambda f: f.write_bytes(random.Random(0).randbytes(f.stat().st_size)),
}


def damaged(bench: Bench, training: Training, way: str) -> Row:
    out = bench.copy(training)
    for final in out.glob(training.final):
        if (out / "checkpoints").exists():
            final.unlink()
    folders = sorted((out / "checkpoints").glob("step_*"))
    newest = folders[-1] / "model.safetensors" if folders else out / "model_final.pth"
    DAMAGE[way](newest)
    run = bench.train(training, out, "--resume")
    row = judged(run, f"newest checkpoint {way}, then --resume", training.name, 0)
    text = run.log.read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if "damaged and passed over" in line]
    row.line = said[0].partition(": ")[2] if said else row.line
    final = weights(out, training.final) if row.exit == 0 else {}
    same = are_equal(final, weights(bench.whole(training), training.final))
    row.lost = "nothing" if same else "the same bits"
    row.right = row.exit == 0 and bool(said) and same
    return row


def twice(bench: Bench, training: Training) -> Row:
    out = bench.fresh()
    first = bench.train(training, out)
    wait_for(lambda: (out / "metrics.json").exists(), first)
    first.process.join(0.2)
    second = bench.train(training, out, "--resume")
    row = judged(second, "started twice at once in one folder", training.name, 1,
                 words=("is being written by process", str(first.process.pid)))  # fmt: skip
    ended = first.end()
    same = ended == 0 and are_equal(
        weights(out, training.final), weights(bench.whole(training), training.final)
    )
    row.lost = "nothing" if same else "the first one's run"
    row.right = row.right and same
    return row


def refused(
    bench: Bench, training: Training, done: str, more: tuple[str, ...], steps: int, word: str
) -> Row:
    """A finished run that is to go on as something else, or is to be overwritten."""
    out = bench.copy(training)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "log.txt"}
    run = bench.train(training, out, *more, steps=steps)
    row = judged(run, done, training.name, 1, words=(word,) if word else ())
    if not row.right and word in run.log.read_text(encoding="utf-8"):
        row.right = row.exit == 1 and not run.has_traceback()
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = [path.name for path in before if after.get(path) != before[path]]
    row.lost = f"changed: {', '.join(changed)}" if changed else "nothing"
    row.right = row.right and not changed
    return row


def worker(bench: Bench, training: Training, number: int) -> Row:
    out = bench.fresh()
    run = bench.train(training, out, workers=1, steps=400)
    wait_for(lambda: is_under_way(out) and run.workers(), run)
    began = time.monotonic()
    subprocess.run(["kill", f"-{number}", str(run.workers()[-1])], check=False)
    what = "killed" if number == signal.SIGKILL else "stopped (SIGSTOP)"
    row = judged(run, f"a loader's worker is {what}", training.name, 1, words=("--workers 0",))
    row.seconds = time.monotonic() - began
    steps = max(0, finished_steps(out) - steps_saved(out)) if (out / "checkpoints").exists() else 0
    row.lost = f"{steps} steps" if steps else "nothing"
    row.right = row.right and not steps
    return row


def limited(
    bench: Bench,
    training: Training,
    done: str,
    limit: Callable[[], None],
    workers: int,
    *words: str,
) -> Row:
    run = bench.train(training, bench.fresh(), workers=workers, limit=limit)
    return judged(run, done, training.name, 1, words=words)


def rank(bench: Bench, training: Training) -> Row:
    """One of two processes of a training is killed."""
    out = bench.fresh()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", str(random.SystemRandom().randint(20000, 60000)),
               f"tools/{training.tool}.py",
               *training.arguments(bench.inputs, out, 4000, 0)]  # fmt: skip
    log = bench.home / "ranks.log"
    with log.open("w", encoding="utf-8") as stream:
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
        end = time.monotonic() + 120
        while not is_under_way(out) and launcher.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        listed = (
            Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
            .read_text(encoding="utf-8")
            .split()
        )
        began = time.monotonic()
        subprocess.run(["kill", "-9", listed[-1]], check=False)
        try:
            code: object = launcher.wait(60)
        except subprocess.TimeoutExpired:
            code = "hangs"
            launcher.kill()
    seconds = time.monotonic() - began
    alive = [pid for pid in listed if Path(f"/proc/{pid}/stat").exists()]
    lost = f"{len(alive)} processes left" if alive else "steps since the last checkpoint"
    return Row("one of two processes (torchrun) is killed", training.name, code,
               "the other ends", lost, seconds, code == 1 and not alive)  # fmt: skip


def no_place_for_weights(bench: Bench, training: Training) -> Row:
    """A folder comes to stand where the final weights are to be; when it has gone, --resume."""
    out = bench.fresh()
    finals = ("encoder.safetensors", "classifier.safetensors", "model_final.safetensors")
    run = bench.train(training, out)
    wait_for(lambda: (out / "metrics.json").exists(), run)
    folders = [out / name for name in (*finals, "model_final.pth")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    done = "a folder stands where its final weights are to be, then --resume"
    row = judged(run, done, training.name, 1, words=("Is a directory",))
    for folder in folders:
        folder.rmdir()
    row.lost = lost_after_resume(bench, training, out)
    row.right = row.right and row.lost == "nothing"
    return row


def training_rows(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, what makes the row)."""
    for training in TRAININGS.values():
        name = training.name
        for ending, code in ENDINGS:
            yield f"{ending} {name}", partial(signals, bench, training, ending, code)
        yield f"killed {name}", partial(killed, bench, training)
        yield f"twice {name}", partial(twice, bench, training)
        yield f"overwrite {name}", partial(
            refused, bench, training, "started again without --resume", (), STEPS,
            "holds a run already",
        )  # fmt: skip
        yield f"fewer {name}", partial(
            refused, bench, training, "--resume to fewer steps than are done", ("--resume",), 3,
            "cannot be continued to 3",
        )  # fmt: skip
        yield f"other {name}", partial(
            refused, bench, training, f"--resume with {' '.join(training.changed)}",
            ("--resume", *training.changed), STEPS, "other settings",
        )  # fmt: skip
        yield f"worker {name}", partial(worker, bench, training, signal.SIGKILL)
        yield f"files {name}", partial(
            limited, bench, training, "24 open files (ulimit -n), 8 workers",
            partial(limit_files, 24), 8, "ulimit -n",
        )  # fmt: skip
        yield f"memory {name}", partial(
            limited, bench, training, "24 MB more memory than it begins with",
            partial(limit_memory, 24 * 2**20), 0,
        )  # fmt: skip
        yield f"shm {name}", partial(
            limited, bench, training, "16 kB of shared memory, 2 workers",
            partial(small_file_system, Path("/dev/shm"), "16k"), 2, "--shm-size", "--ipc=host",
        )  # fmt: skip
        yield f"final {name}", partial(no_place_for_weights, bench, training)
        for way in DAMAGE:
            yield f"damage {way} {training.name}", partial(damaged, bench, training, way)
    yield "stopped pretrain", partial(worker, bench, TRAININGS["pretrain"], signal.SIGSTOP)
    yield "rank pretrain", partial(rank, bench, TRAININGS["pretrain"])
