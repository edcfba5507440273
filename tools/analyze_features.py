"""Measure and draw how different the channels of models are, block by block.

It measures diversity (mean pairwise cosine distance of channels), dead and saturated channels and
effective rank; for labelled images (folders of classes, webdataset's .cls, a Hugging Face column)
also class selectivity. It draws channel maps, and the diversity of pretraining runs by epoch.
docs/feature_analysis.md says how to read them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from fcmae.features.models import SOURCES
from fcmae.features.run import AnalysisOptions, analyze_models, draw_runs
from fcmae.features.taps import TAPS
from fcmae.pretrain_options import parse_image_size
from training.cli import HelpFormatter, ToolParser, log_to, run_tool
from training.devices import DEVICES

EXAMPLES = """\
examples:
  # FCMAE with GRN beside an untrained encoder and a ViT of timm, on the same 1,000 images
  python tools/analyze_features.py --data imagenet/val --output-dir runs/features \\
      --model fcmae=runs/fcmae/encoder.safetensors --model untrained=random:convnextv2_atto \\
      --model mae=timm:vit_base_patch16_224.mae

  # one run's checkpoints in their order, features before GRN
  python tools/analyze_features.py --data my_images --output-dir runs/features --tap gelu \\
      --model step500=runs/fcmae/checkpoints/step_00000500/model.safetensors \\
      --model step1000=runs/fcmae/checkpoints/step_00001000/model.safetensors

  # diversity by block and epoch of pretraining runs, from their metrics.json: no images needed
  python tools/analyze_features.py --run grn=runs/fcmae --run none=runs/fcmae_no_grn \\
      --output-dir runs/features
"""


def parse() -> argparse.Namespace:
    defaults = AnalysisOptions({}, "", Path())
    parser = ToolParser(__doc__, EXAMPLES, formatter_class=HelpFormatter)
    add = parser.add_argument
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=SOURCE"}
    add("--model", help=f"repeatable: {SOURCES}", **named)
    add("--run", help="repeatable: a pretraining run's folder", **named)
    add("--data", help="images for --model: a folder, .tar shards or hfds/NAME")
    add("--output-dir", type=Path, required=True, help="where the files go")
    add("--tap", choices=TAPS, default=defaults.tap, help="what is measured")
    add("--images", type=int, default=defaults.images, help="largest number of images; 0: all")
    add(
        "--map-image",
        type=int,
        default=defaults.map_image,
        help="number of the image whose channel maps are drawn, from 0",
    )
    add("--image-size", help="pixels, 224 or 160x96; default: that of all models, else 224")
    add("--batch-size", type=int, default=defaults.batch_size, help="images")
    add("--workers", type=int, default=defaults.workers, help="reading images")
    add("--split", default=defaults.split, help="split to read, of hfds/ and some shards")
    add("--seed", type=int, default=defaults.seed, help="seed of untrained weights")
    add("--device", choices=DEVICES, help="where to compute; default: a GPU, if there is one")
    arguments = parser.parse_args()
    if not arguments.model and not arguments.run:
        parser.error("nothing to analyse: give --model NAME=SOURCE or --run NAME=FOLDER")
    if arguments.model and not arguments.data:
        parser.error("--model needs --data, the images to analyse it on")
    return arguments


def named_sources(flag: str, entries: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE -> {NAME: SOURCE}.

    Raises:
        InputError: for an entry without a name or a source, or a name given twice; all at once.
    """
    found: dict[str, str] = {}
    problems = []
    for entry in entries:
        name, _, source = entry.partition("=")
        if not name or not source or Path(name).name != name:
            problems.append(f"{flag} {entry} is not NAME=SOURCE, with a NAME that a file can have")
        elif name in found:
            problems.append(f"{flag} {name} is given twice: {found[name]} and {source}")
        found[name] = source
    if problems:
        raise InputError("; ".join(problems))
    return found


def main() -> None:
    arguments = vars(parse())
    runs = named_sources("--run", arguments.pop("run"))
    models = named_sources("--model", arguments.pop("model"))
    size = (text := arguments.pop("image_size")) and parse_image_size(text)
    images = arguments.pop("images") or None
    log_to()
    if runs:
        draw_runs({name: Path(folder) for name, folder in runs.items()}, arguments["output_dir"])
    if models:
        analyze_models(AnalysisOptions(models=models, image_size=size, images=images, **arguments))
    print(f"analysis: {arguments['output_dir']}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
