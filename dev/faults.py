"""A bench of faults: what happens to a tool that is killed, starved or given a wrong folder.

Every row is a tool on tiny inputs, to which something is done: how it ended, what it said, what was
lost. The table stands in docs/reliability.md. A row is as it should be when the process ended with
the code that is expected, in one line and without a traceback, left no process and no half-written
file behind, and lost nothing: a resumed training ends with the bits of one that nothing happened
to.
"""

from __future__ import annotations

import argparse
import fnmatch
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fault_processes import (
    ROOT,
    STEPS,
    TRAININGS,
    Run,
    Training,
    are_equal,
    can_mount,
    full_file_system,
    is_under_way,
    limit_files,
    limit_memory,
    small_file_system,
    steps_saved,
    wait_for,
    weights,
    write_inputs,
)

from reporting.tables import markdown_table
from training.cli import ToolParser, run_tool
from training.command_line.jobs import finished_steps
from training.progress import progress

MARKS = ("<!-- faults -->", "<!-- end of faults -->")
PAGE = ROOT / "docs" / "reliability.md"
KILLS = 20
LEFT_WITHIN = 6.0  # seconds
TITLES = ("what is done", "to", "exit", "its line", "lost", "seconds", "as it should be")
EXAMPLES = """\
examples:
  python dev/faults.py                        # the whole table, into docs/reliability.md
  python dev/faults.py --rows 'SIGTERM*'      # these rows of it alone
  python dev/faults.py --rows 'killed*' --print
"""


@dataclass
class Row:
    """A row of the table; ``right`` says whether all is as it should be."""

    done: str
    tool: str
    exit: object
    line: str
    lost: str
    seconds: float
    right: bool

    def cells(self, home: Path) -> tuple[object, ...]:
        line = self.line.replace(f"{home}/", "").replace(str(home), "")
        seconds = f"{self.seconds:.1f}"
        return (self.done, self.tool, self.exit, line[:160], self.lost, seconds,
                "yes" if self.right else "NO")  # fmt: skip


class Bench:
    """Makes inputs and undisturbed runs once, and lends copies of them."""

    def __init__(self, home: Path) -> None:
        self.home, self.number = home, 0
        self.inputs = home / "inputs"
        write_inputs(self.inputs)

    def fresh(self, name: str = "run") -> Path:
        self.number += 1
        return self.home / f"{self.number:03d}" / name

    def start(
        self, tool: str, arguments: list[str], limit: Callable[[], None] | None = None
    ) -> Run:
        self.number += 1
        return Run(tool, arguments, self.home / f"{self.number:03d}.log", limit)

    def train(
        self, training: Training, out: Path, *more: str, workers: int = 0, steps: int = STEPS,
        limit: Callable[[], None] | None = None,
    ) -> Run:  # fmt: skip
        arguments = training.arguments(self.inputs, out, steps, workers)
        flags = [item for item in more if item.startswith("--")]
        rest = [item for item in more if not item.startswith("--")]
        if training.tool.startswith("train_"):
            return self.start(training.tool, [*flags, *arguments, *rest], limit)
        return self.start(training.tool, [*arguments, *more], limit)

    def whole(self, training: Training) -> Path:
        """A run that nothing happened to."""
        out = self.home / "whole" / training.name.replace(", ", "_")
        if not out.exists():
            run = self.train(training, out)
            if run.end() != 0:
                raise AssertionError(
                    f"{training.name} does not run: {run.log.read_text(encoding='utf-8')}"
                )
        return out

    def copy(self, training: Training) -> Path:
        """A copy of that run, without its final weights' files where checkpoints are apart."""
        out = self.fresh()
        shutil.copytree(self.whole(training), out)
        return out


def judged(
    run: Run, done: str, tool: str, expected: int, lost: str = "nothing", right: bool = True,
    words: tuple[str, ...] = (),
) -> Row:  # fmt: skip
    """The row of a process: it ends as expected, in one line that says these words."""
    code = run.end()
    line = run.line()
    end = time.monotonic() + LEFT_WITHIN
    while (left := run.left_behind()) and time.monotonic() < end:
        time.sleep(0.1)  # loader workers end with their training, not before it
    right = right and code == expected and not run.has_traceback() and lost == "nothing"
    right = right and all(word in line for word in words) and not left
    if left:
        lost = f"{len(left)} processes left"
    return Row(done, tool, "hangs" if code is None else code, line, lost,
               getattr(run, "seconds", 0.0), right)  # fmt: skip


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


Prepare = Callable[[Bench], tuple[Path, Callable[[], None] | None, str]]


def _read_only(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    out = bench.fresh()
    out.parent.mkdir()
    return out, partial(small_file_system, out.parent, "1m", ",ro"), "Read-only file system"


def _full(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    out = bench.fresh()
    out.parent.mkdir()
    return out, partial(full_file_system, out.parent), "No space left"


def _is_file(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    out = bench.fresh()
    out.parent.mkdir()
    out.write_text("a file", encoding="utf-8")
    return out, None, ""


def _in_file(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    out, _, _ = _is_file(bench)
    return out / "run", None, ""


def _too_long(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    return bench.fresh("n" * 300), None, "File name too long"


def _loop(bench: Bench) -> tuple[Path, Callable[[], None] | None, str]:
    out = bench.fresh()
    out.parent.mkdir()
    out.symlink_to(out)
    return out, None, ""


PLACES: dict[str, Prepare] = {
    "output on a read-only file system": _read_only,
    "output on a full file system": _full,
    "output folder is a file": _is_file,
    "output folder lies in a file": _in_file,
    "output's name has 300 letters": _too_long,
    "output is a loop of links": _loop,
}


def other_tools(bench: Bench) -> dict[str, Callable[[Path], tuple[str, list[str]]]]:
    """Tools that write without training: from the output to (tool, arguments)."""
    run, encoder = bench.whole(TRAININGS["train"]), bench.whole(TRAININGS["pretrain"])
    inputs = bench.inputs
    return {
        "predict": lambda out: ("predict", ["--run", str(run), "--input", f"{inputs}/images",
                                            "--output-dir", str(out)]),
        "report": lambda out: ("make_report", [str(run), "--output", f"{out}/report.html"]),
        "convert": lambda out: ("convert_checkpoint", [f"{encoder}/encoder.safetensors",
                                                       f"{out}/encoder.pth", "--to", "timm"]),
        "check --repair": lambda out: ("check_dataset", [f"{inputs}/coco.json", "--images",
                                                         f"{inputs}/images", "--repair",
                                                         f"{out}/fixed.json"]),
        "analyze": lambda out: ("analyze_features", [
            "--model", f"a={encoder}/encoder.safetensors", "--data", f"{inputs}/images",
            "--output-dir", str(out), "--images", "2", "--image-size", "64", "--device", "cpu"]),
    }  # fmt: skip


def place(bench: Bench, tool: str, name: str) -> Row:
    out, limit, word = PLACES[name](bench)
    if tool in TRAININGS:
        run = bench.train(TRAININGS[tool], out, limit=limit)
    else:
        script, arguments = other_tools(bench)[tool](out)
        run = bench.start(script, arguments, limit)
    row = judged(run, name, tool, 1, words=(word,) if word else ())
    left = [p.name for p in out.parent.rglob("*") if "partial" in p.name] if limit is None else []
    row.lost = f"left: {', '.join(left)}" if left else row.lost
    return row


def again(bench: Bench, tool: str) -> Row:
    """A tool that has written its output is ended in the middle of writing it anew."""
    out = bench.fresh()
    script, arguments = other_tools(bench)[tool](out)
    bench.start(script, arguments).end()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run = bench.start(script, arguments)
    run.process.join(random.Random(tool).uniform(0.3, 1.0))
    run.kill()
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    cut = [path.name for path in before if len(after.get(path, b"")) < 0.9 * len(before[path])]
    return Row("killed (SIGKILL) while it writes its output anew", tool, -9, "",
               f"cut: {', '.join(cut)}" if cut else "nothing", 0.0, not cut)  # fmt: skip


def children(bench: Bench, name: str, code: int) -> Row:
    out = bench.fresh()
    arguments = ["--output-dir", str(out), "--train", "4", "--val", "2", "--unlabelled", "12",
                 "--pretraining-steps", "400"]  # fmt: skip
    run = bench.start("quickstart", arguments)
    wait_for(lambda: finished_steps(out / "pretraining") >= 10, run, 180)
    subprocess.run(["kill", f"-{getattr(signal, name)}", str(run.process.pid)], check=False)
    run.began = time.monotonic()
    row = judged(run, f"{name} to it alone; its training ends first", "quickstart", code)
    steps = finished_steps(out / "pretraining") - steps_saved(out / "pretraining")
    row.lost = f"{steps} steps" if steps else row.lost
    row.right = row.right and not steps
    return row


def all_rows(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, what makes the row); rows that need mounts are left to :func:`without_mounts`."""
    endings = (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))
    for training in TRAININGS.values():
        name = training.name
        for ending, code in endings:
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
        for where in PLACES:
            yield f"{where} {name}", partial(place, bench, name, where)
    for training in (TRAININGS["pretrain"], TRAININGS["train"], TRAININGS["train, detectron2"]):
        for way in DAMAGE:
            yield f"damage {way} {training.name}", partial(damaged, bench, training, way)
    yield "stopped pretrain", partial(worker, bench, TRAININGS["pretrain"], signal.SIGSTOP)
    for tool in ("predict", "report", "convert", "check --repair", "analyze"):
        for where in PLACES:
            yield f"{where} {tool}", partial(place, bench, tool, where)
    for tool in ("report", "convert", "analyze"):
        yield f"again {tool}", partial(again, bench, tool)
    for ending, code in endings[1:]:
        yield f"children {ending}", partial(children, bench, ending, code)
    yield "rank pretrain", partial(rank, bench, TRAININGS["pretrain"])


def make_row(name: str, make: Callable[[], Row], mounts: bool) -> Row:
    if not mounts and ("file system" in name or name.startswith("shm ")):
        tool = name.split()[-1]
        return Row(name.removesuffix(tool), tool, "", "this machine mounts nothing for this user",
                   "not tried", 0.0, True)  # fmt: skip
    try:
        return make()
    except Exception as error:  # the bench's own mistake is a row, too
        return Row(name, "", "", f"{type(error).__name__}: {error}", "", 0.0, False)


def main() -> int:
    parser = ToolParser(description=__doc__, epilog=EXAMPLES,
                        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="of their names: 'killed*'")
    parser.add_argument("--print", action="store_true", help="to the terminal, not to the page")
    arguments = parser.parse_args()
    mounts = can_mount()
    table = {} if arguments.print else read_page()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        chosen = [
            (name, make)
            for name, make in all_rows(bench)
            if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.rows or ["*"])
        ]
        if not arguments.rows:
            table = {}
        for name, make in progress(chosen, "faults", unit="row"):
            row = make_row(name, make, mounts)
            line = markdown_table(TITLES, [row.cells(bench.home)]).splitlines()[-1]
            table[row.done, row.tool] = line
            if arguments.print:
                print(line, flush=True)
    lines = list(table.values())
    wrong = sum(not line.endswith("| yes |") for line in lines)
    said = f"{len(lines)} rows, {wrong} not as they should be."
    print(said)
    if not arguments.print:
        write_page(said, lines)
    return 1 if wrong else 0


def read_page() -> dict[tuple[str, str], str]:
    """The page's rows, by what is done and to what."""
    text = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = (line.strip("| ").split(" | ") for line in lines)
    return {(done, tool): line for (done, tool, *_), line in zip(cells, lines, strict=True)}


def write_page(said: str, lines: list[str]) -> None:
    start, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    head = "\n".join(markdown_table(TITLES, []).splitlines())
    table = "\n".join([head, *lines])
    text = f"{start}{MARKS[0]}\n{said}\n\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
