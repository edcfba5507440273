"""Compute one feature vector per image: neighbours, probes, and which images to label next.

Writes --output, a NumPy archive: features, names, labels and classes (of folders of classes),
neighbours and similarities (cosine), options. --probe and --masks print how well frozen features
tell classes apart; --choose writes a list and a page of the images to label next.
docs/feature_analysis.md says how useful these are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones.compiling import COMPILE_HELP, compiled_encoders
from backbones.convnext import STAGES
from backbones.errors import counted
from backbones.whole_files import try_writing
from fcmae.features.choose import CHOICES
from fcmae.features.embeddings import POOLINGS, EmbedOptions, embed_folder, write_embeddings
from fcmae.features.next_images import probe_classes, probe_masks, write_next
from fcmae.pretrain_options import parse_image_size
from training.cli import HelpFormatter, ToolParser, log_to, run_tool
from training.devices import DEVICES

EXAMPLES = """\
examples:
  python tools/embed.py --encoder runs/fcmae/encoder.safetensors --data my_images \\
      --output features.npz

  # which 32 images to label next, beside those of a list
  python tools/embed.py --encoder runs/fcmae/encoder.safetensors --data my_images \\
      --output features.npz --choose 32 --labelled labelled.txt

  # how well frozen features tell folders of classes, and the classes of masks (NAME.png)
  python tools/embed.py --encoder timm:convnextv2_atto.fcmae --data my_classes \\
      --output features.npz --probe
  python tools/embed.py --encoder runs/fcmae/encoder.safetensors --data my_images \\
      --output features.npz --masks my_masks --stage stage3
"""


def parse() -> argparse.Namespace:
    defaults = EmbedOptions("", "")
    parser = ToolParser(__doc__, EXAMPLES, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--encoder", required=True, help="a checkpoint of any format, timm:NAME or random:NAME")
    add("--data", required=True, help="images: a folder, .tar shards, hfds/NAME")
    add("--output", type=Path, required=True, help="the archive, an .npz file")
    add("--stage", choices=STAGES, default=defaults.stage, help="the stage whose output is pooled")
    add(
        "--pooling",
        choices=POOLINGS,
        default=defaults.pooling,
        help="how the positions of an image become one vector",
    )
    add("--image-size", help="pixels, 224 or 160x96; default: the encoder's, else 224")
    add(
        "--neighbours",
        type=int,
        default=defaults.neighbours,
        help="how many neighbours of each image to write",
    )
    add(
        "--probe",
        action="store_true",
        help="print how well kNN and a linear classifier tell the class folders apart",
    )
    add(
        "--masks",
        type=Path,
        help="a folder of class maps NAME.png: print how well features predict them",
    )
    add("--choose", type=int, metavar="N", help="write a list of N images to label next")
    add("--by", choices=list(CHOICES), default="k-centre", help="how they are chosen")
    add(
        "--labelled",
        type=Path,
        help="a text file with the images that are labelled already, one per line",
    )
    add("--seed", type=int, default=0, help="seed of --choose")
    add("--batch-size", type=int, default=defaults.batch_size, help="images")
    add("--workers", type=int, default=defaults.workers, help="reading images")
    add("--split", default=defaults.split, help="split to read, of hfds/ and some shards")
    add("--device", choices=DEVICES, help="where to compute; default: a GPU, if there is one")
    add("--compile", action="store_true", help=COMPILE_HELP)
    arguments = parser.parse_args()
    if arguments.output.suffix != ".npz":
        parser.error(f"--output {arguments.output} must end in .npz")
    if arguments.labelled and not arguments.choose:
        parser.error("--labelled needs --choose")
    return arguments


def main() -> None:
    arguments = parse()
    log_to()
    try_writing(arguments.output)
    options = EmbedOptions(
        encoder=arguments.encoder,
        data=arguments.data,
        stage=arguments.stage,
        pooling=arguments.pooling,
        image_size=arguments.image_size and parse_image_size(arguments.image_size),
        neighbours=arguments.neighbours,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        split=arguments.split,
        device=arguments.device,
    )
    with compiled_encoders(arguments.compile):
        embeddings = embed_folder(options)
    write_embeddings(arguments.output, embeddings, options)
    print(f"{counted(len(embeddings.names), 'image')}: {arguments.output}")
    if arguments.probe:
        found = probe_classes(embeddings)
        print("accuracy (%) " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    if arguments.masks:
        found = probe_masks(embeddings, arguments.masks, options.stage)
        print("patches (%) " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    if arguments.choose:
        for name in write_next(
            *(arguments.output, embeddings, arguments.choose, arguments.by),
            *(arguments.labelled, arguments.seed),
        ):
            print(name)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
