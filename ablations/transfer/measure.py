"""What weights and images from elsewhere are worth to a detector: three experiments.

The table has one row per training.

``detector to detector``: from a detector of drawn scenes (whole, or its encoder alone) and from
random weights (with ImageNet's mean and deviation, or the images' own) to nuclei with 8, 16 and 64
labelled images, and to fruits and nuts with 8 and with all 14 of theirs.

``a fourth band``: RGB is another picture, a crop of a photograph, where nothing of the nuclei is;
without and with the nuclei's grey as a fourth band of a TIFF.

``deep images``: nuclei of a dim 12-bit camera in PNGs of 16 bits (the 8-bit levels 0 to 255 become
200 to 1865), against the 8-bit originals, normalised by ImageNet's statistics (the default) and by
measured ones (the default of deep images), and against the same files cut by value // 256, as
detection read them before. To tell what so small a change as the deep files' rounding does to a
training, the 8-bit originals are normalised once more, by the measured statistics rounded to a
tenth of a level.

Every training has the same schedule, and a seed its labelled images, order and new weights in every
arm. Whole seeds are measured one after the other; each training's row is appended to
OUTPUT_DIR/transfer.csv, and those that stand there are not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile

import det_configs
from detection.config import load_config
from detection.data.scenes import write_scenes
from detection.run import run
from images.display import read_shown
from training.cli import ToolParser, log_to, run_tool

CONFIGS = Path(det_configs.__file__).parent / "quick"
SCENES = CONFIGS / "mask_rcnn_convnextv2_atto_scratch_quick.yaml"
NUCLEI = CONFIGS / "mask_rcnn_convnextv2_atto_scratch_nuclei.yaml"
EXAMPLES = """\
examples:
  python ablations/transfer/measure.py --data DATA --output-dir runs/transfer --seeds 0 1 2 3 4
"""
COLUMNS = ("experiment", "arm", "labelled", "seed", "box AP", "mask AP", "CPU seconds")
SIDE, OFFSET, GAIN = 256, 200, 1665 / 255
RAW = ["INPUT.FORMAT", "raw", "MODEL.CONVNEXT.IN_CHANS"]
BANDS = {"photographs": [*RAW, "3"], "photographs and the band": [*RAW, "4"]}
DEPTHS = {
    "8 bits": [],
    "8 bits, measured statistics": [*RAW, "3"],
    "8 bits, rounded statistics": [
        *(*RAW, "3", "MODEL.PIXEL_MEAN", str([12.6] * 3), "MODEL.PIXEL_STD", str([17.7] * 3)),
    ],
    "12 bits in 16": [],
    "their upper 8 bits": [],
}
FOLDERS = dict.fromkeys(("8 bits, measured statistics", "8 bits, rounded statistics"), "8 bits")
OWN = "random weights, own statistics"
STARTS = ("random weights", OWN, "the detector's encoder", "the detector")
FEW = {"nuclei": (8, 16, 64), "fruits_nuts": (8, 14)}

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """One row: its names, the annotations and images, and what its config changes."""

    experiment: str
    arm: str
    labelled: int
    train: str
    test: str
    changes: list[str]


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder that holds nuclei and fruits_nuts")
    add("--output-dir", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--arms", nargs="+", metavar="ARM", help="only these arms, by their names in the table")
    add("--iterations", type=int, default=100, help="of each training, of two images")
    add("--source-iterations", type=int, default=600, help="of the detector of drawn scenes")
    add("--test-images", type=int, default=30, help="of nuclei")
    return parser.parse_args()


def write_nuclei(nuclei: Path, photos: Path, out: Path, test_images: int) -> None:
    """The images of 256 x 256 pixels in every form, and their annotations."""
    pictures = [read_shown(path) for path in sorted(photos.iterdir())]
    generator = np.random.default_rng(0)
    for part, most in (("train", None), ("val", test_images)):
        tree = json.loads((nuclei / f"annotations/{part}.json").read_text(encoding="utf-8"))
        square = [i for i in tree["images"] if (i["height"], i["width"]) == (SIDE, SIDE)][:most]
        for image in square:
            pixels = read_shown(nuclei / "images" / image["file_name"])
            deep = np.rint(OFFSET + GAIN * pixels).astype(np.uint16)
            photo = _crop(pictures[generator.integers(len(pictures))], generator)
            grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
            forms = {
                "8 bits": pixels,
                "12 bits in 16": deep,
                "their upper 8 bits": (deep >> 8).astype(np.uint8),
                "photographs": photo,
                "photographs and the band": np.dstack([photo, grey]),
            }
            image["file_name"] = Path(image["file_name"]).stem
            for name, values in forms.items():
                stem = out / name / image["file_name"]
                stem.parent.mkdir(exist_ok=True)
                if values.shape[2] == 3:
                    cv2.imwrite(f"{stem}.png", values[..., ::-1])
                else:
                    tifffile.imwrite(
                        f"{stem}.tif", values, photometric="minisblack", planarconfig="contig"
                    )
        _write(out / f"nuclei_{part}.json", tree, square, ".png")
        _write(out / f"nuclei_{part}_tif.json", tree, square, ".tif")


def _crop(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    scale = 1.5 * SIDE / min(picture.shape[:2])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (generator.integers(side - SIDE + 1) for side in picture.shape[:2])
    return picture[top : top + SIDE, left : left + SIDE]


def _write(path: Path, tree: dict[str, Any], images: list[dict[str, Any]], ending: str) -> None:
    """COCO json of these images alone, whose names get an ending."""
    ids = {image["id"] for image in images}
    few = {
        **tree,
        "images": [{**image, "file_name": image["file_name"] + ending} for image in images],
        "annotations": [a for a in tree["annotations"] if a["image_id"] in ids],
    }
    path.write_text(json.dumps(few), encoding="utf-8")


def prepare(options: argparse.Namespace) -> None:
    """All images and annotations, and the detector of drawn scenes."""
    out, fruits = options.output_dir, options.data / "fruits_nuts"
    if not (out / "nuclei_val_tif.json").is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_nuclei(options.data / "nuclei", fruits / "images", out, options.test_images)
        for part in ("train", "val"):
            text = (fruits / f"annotations/{part}.json").read_text(encoding="utf-8")
            (out / f"fruits_nuts_{part}.json").write_text(text, encoding="utf-8")
    for name, sizes in FEW.items():
        tree = json.loads((out / f"{name}_train.json").read_text(encoding="utf-8"))
        for seed in options.seeds:
            order = np.random.default_rng(seed).permutation(len(tree["images"]))
            for size in sizes:
                images = [tree["images"][i] for i in order[:size]]
                _write(out / f"{name}_{size}_seed_{seed}.json", tree, images, "")
    if not (out / "source/source_metrics.json").is_file():
        write_scenes(out / "scenes", 100, 50, 0, 0)
        labels, images = out / "scenes/annotations", out / "scenes/images"
        sets = (f"json:{labels}/train.json:{images}", f"json:{labels}/val.json:{images}")
        iterations = options.source_iterations
        changes = ["INPUT.MIN_SIZE_TRAIN", "[224]", "INPUT.MIN_SIZE_TEST", "224"]
        found = train(SCENES, *sets, out / "source", 0, iterations, changes)
        (out / "source/source_metrics.json").write_text(json.dumps(found), encoding="utf-8")


def trainings(options: argparse.Namespace, seed: int) -> Iterator[Training]:
    """Every row of one seed."""
    out, source = options.output_dir, options.output_dir / "source/model_final.safetensors"
    weights = {
        "random weights": [],
        OWN: [*RAW, "3"],
        "the detector's encoder": ["MODEL.CONVNEXT.WEIGHTS", str(source)],
        "the detector": ["MODEL.WEIGHTS", str(source)],
    }
    folders = {"nuclei": out / "8 bits", "fruits_nuts": options.data / "fruits_nuts/images"}
    for name, sizes in FEW.items():
        test = f"json:{out}/{name}_val.json:{folders[name]}"
        for size in sizes:
            few = f"json:{out}/{name}_{size}_seed_{seed}.json:{folders[name]}"
            for arm in STARTS:
                yield Training(f"detector to {name}", arm, size, few, test, weights[arm])
    for experiment, arms in (("a fourth band", BANDS), ("deep images", DEPTHS)):
        for arm, changes in arms.items():
            ending = "_tif" if arm == "photographs and the band" else ""
            folder = out / FOLDERS.get(arm, arm)
            sets = [f"json:{out}/nuclei_{part}{ending}.json:{folder}" for part in ("train", "val")]
            yield Training(experiment, arm, 267, sets[0], sets[1], changes)


def train(
    config_file: Path,
    train_name: str,
    test_name: str,
    output_dir: Path,
    seed: int,
    iterations: int,
    changes: list[str],
) -> dict[str, Any]:
    """Train and evaluate: ``coco_metrics``."""
    config = load_config(
        config_file,
        [
            *("DATASETS.TRAIN", f"('{train_name}',)", "DATASETS.TEST", f"('{test_name}',)"),
            *("OUTPUT_DIR", str(output_dir), "SEED", str(seed), "MODEL.DEVICE", "cpu"),
            *("DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_PERIOD", str(iterations)),
            *("SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", f"({iterations * 4 // 5},)"),
            *changes,
        ],
    )
    return run(config, resume=True)


def main() -> None:
    options = parse()
    log_to()
    prepare(options)
    file = options.output_dir / "transfer.csv"
    if not file.is_file():
        file.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with file.open(newline="", encoding="utf-8") as stream:
        done = {tuple(row[:4]) for row in csv.reader(stream)}
    for seed in options.seeds:
        for row in trainings(options, seed):
            if options.arms and row.arm not in options.arms:
                continue
            names = (row.experiment, row.arm, str(row.labelled), str(seed))
            if names in done:
                continue
            began = time.process_time()
            folder = options.output_dir / "runs" / "_".join(names).replace(" ", "_")
            sets = (row.train, row.test)
            found = train(NUCLEI, *sets, folder, seed, options.iterations, row.changes)
            scores = [f"{found[task]['AP']:.3f}" for task in ("bbox", "segm")]
            line = (*names, *scores, f"{time.process_time() - began:.0f}")
            with file.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream, lineterminator="\n").writerow(line)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
