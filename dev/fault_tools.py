"""Rows of the bench of faults: unwritable places, predictions, tools that start others."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml
from fault_bench import Bench, Row, judged
from fault_processes import (
    TRAININGS,
    full_file_system,
    small_file_system,
    steps_saved,
    wait_for,
)

from training.command_line.jobs import finished_steps
from training.guards.journal import JOURNAL

# the output, what limits the process, a word of the error
Place = tuple[Path, Callable[[], None] | None, str]


def _read_only(bench: Bench) -> Place:
    out = bench.fresh()
    out.parent.mkdir()
    return out, partial(small_file_system, out.parent, "1m", ",ro"), "Read-only file system"


def _full(bench: Bench) -> Place:
    out = bench.fresh()
    out.parent.mkdir()
    return out, partial(full_file_system, out.parent), "No space left"


def _is_file(bench: Bench) -> Place:
    out = bench.fresh()
    out.parent.mkdir()
    out.write_text("a file", encoding="utf-8")
    return out, None, ""


def _in_file(bench: Bench) -> Place:
    out, _, _ = _is_file(bench)
    return out / "run", None, ""


def _too_long(bench: Bench) -> Place:
    return bench.fresh("n" * 300), None, "File name too long"


def _loop(bench: Bench) -> Place:
    out = bench.fresh()
    out.parent.mkdir()
    out.symlink_to(out)
    return out, None, ""


PLACES: dict[str, Callable[[Bench], Place]] = {
    "output on a read-only file system": _read_only,
    "output on a full file system": _full,
    "output folder is a file": _is_file,
    "output folder lies in a file": _in_file,
    "output's name has 300 letters": _too_long,
    "output is a loop of links": _loop,
}


PREDICTING = ("predict", "predict, segmenter", "predict, classifier")
OTHERS = ("report", "convert", "check --repair", "analyze", "embed", "import", "export", "plan",
          "reconstruct")  # fmt: skip
AGAIN = ("report", "convert", "analyze", "embed", "export")
STARTING = ("quickstart", "ablate", "study")
Command = Callable[[Path], tuple[str, list[str]]]  # of an output folder: tool, arguments


def predictions(bench: Bench) -> dict[str, Command]:
    """Prediction by a detector, a segmenter and a classifier, on some dozens of images."""

    def command(training: str, *more: str) -> Command:
        run, images = bench.whole(TRAININGS[training]), bench.inputs / "many"
        if not images.exists():
            images.mkdir()
            for number in range(60):
                (images / f"{number}.png").hardlink_to(
                    bench.inputs / f"images/{number % 12:02d}.png"
                )
        flags = ["--run", str(run), "--input", str(images), *more]
        return lambda out: ("predict", [*flags, "--output-dir", str(out)])

    return {
        "predict": command("train"),
        "predict, segmenter": command("segment"),
        "predict, classifier": command("classify", "--pictures", "--device", "cpu"),
    }


def other_tools(bench: Bench) -> dict[str, Command]:
    """Tools that write without training."""
    run, encoder = bench.whole(TRAININGS["train"]), bench.whole(TRAININGS["pretrain"])
    inputs, weights = bench.inputs, f"{bench.whole(TRAININGS['pretrain'])}/encoder.safetensors"
    return predictions(bench) | {
        "report": lambda out: ("make_report", [str(run), "--output", f"{out}/report.html"]),
        "convert": lambda out: ("convert_checkpoint", [weights, f"{out}/encoder.pth", "--to",
                                                       "timm"]),
        "check --repair": lambda out: ("check_dataset", [f"{inputs}/coco.json", "--images",
                                                         f"{inputs}/images", "--repair",
                                                         f"{out}/fixed.json"]),
        "analyze": lambda out: ("analyze_features", [
            "--model", f"a={weights}", "--data", f"{inputs}/images",
            "--output-dir", str(out), "--images", "2", "--image-size", "64", "--device", "cpu"]),
        "embed": lambda out: ("embed", [
            "--encoder", weights, "--data", f"{inputs}/images", "--output", f"{out}/features.npz",
            "--image-size", "64", "--neighbours", "2"]),
        "import": lambda out: ("import_dataset", [
            f"{inputs}/labels", "--images", f"{inputs}/images", "--output-dir", str(out)]),
        "export": lambda out: ("export", ["--encoder", weights, "--output", f"{out}/a.onnx"]),
        "plan": lambda out: ("plan_training", [
            f"{inputs}/coco.json", "--images", f"{inputs}/images", "--output", f"{out}/a.yaml"]),
        "reconstruct": lambda out: ("reconstruct", [
            "--run", str(encoder), "--input", f"{inputs}/images", "--output-dir", str(out)]),
    }  # fmt: skip


def starters(bench: Bench) -> dict[str, Command]:
    """Tools that start others, on trainings that are long enough to be ended."""
    inputs, images = bench.inputs, f"{bench.inputs}/images"

    def ablate(out: Path) -> tuple[str, list[str]]:
        grid = bench.home / "grid.yaml"
        flags = f"""--model convnextv2_atto --data {images} --image-size 64 --batch-size 4
            --max-steps 400 --workers 0 --decoder-dim 16 --log-every 1 --checkpoint-every 100
            --device cpu""".split()
        names = [name.removeprefix("--") for name in flags[::2]]
        pretrain = {n: yaml.safe_load(v) for n, v in zip(names, flags[1::2], strict=True)}
        rows: dict[str, dict] = {"l2": {}, "l1": {"grn": {"aggregate": "l1"}}}
        tree = {"title": "faults", "source": "none", "baseline": "l2", "seeds": [0]}
        grid.write_text(yaml.safe_dump({**tree, "pretrain": pretrain, "rows": rows}),
                        encoding="utf-8")  # fmt: skip
        return "ablate", [str(grid), "--output-dir", str(out), "--jobs", "2"]

    return {
        "quickstart": lambda out: ("quickstart", [
            "--output-dir", str(out), "--train", "4", "--val", "2", "--unlabelled", "12",
            "--pretraining-steps", "400"]),
        "ablate": ablate,
        "study": lambda out: ("study", [
            "--images", images, "--train", f"{inputs}/train.json", "--test",
            f"{inputs}/test.json", "--train-images", images,
            "--test-images", images, "--output-dir", str(out), "--labels", "4", "--image-size",
            "64", "--jobs", "1"]),
    }  # fmt: skip


def place(bench: Bench, tool: str, name: str) -> Row:
    out, limit, word = PLACES[name](bench)
    if tool in TRAININGS:
        run = bench.train(TRAININGS[tool], out, limit=limit)
    else:
        script, arguments = (other_tools(bench) | starters(bench))[tool](out)
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


def _files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _predicted(bench: Bench, tool: str) -> dict[str, bytes]:
    """The files of a prediction that nothing happened to."""
    out = bench.home / "whole" / tool.replace(", ", "_")
    if not out.exists():
        assert bench.start(*predictions(bench)[tool](out)).end() == 0
    return _files(out)


def prediction_ended(bench: Bench, tool: str, name: str, code: int) -> Row:
    """A prediction is ended by a signal in its midst, then goes on."""
    whole, out = _predicted(bench, tool), bench.fresh()
    script, arguments = predictions(bench)[tool](out)
    run = bench.start(script, arguments)
    journal = out / JOURNAL
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 10, run)
    run.signal(getattr(signal, name))
    row = judged(run, f"{name} in its midst, then --resume", tool, code)
    again = bench.start(script, [*arguments, "--resume"])
    same = again.end() == 0 and _files(out) == whole
    row.lost = "nothing" if same else f"the same files: {again.line()}"
    row.right = row.right and same
    return row


def prediction_twice(bench: Bench, tool: str) -> Row:
    whole, out = _predicted(bench, tool), bench.fresh()
    script, arguments = predictions(bench)[tool](out)
    first = bench.start(script, arguments)
    wait_for(lambda: (out / JOURNAL).exists(), first)
    second = bench.start(script, [*arguments, "--resume"])
    row = judged(second, "started twice at once in one folder", tool, 1,
                 words=("is being written by process", str(first.process.pid)))  # fmt: skip
    same = first.end() == 0 and _files(out) == whole
    row.lost = "nothing" if same else "the first one's files"
    row.right = row.right and same
    return row


def cut_video(bench: Bench, ending: str) -> Row:
    """A video that was cut off while it was copied."""
    import av
    import numpy as np

    file = bench.inputs / f"cut.{ending}"
    generator = np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg2video" if ending == "ts" else "mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(20):
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 - 7])
    run = bench.start("predict", ["--run", str(bench.whole(TRAININGS["train"])), "--input",
                                  str(file), "--output-dir", str(bench.fresh())])  # fmt: skip
    row = judged(run, f"a .{ending} that was cut off is predicted on", "predict", 0)
    lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if "could be read" in line]
    row.line = said[0].partition(": ")[2] if said else row.line
    row.right = row.right and bool(said)
    return row


def _runs(out: Path) -> list[Path]:
    return sorted({path.parent for path in out.rglob("metrics.json")})


def children(bench: Bench, tool: str, name: str, code: int) -> Row:
    """A tool that has started others is told to end, and they are not."""
    out = bench.fresh()
    run = bench.start(*starters(bench)[tool](out))
    wait_for(lambda: any(finished_steps(each) >= 10 for each in _runs(out)), run, 180)
    subprocess.run(["kill", f"-{getattr(signal, name)}", str(run.process.pid)], check=False)
    run.began = time.monotonic()
    row = judged(run, f"{name} to it alone; what it started ends first", tool, code)
    steps = max((finished_steps(each) - steps_saved(each) for each in _runs(out)), default=1)
    row.lost = f"{steps} steps" if steps else row.lost
    row.right = row.right and not steps
    return row


def starter_twice(bench: Bench, tool: str) -> Row:
    out = bench.fresh()
    command = starters(bench)[tool](out)
    first = bench.start(*command)
    wait_for(lambda: _runs(out), first, 180)
    second = bench.start(*command)
    row = judged(second, "started twice at once in one folder", tool, 1,
                 words=("is being written by process", str(first.process.pid)))  # fmt: skip
    subprocess.run(["kill", "-TERM", str(first.process.pid)], check=False)
    ended = first.end()
    row.lost = "nothing" if ended == 143 else f"the first one, which ended with {ended}"
    row.right = row.right and ended == 143
    return row


def tool_rows(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, what makes the row)."""
    for tool in (*TRAININGS, *PREDICTING, *OTHERS, *STARTING):
        for where in PLACES:
            yield f"{where} {tool}", partial(place, bench, tool, where)
    for tool in PREDICTING:
        for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
            yield f"{name} {tool}", partial(prediction_ended, bench, tool, name, code)
        yield f"twice {tool}", partial(prediction_twice, bench, tool)
    for ending in ("mkv", "ts"):
        yield f"cut .{ending} predict", partial(cut_video, bench, ending)
    for tool in AGAIN:
        yield f"again {tool}", partial(again, bench, tool)
    for tool in STARTING:
        for name, code in (("SIGTERM", 143), ("SIGHUP", 129)):
            yield f"children {name} {tool}", partial(children, bench, tool, name, code)
        yield f"twice {tool}", partial(starter_twice, bench, tool)
