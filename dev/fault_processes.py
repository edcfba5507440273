"""Tools of this project in processes of their own, on tiny inputs, to which something happens.

The processes are forked from one that has imported everything: importing takes longer than the
runs. Each has a session of its own, and what limits it (memory, files, file systems) is set up
within it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training.command_line.jobs import finished_steps

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = [
    "fcmae.pretrain", "fcmae.classification.finetune", "detection.run", "segmentation.run",
    "detection.predict", "torch.utils.tensorboard", "matplotlib.pyplot",
]  # fmt: skip
PATIENCE = 60.0  # seconds: who has not ended by then hangs
STEPS = 12
NEW_NAMESPACE = 0x00020000  # unshare(CLONE_NEWNS)
DETECTOR = """
    MODEL.FPN.OUT_CHANNELS 32 MODEL.RPN.PRE_NMS_TOPK_TRAIN 50 MODEL.RPN.POST_NMS_TOPK_TRAIN 20
    MODEL.RPN.PRE_NMS_TOPK_TEST 50 MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_BOX_HEAD.FC_DIM 32
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 MODEL.ROI_MASK_HEAD.NUM_CONV 1
    MODEL.ROI_MASK_HEAD.CONV_DIM 32 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MAX_SIZE_TRAIN 64
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS ()
    SOLVER.WARMUP_ITERS 1 SOLVER.CHECKPOINT_PERIOD 4 SEED 0 DATASETS.TEST () MODEL.DEVICE cpu
"""
SEGMENTER = """
    MODEL.SEM_SEG_HEAD.CONVS_DIM 64 MODEL.SEM_SEG_HEAD.AUX_CHANNELS 32 INPUT.CROP.SIZE [64,64]
    INPUT.SCALE [64,64] TEST.SCALE [64,64] SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 1
    SOLVER.CHECKPOINT_PERIOD 4 SEED 0 MODEL.DEVICE cpu
"""


@dataclass(frozen=True)
class Training:
    """A tool that trains."""

    name: str  # in the table
    tool: str  # its file in ``tools/``
    final: str  # patterns of its final weights
    # from (inputs, output folder, steps, workers) to its command line
    arguments: Callable[[Path, Path, int, int], list[str]]
    changed: tuple[str, ...]  # an argument that changes what is learnt


def _pretrain(inputs: Path, out: Path, steps: int, workers: int) -> list[str]:
    return f"""--model convnextv2_atto --data {inputs}/images --output-dir {out} --image-size 64
        --batch-size 4 --max-steps {steps} --workers {workers} --decoder-dim 16 --log-every 1
        --checkpoint-every 4 --base-lr 0.01 --device cpu""".split()


def _classify(inputs: Path, out: Path, steps: int, workers: int) -> list[str]:
    return f"""--model convnextv2_atto --data {inputs}/classes --output-dir {out} --image-size 64
        --batch-size 4 --max-steps {steps} --workers {workers} --log-every 1 --checkpoint-every 4
        --device cpu""".split()


def _detect(engine: str) -> Callable[[Path, Path, int, int], list[str]]:
    def arguments(inputs: Path, out: Path, steps: int, workers: int) -> list[str]:
        config = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
        data = f"json:{inputs}/coco.json:{inputs}/images"
        run = f"SOLVER.MAX_ITER {steps} DATALOADER.NUM_WORKERS {workers} OUTPUT_DIR {out}".split()
        start = ["--config-file", config, "--engine", engine, "DATASETS.TRAIN", data]
        return [*start, *DETECTOR.split(), *run]

    return arguments


def _segment(inputs: Path, out: Path, steps: int, workers: int) -> list[str]:
    config = "quick/upernet_convnextv2_atto_scratch_quick.yaml"
    data = f"masks:{inputs}/images:{inputs}/labels:{inputs}/names.json"
    return ["--config-file", config, *SEGMENTER.split(), "DATASETS.TRAIN", data, "SOLVER.MAX_ITER",
            str(steps), "DATALOADER.NUM_WORKERS", str(workers), "OUTPUT_DIR", str(out)]  # fmt: skip


FINAL = "model_final.*"
CHANGED = ("MODEL.FPN.OUT_CHANNELS", "16")
TRAININGS = {
    each.name: each
    for each in (
        Training("pretrain", "pretrain_fcmae", "encoder.safetensors", _pretrain,
                 ("--mask-ratio", "0.75")),
        Training("classify", "finetune_classifier", "classifier.safetensors", _classify,
                 ("--seed", "5")),
        Training("train", "train_net", FINAL, _detect("torchvision"), CHANGED),
        Training("train, detectron2", "train_net", FINAL, _detect("detectron2"), CHANGED),
        Training("segment", "train_segmentation", FINAL, _segment, ("SEED", "5")),
    )
}  # fmt: skip


def write_inputs(folder: Path, images: int = 24) -> None:
    """Unlabelled images, classes, boxes with masks, and class maps, all of the same pictures."""
    generator = np.random.default_rng(0)
    entries, objects = [], []
    for name in ("images", "labels", "classes/dark", "classes/light"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        pixels = generator.integers(0, 120, (64, 64, 3), dtype=np.uint8)
        labels = np.zeros((64, 64), np.uint8)
        x, y = (int(value) for value in generator.integers(4, 36, 2))
        pixels[y : y + 20, x : x + 20] += 100
        labels[y : y + 20, x : x + 20] = 1
        file = f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / "images" / file)
        Image.fromarray(labels).save(folder / "labels" / file)
        light = pixels // 2 + 120 * (number % 2)
        Image.fromarray(light.astype(np.uint8)).save(
            folder / "classes" / ("light" if number % 2 else "dark") / file
        )
        entries.append({"id": number + 1, "file_name": file, "height": 64, "width": 64})
        polygon = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
        square = {"category_id": 1, "iscrowd": 0, "area": 400, "bbox": [x, y, 20, 20]}
        ids = {"id": number + 1, "image_id": number + 1}
        objects.append(ids | square | {"segmentation": [polygon]})
    tree = {"images": entries, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}
    (folder / "coco.json").write_text(json.dumps(tree), encoding="utf-8")
    few = {"train": entries[:18], "test": entries[18:]}  # apart, as a study wants them
    for name, kept in few.items():
        of_part = {entry["id"] for entry in kept}
        part = {"images": kept, "annotations": [o for o in objects if o["image_id"] in of_part]}
        (folder / f"{name}.json").write_text(json.dumps(tree | part), encoding="utf-8")
    (folder / "names.json").write_text('["ground", "square"]', encoding="utf-8")


class Run:
    """A tool in a process of its own."""

    def __init__(
        self,
        tool: str,
        arguments: Sequence[str],
        log: Path,
        limit: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.log = log
        self.began = time.monotonic()
        self.process: ForkServerProcess = context.Process(
            target=_tool, args=(tool, list(arguments), log, limit)
        )
        self.process.start()

    def end(self, patience: float = PATIENCE) -> int | None:
        """The exit code; None for a process that hangs, which is then killed."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.kill()
            return None
        self.seconds = time.monotonic() - self.began
        return self.process.exitcode

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def signal(self, number: int) -> None:
        """To the whole session's group, as a terminal or a scheduler sends it."""
        os.killpg(self.process.pid or 0, number)
        self.began = time.monotonic()

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [
            int(child)
            for child in Path(f"/proc/{pid}/task/{pid}/children")
            .read_text(encoding="utf-8")
            .split()
        ]

    def left_behind(self) -> list[int]:
        """Processes of its session that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, ValueError):
                state, _, _, session, *_ = (
                    stat.read_text(encoding="utf-8").rpartition(")")[2].split()
                )
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def line(self) -> str:
        """What the tool said last that is not a line of its log; an error with all its lines."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [place for place, line in enumerate(lines) if line.startswith("error: ")]
        if errors:
            first, *rest = lines[errors[-1] :]
            return " ".join([first, *(line.strip() for line in rest if line.startswith(" "))])
        said = [line for line in lines if "ended by" in line or "ended at once" in line]
        return (said or lines or [""])[-1]

    def has_traceback(self) -> bool:
        return "Traceback" in self.log.read_text(encoding="utf-8", errors="replace")


def _tool(tool: str, arguments: list[str], log: Path, limit: Callable[[], None] | None) -> None:
    """What a process does."""
    os.setsid()
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # the loaders', as on a command line
    torch.set_num_threads(1)
    os.chdir(ROOT)
    from training.cli import run_tool

    if limit is not None:
        limit()
    sys.argv = [f"tools/{tool}.py", *arguments]
    names = runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))
    sys.exit(run_tool(names["main"]))


def wait_for(condition: Callable[[], object], run: Run, patience: float = PATIENCE) -> bool:
    """Wait until something is true, while the process runs."""
    end = time.monotonic() + patience
    while not condition():
        if run.process.exitcode is not None or time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def is_under_way(out: Path) -> bool:
    """Whether a training has made a step beyond a checkpoint, or all but."""
    return finished_steps(out) >= 5 or (out / "last_checkpoint").exists()


def steps_saved(out: Path) -> int:
    """The steps behind a run's newest checkpoint, of any training."""
    names = [p.name for p in (out / "checkpoints").glob("step_*[0-9]")]
    found = [int(name[5:]) for name in names]
    found += [int(p.stem[6:]) + 1 for p in out.glob("model_[0-9]*.pth")]
    return max(found, default=0)


def weights(out: Path, final: str) -> dict[str, Tensor]:
    """The final weights of a run."""
    path = next(path for path in sorted(out.glob(final)) if path.suffix in (".safetensors", ".pth"))
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)["model"]


def are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def small_file_system(folder: Path, size: str, options: str = "") -> None:
    """Mount a small file system for this process alone.

    Raises:
        OSError: where this user or machine may not.
    """
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACE):
        raise PermissionError("this machine does not let this user mount")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(folder)],
    ):
        subprocess.run(command, check=True, capture_output=True)  # fmt: skip


def full_file_system(folder: Path) -> None:
    """Mount one on which not a byte is left, for this process alone."""
    small_file_system(folder, "64k")
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024))


def limit_files(number: int) -> None:
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


def limit_memory(further: int) -> None:
    """Let this process have so many more bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + further
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                          capture_output=True, check=False)  # fmt: skip
    return shutil.which("unshare") is not None and done.returncode == 0
