"""Convert labels of another tool to COCO json, and say what was read, changed and left out.

It reads YOLO (boxes and polygons, data.yaml), Pascal VOC, LabelMe, CVAT for images, Label Studio's
JSON, and masks as PNG (one map of instance ids per image, or a folder with one mask per object).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.errors import InputError, counted
from detection.data.coco_file import write_coco
from detection.data.formats.convert import READERS, read_labels
from detection.data.formats.labels import Builder
from training.cli import ToolParser, run_tool, say

EXAMPLES = """
examples:
  python tools/import_dataset.py yolo/data.yaml --output-dir coco
  python tools/import_dataset.py VOC2012/Annotations --images VOC2012/JPEGImages --output-dir coco
  python tools/import_dataset.py labelme_folder --output-dir coco
  python tools/import_dataset.py annotations.xml --from cvat --images images --output-dir coco
  python tools/import_dataset.py export.json --from labelstudio --images images --output-dir coco
  python tools/import_dataset.py masks --images images --class-name cell --output-dir coco

The output is train.json, val.json, ... for the splits of a data.yaml, else annotations.json. The
last lines name it in the form that tools/train_net.py and tools/check_dataset.py take.
"""


def parse_arguments() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("source", type=Path, help="the labels: a file or a folder")
    add("--from", dest="kind", choices=["auto", *READERS], default="auto", help="their format")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="the image folder, if the labels do not say where it is",
    )
    add(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to write the COCO files to",
    )
    add("--class-name", default="object", metavar="NAME", help="the class of all objects in masks")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    found = read_labels(
        options.source,
        options.kind,
        options.images,
        options.class_name,
        unpacked=options.output_dir / "images",
    )
    paths = {split: options.output_dir / f"{split}.json" for split in found}
    if there := [str(path) for path in paths.values() if path.exists()]:
        raise InputError(f"{', '.join(there)} exists already; choose another --output-dir")
    if not any(builder.annotations for builder in found.values()):
        for builder in found.values():
            say("\n".join(map(str, builder.problems())))
        read = sum(builder.read for builder in found.values())
        raise InputError(
            f"{options.source}: no object is left of {counted(read, 'label')} (see above); "
            "nothing is written"
        )
    for split, builder in found.items():
        write_coco(builder.tree(), paths[split])
        report(split, builder, paths[split])


def report(split: str, builder: Builder, path: Path) -> None:
    """Print what was read, changed and left out of a split."""
    for problem in builder.problems():
        say(str(problem))
    objects = len(builder.annotations)
    without = sum("segmentation" not in item for item in builder.annotations)
    print(
        f"{split}: {counted(builder.read, 'label')} read; written: {counted(objects, 'object')} on "
        f"{counted(len(builder.images), 'image')}, classes: {', '.join(builder.classes) or 'none'}"
    )
    if without and without < objects:
        say(
            f"{without} of them have a box and no mask: tools/check_dataset.py --repair leaves "
            "them out"
        )
    elif without:
        print("the objects have boxes and no masks: train with MODEL.MASK_ON False")
    print(f"json:{path}:{builder.root}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
