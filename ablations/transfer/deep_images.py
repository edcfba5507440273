"""What deep images and further bands are worth to a detector: nuclei in six forms, one labelling.

  * ``8 bits``: as they are, normalised by ImageNet's statistics, the default.
  * ``8 bits, measured``: the same, normalised by measured statistics, as deep images are.
  * ``12 bits in 16``: a dim camera's: 8-bit levels 0 to 255 become 200 to 1865 of 4095, in PNGs of
    16 bits (an offset, and 40% of the range).
  * ``its upper 8 bits``: the same cut by value // 256, as detection read such files before.
  * ``photographs``: RGB is another picture, a crop of a photograph; nothing of the nuclei is there.
  * ``photographs + band``: the same with the nuclei's grey as a fourth band of a TIFF.

Random weights, the quick recipe; images of 256 x 256 pixels alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import tifffile

import det_configs
from detection.config import load_config
from detection.run import run
from images.display import read_shown
from training.cli import ToolParser, log_to, run_tool

CONFIG = Path(det_configs.__file__).parent / "quick/mask_rcnn_convnextv2_atto_scratch_nuclei.yaml"
EXAMPLES = """\
examples:
  python ablations/transfer/deep_images.py --nuclei nuclei --photos fruits_nuts/images \\
      --output-dir runs/deep_images --iterations 150 --seeds 0 1
"""
SIDE, OFFSET, GAIN = 256, 200, 1665 / 255
RAW = ["INPUT.FORMAT", "raw", "MODEL.CONVNEXT.IN_CHANS"]
FOLDERS = ("8_bits", "12_bits_in_16", "upper_8_bits", "photographs", "photographs_and_band")
FORMS: dict[str, tuple[str, list[str]]] = {
    "8 bits": ("8_bits", []),
    "8 bits, measured": ("8_bits", [*RAW, "3"]),
    "12 bits in 16": ("12_bits_in_16", []),
    "its upper 8 bits": ("upper_8_bits", []),
    "photographs": ("photographs", [*RAW, "3"]),
    "photographs + band": ("photographs_and_band", [*RAW, "4"]),
}


def parse() -> argparse.Namespace:
    parser = ToolParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--nuclei", type=Path, required=True, help="a folder of annotations/ and images/")
    add("--photos", type=Path, required=True, help="a folder of photographs")
    add("--output-dir", type=Path, required=True)
    add("--iterations", type=int, default=300)
    add("--seeds", type=int, nargs="+", default=[0])
    add("--test-images", type=int, default=66, help="at most so many")
    add("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    return parser.parse_args()


def write_forms(nuclei: Path, photos: Path, output_dir: Path, test_images: int) -> None:
    """Every form's images, and the annotations of those of 256 x 256 pixels."""
    pictures = [read_shown(path) for path in sorted(photos.iterdir())]
    generator = np.random.default_rng(0)
    for part, most in (("train", None), ("val", test_images)):
        tree = json.loads((nuclei / f"annotations/{part}.json").read_text(encoding="utf-8"))
        square = [i for i in tree["images"] if (i["height"], i["width"]) == (SIDE, SIDE)][:most]
        ids = {image["id"] for image in square}
        for image in square:
            pixels = read_shown(nuclei / "images" / image["file_name"])
            image["file_name"] = f"{Path(image['file_name']).stem}.tif"
            deep = np.rint(OFFSET + GAIN * pixels).astype(np.uint16)
            photo = _crop(pictures[generator.integers(len(pictures))], generator)
            grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
            for folder, values in zip(
                FOLDERS,
                (pixels, deep, deep >> 8, photo, np.dstack([photo, grey])),
                strict=True,
            ):
                path = output_dir / folder / image["file_name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                values = values if folder == "12_bits_in_16" else values.astype(np.uint8)
                kind = "rgb" if values.shape[2] == 3 else "minisblack"
                tifffile.imwrite(path, values, photometric=kind, planarconfig="contig")
        tree["images"] = square
        tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] in ids]
        (output_dir / f"{part}.json").write_text(json.dumps(tree), encoding="utf-8")


def _crop(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    scale = 1.5 * SIDE / min(picture.shape[:2])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (generator.integers(side - SIDE + 1) for side in picture.shape[:2])
    return picture[top : top + SIDE, left : left + SIDE]


def main() -> None:
    options = parse()
    log_to()
    output_dir = options.output_dir
    if not (output_dir / "train.json").is_file():
        write_forms(options.nuclei, options.photos, output_dir, options.test_images)
    file = output_dir / "deep_images.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for seed in options.seeds:
        for form in options.forms:
            if str(seed) in found.get(form, {}):
                continue
            name, changes = FORMS[form]
            folder = output_dir / name
            sets = {
                part: f"('json:{output_dir / file_name}.json:{folder}',)"
                for part, file_name in (("TRAIN", "train"), ("TEST", "val"))
            }
            overrides = [
                *(item for part, name in sets.items() for item in (f"DATASETS.{part}", name)),
                *("OUTPUT_DIR", str(output_dir / "runs" / f"{form.replace(' ', '_')}_{seed}")),
                *("SEED", str(seed), "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"),
                *("SOLVER.MAX_ITER", str(options.iterations)),
                *("SOLVER.STEPS", f"({options.iterations * 4 // 5},)"),
                *changes,
            ]
            metrics = run(load_config(CONFIG, overrides), config_file=str(CONFIG))
            entry = {task: metrics[task]["AP"] for task in ("bbox", "segm")}
            found.setdefault(form, {})[str(seed)] = entry
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| images | box AP of each seed | mask AP of each seed |\n| --- | --- | --- |")
    for form, seeds in found.items():
        cells = [", ".join(f"{s[task]:.1f}" for s in seeds.values()) for task in ("bbox", "segm")]
        print(f"| {form} | {' | '.join(cells)} |")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
