"""Write the labels of the images that each way of choosing would have labelled, by seed.

OUTPUT_DIR gets ``NAME_COUNT_BY_seed_N.json`` for 16, 32 and 64 images, chosen among those of POOL
by the embeddings of the reproduction's encoder of that seed. What is there stays, so that it goes
on after an interruption.
"""

from __future__ import annotations

import json
from pathlib import Path

from backbones.whole_files import linked_folder, write_json
from fcmae.features.choose import CHOICES, choose
from fcmae.features.embeddings import EmbedOptions, embed_folder
from training.cli import ToolParser

COUNTS = (16, 32, 64)
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)
ENCODER = "runs/reproduction/pretraining/pretrain/fcmae_seed_{seed}/encoder.safetensors"
PIXELS = (128, 128)  # as the encoders were pretrained


def main() -> None:
    parser = ToolParser(__doc__)
    parser.add_argument("name", help="of the data set, in the files' names")
    parser.add_argument("pool", type=Path, help="COCO json of the images to choose among")
    parser.add_argument("images", type=Path, help="their folder")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--encoder", default=ENCODER, help="with {seed} for the seed's number")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    labels = json.loads(options.pool.read_text(encoding="utf-8"))
    by_name = {Path(image["file_name"]).name: image for image in labels["images"]}
    files = {name: options.images / image["file_name"] for name, image in by_name.items()}
    folder = linked_folder(options.output_dir / f"{options.name}_pool", files)
    for seed in options.seeds:
        targets = {
            (by, count): options.output_dir / f"{options.name}_{count}_{by}_seed_{seed}.json"
            for by in CHOICES
            for count in COUNTS
        }
        if all(target.is_file() for target in targets.values()):
            continue
        encoder = options.encoder.format(seed=seed)
        found = embed_folder(EmbedOptions(encoder, str(folder), image_size=PIXELS))
        names = [Path(name).name for name in found.names]
        for (by, count), target in targets.items():
            rows = choose(by, found.features, count, seed=seed)
            chosen = [by_name[names[row]] for row in rows]
            ids = {image["id"] for image in chosen}
            objects = [item for item in labels["annotations"] if item["image_id"] in ids]
            write_json(target, {**labels, "images": chosen, "annotations": objects})
        print(f"{options.name}: chosen with the encoder of seed {seed}")


if __name__ == "__main__":
    main()
