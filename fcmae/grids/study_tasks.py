"""The tasks of a study: the tool of a run, its metrics, and the learning rates to try."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcmae.grids.run import FINISHED
from images.statistics import Statistics
from training.command_line.tasks import Task, read_facts
from training.records.metrics import train_seconds


@dataclass(frozen=True)
class StudyTask:
    """A row of ``TASKS``."""

    stage: str  # of :class:`fcmae.grids.run.GridRun`
    metrics: tuple[str, str]  # names of what a run is measured by; the first decides
    keys: tuple[tuple[str, str], tuple[str, str]]  # where they stand in the run's summary
    unit: str  # of a difference, in sentences
    # tried for each start; of the middle one where there is no time to try
    rates: tuple[float, float, float]
    config_file: str  # of the trainings; "" for flags alone
    encoder: str  # the key or flag that names an encoder to start from
    whole: str  # the key that names a whole model to start from; "" where there is none apart

    def settings(
        self, train: str, test: str, size: str, image_size: int, steps: int, rate: float
    ) -> dict[str, Any]:
        """Flags or keys of a run, without its start and seed.

        Args:
            train, test: data sets as the tool names them.
            size: of the encoder.
            image_size: of a classifier's images; a config has its own.
        """
        if self.stage == "classify":
            return {
                "model": size, "data": train, "val-data": test, "image-size": image_size,
                "batch-size": 32, "base-lr": rate, "max-steps": steps, "eval-every": steps,
                "workers": 0,
            }  # fmt: skip
        keys: dict[str, Any] = {
            "DATASETS.TRAIN": train,
            "DATASETS.TEST": test,
            "MODEL.CONVNEXT.SIZE": size,
            "SOLVER.BASE_LR": rate,
            "SOLVER.MAX_ITER": steps,
            "SOLVER.CHECKPOINT_PERIOD": max(steps, 1),
            "DATALOADER.NUM_WORKERS": 0,
        }
        return keys | ({"SOLVER.STEPS": f"[{round(0.8 * steps)}]"} if self.has_steps else {})

    def normalised_by(self, statistics: Statistics) -> dict[str, Any]:
        """Flags or keys of a run whose images have this mean and deviation."""
        if self.stage == "classify":
            return {"mean": list(statistics.mean), "std": list(statistics.std)}
        mean, std = statistics.of_pixels()
        return {"MODEL.PIXEL_MEAN": str(mean), "MODEL.PIXEL_STD": str(std)}

    @property
    def has_steps(self) -> bool:
        """Whether the rate falls at given iterations."""
        return self.stage == "detect"

    @property
    def seed(self) -> str:
        return "seed" if self.stage == "classify" else "SEED"

    @property
    def steps(self) -> str:
        return "max-steps" if self.stage == "classify" else "SOLVER.MAX_ITER"

    def is_finished(self, folder: Path) -> bool:
        return (folder / FINISHED[self.stage]).is_file()

    def measured(self, folder: Path) -> tuple[float, float | None, float | None]:
        """Of a finished run: the metric that decides, the other, and the training's seconds."""
        summary = json.loads((folder / FINISHED[self.stage]).read_text(encoding="utf-8"))
        first, second = (summary.get(part, {}).get(name) for part, name in self.keys)
        return first or 0.0, second, _seconds(folder)


def _seconds(folder: Path) -> float | None:
    if facts := read_facts(folder):
        return facts.get("train_seconds")
    return train_seconds(folder / "metrics.json") or None


TASKS: dict[Task, StudyTask] = {
    "detection": StudyTask(
        "detect", ("box AP", "mask AP"), (("bbox", "AP"), ("segm", "AP")), "AP",
        (2.5e-4, 5e-4, 1e-3), "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml",
        "MODEL.CONVNEXT.WEIGHTS", "MODEL.WEIGHTS",
    ),
    "segmentation": StudyTask(
        "segment", ("mIoU", "pixel accuracy"), (("sem_seg", "mIoU"), ("sem_seg", "pACC")), "mIoU",
        (5e-4, 1e-3, 2e-3), "quick/upernet_convnextv2_atto_scratch_quick.yaml",
        "MODEL.CONVNEXT.WEIGHTS", "MODEL.WEIGHTS",
    ),
    "classification": StudyTask(
        "classify", ("top-1", "top-5"), (("trained", "top1"), ("trained", "top5")), "top-1",
        (2e-3, 4e-3, 8e-3), "", "init", "",
    ),
}  # fmt: skip
