"""AP of detectron2's architectures on this encoder: from FCMAE weights against random weights.

The models are those of det_configs/lazy with small heads, trained and evaluated by detectron2's own
``do_train`` (tools/lazyconfig_train_net.py, which its wheel brings). Each seed pretrains an encoder
of its own, on the training images of both data sets without their labels:

* ``nuclei``: tiles of 128x128 pixels, cut by ablations/reproduction/prepare.py;
* ``coco_mini``: its photographs, shrunk to a shorter side of 128 pixels, all categories as one
  ("an object"): 129 images do not teach 80 classes.

Start it again after an interruption: what is finished is not run again.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import detectron2
import numpy as np
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances
from detectron2.layers import ShapeSpec
from detectron2.utils.env import seed_all_rng
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO

import det_configs
from backbones.convnext import SIZES
from backbones.d2_adapter import lr_decay_rate
from fcmae.pretrain import pretrain as run_pretraining
from fcmae.pretrain_options import PretrainOptions
from reporting.tables import markdown_table, write_between
from training.cli import ToolParser, at_least, log_to, run_tool
from training.records.intervals import estimate, paired_difference

ROOT = Path(__file__).resolve().parent.parent.parent
LAZY = Path(det_configs.__file__).parent / "lazy"
ARCHITECTURES = {
    "Mask R-CNN": "mask_rcnn",
    "Cascade Mask R-CNN": "cascade_mask_rcnn",
    "RetinaNet": "retinanet",
}
ARMS = ("scratch", "fcmae")
MARKS = ("<!-- architectures -->", "<!-- end of architectures -->")
ENCODER, CHANNELS = "convnextv2_atto", 64
EXAMPLES = """\
examples:
  # data holds nuclei, coco_mini and imagenet_samples, as for ablations/reproduction
  python ablations/architectures/compare.py data --output-dir runs/architectures
"""


class Data(NamedTuple):
    """A data set and how its images are seen."""

    side: int  # the shorter side of an image, in pixels
    anchor: int  # the smallest anchor's side, in pixels


DATA = {"nuclei": Data(128, 8), "coco_mini": Data(128, 16)}


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("data", type=Path, help="the folder of the data sets")
    add("--output-dir", type=Path, required=True)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--iterations", type=at_least(1), default=150, help="of a detector, 2 images each")
    add("--pretraining-steps", type=at_least(1), default=400, help="of 32 crops each")
    add("--page", type=Path, help="write the table into this page, between its marks")
    return parser.parse_args()


def write_data(data: Path, folder: Path) -> None:
    """Tiles and links by the reproduction's script; coco_mini small, with one category."""
    if (folder / "coco_mini").is_dir():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interruption left
    prepare = ROOT / "ablations/reproduction/prepare.py"
    seeds = ("--seeds", "1")
    subprocess.run([sys.executable, prepare, data, folder, *seeds], check=True)
    partial_folder = folder / "coco_mini.partial"
    (partial_folder / "images").mkdir(parents=True)
    for part in ("train", "val"):
        labels = COCO(str(data / "coco_mini/annotations" / f"{part}.json"))
        tree = _shrunk(labels, data / "coco_mini/images", partial_folder / "images")
        file = partial_folder / f"{part}.json"
        file.write_text(json.dumps(tree), encoding="utf-8")
    partial_folder.rename(folder / "coco_mini")


def _shrunk(labels: COCO, images: Path, output: Path) -> dict[str, Any]:
    """The images with a shorter side of ``DATA``'s, their objects' masks likewise, one category."""
    tree: dict[str, Any] = {"images": [], "annotations": []}
    tree["categories"] = [{"id": 1, "name": "object"}]
    for image in labels.dataset["images"]:
        pixels = Image.open(images / image["file_name"]).convert("RGB")
        factor = DATA["coco_mini"].side / min(pixels.size)
        size = (round(pixels.width * factor), round(pixels.height * factor))
        name = f"{Path(image['file_name']).stem}.png"
        pixels.resize(size, Image.Resampling.BICUBIC).save(output / name)
        width, height = size
        tree["images"].append(
            {"id": image["id"], "file_name": name, "width": width, "height": height}
        )
        for annotation in labels.imgToAnns[image["id"]]:
            mask = Image.fromarray(labels.annToMask(annotation))
            small = np.asfortranarray(mask.resize(size, Image.Resampling.NEAREST))
            if not small.any():
                continue  # smaller than a pixel now
            rle = rle_codec.encode(small)
            counts = rle["counts"].decode()
            tree["annotations"].append(
                {
                    "id": annotation["id"],
                    "image_id": image["id"],
                    "category_id": 1,
                    "iscrowd": annotation["iscrowd"],
                    "area": float(small.sum()),
                    "bbox": rle_codec.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": counts},
                }
            )
    return tree


def pretrain(data: Path, folder: Path, seed: int, steps: int) -> Path:
    """An encoder, with the reproduction's settings."""
    encoder = folder / "encoder.safetensors"
    if not encoder.is_file():
        options = PretrainOptions(
            model=ENCODER,
            data=str(data),
            output_dir=str(folder),
            image_size=(128, 128),
            batch_size=32,
            max_steps=steps,
            base_lr=8e-3,
            clip_norm=3.0,
            workers=0,
            checkpoint_every=100,
            seed=seed,
            device="cpu",
        )
        run_pretraining(options, resume=(folder / "config.yaml").is_file())
    return encoder


def configure(file: Path, data: str, weights: Path | None, folder: Path, iterations: int) -> Any:
    """A LazyConfig of det_configs/lazy, made small: atto, few channels, few iterations."""
    cfg = LazyConfig.load(str(file))
    model, loader, (side, anchor) = cfg.model, cfg.dataloader, DATA[data]
    encoder = model.backbone.bottom_up
    encoder.update(size=ENCODER, drop_path_rate=0.0, weights=str(weights) if weights else "")
    model.backbone.out_channels = CHANNELS
    sizes = [anchor * 2**level for level in range(5)]
    if "roi_heads" in model:
        _shrink_proposals(model.proposal_generator, sizes)
        _shrink_heads(model.roi_heads)
    else:
        model.num_classes = 1
        model.backbone.top_block.in_channels = SIZES[ENCODER].dims[3]
        model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 5)
        model.head.conv_dims = [CHANNELS, CHANNELS]
        thirds = [[size * 2 ** (part / 3) for part in range(3)] for size in sizes]
        model.anchor_generator.sizes = thirds
    for part, names in ((loader.train, "train"), (loader.test, "val")):
        part.dataset.names = f"{data}_{names}"
        part.num_workers = 0
        part.mapper.augmentations[0].update(short_edge_length=side, max_size=2 * side)
    loader.train.total_batch_size = 2
    if "use_instance_mask" in loader.train.mapper and loader.train.mapper.use_instance_mask:
        loader.train.mapper.instance_mask_format = "bitmask"
    loader.evaluator.output_dir = str(folder / "inference")
    cfg.optimizer.lr = 5e-4  # the best of ablations/reproduction/grids/rates.yaml
    cfg.optimizer.params.lr_factor_func = partial(lr_decay_rate, size=ENCODER, rate=0.95)
    cfg.lr_multiplier.warmup_length = min(1.0, 20 / iterations)
    cfg.lr_multiplier.scheduler.update(values=[1.0, 0.1], milestones=[8, 10])
    cfg.train.update(output_dir=str(folder), device="cpu", max_iter=iterations)
    cfg.train.update(eval_period=iterations, log_period=20)
    cfg.train.checkpointer.update(period=iterations + 1, max_to_keep=1)
    return cfg


def _shrink_proposals(rpn: Any, sizes: list[int]) -> None:
    rpn.head.in_channels = CHANNELS
    rpn.anchor_generator.sizes = [[size] for size in sizes]
    rpn.update(pre_nms_topk=[500, 500], post_nms_topk=[200, 200])


def _shrink_heads(heads: Any) -> None:
    heads.update(num_classes=1, batch_size_per_image=32)
    boxes = heads.get("box_heads") or [heads.box_head]
    predictors = heads.get("box_predictors") or [heads.box_predictor]
    for box, predictor in zip(boxes, predictors, strict=True):
        box.update(input_shape=ShapeSpec(channels=CHANNELS, height=7, width=7), fc_dims=[256, 256])
        predictor.input_shape = ShapeSpec(channels=256)
    heads.mask_head.input_shape = ShapeSpec(channels=CHANNELS, width=14, height=14)
    heads.mask_head.conv_dims = [CHANNELS] * 3  # the last one enlarges


def detectron2_script() -> ModuleType:
    """detectron2's tools/lazyconfig_train_net.py; this project's ``tools`` may hide its package."""
    file = Path(detectron2.__file__).parent.parent / "tools/lazyconfig_train_net.py"
    spec = importlib.util.spec_from_file_location("lazyconfig_train_net", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(cfg: Any, seed: int) -> dict[str, float]:
    """Train and evaluate; box AP, and mask AP where there is one, in percent."""
    folder = Path(cfg.train.output_dir)
    shutil.rmtree(folder, ignore_errors=True)  # what an interruption left
    folder.mkdir(parents=True)
    seed_all_rng(seed)
    detectron2_script().do_train(argparse.Namespace(resume=False), cfg)
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    last = [json.loads(line) for line in lines if '"bbox/AP"' in line][-1]
    for file in folder.glob("*.pth"):
        file.unlink()
    gc.collect()
    names = {"box AP": "bbox/AP", "mask AP": "segm/AP"}
    # detectron2 says NaN where nothing was detected
    return {name: max(0.0, last[key]) for name, key in names.items() if key in last}


def table(found: dict[str, dict[str, float]], seeds: list[int]) -> str:
    """Means over seeds, and the paired difference with its 95% interval (Student's t)."""
    rows = []
    for title, architecture in ARCHITECTURES.items():
        for data in DATA:
            for metric in ("box AP", "mask AP"):
                arms = [
                    {
                        seed: found[f"{data}/{architecture}/{arm}/{seed}"][metric]
                        for seed in seeds
                        if metric in found.get(f"{data}/{architecture}/{arm}/{seed}", {})
                    }
                    for arm in ARMS
                ]
                difference = paired_difference(arms[1], arms[0])
                if difference is None:
                    continue
                means = [f"{estimate(list(arm.values())).mean:.1f}" for arm in arms]
                each = ", ".join(f"{arms[1][seed] - arms[0][seed]:+.1f}" for seed in arms[0])
                rows.append((title, data, metric, *means, difference.said(1, "+"), each))
    titles = ("", "data", "", "random weights", "FCMAE", "difference", "of each seed")
    return markdown_table(titles, rows)


def main() -> None:
    options = parse()
    out = options.output_dir
    log_to()
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    write_data(options.data, out / "data")
    places = {
        "nuclei": (out / "data/tiles", out / "data/tiles/images"),
        "coco_mini": (out / "data/coco_mini", out / "data/coco_mini/images"),
    }
    for name, (labels, images) in places.items():
        for part in ("train", "val"):
            register_coco_instances(f"{name}_{part}", {}, str(labels / f"{part}.json"), str(images))
    photographs = out / "data/pretraining"
    photographs.mkdir(exist_ok=True)
    for name in DATA:
        if not (photographs / name).is_symlink():
            (photographs / name).symlink_to((out / "data/images" / name).resolve())
    file = out / "results.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for seed in options.seeds:
        folder = out / f"encoder_{seed}"
        encoder = pretrain(photographs, folder, seed, options.pretraining_steps)
        for data in DATA:
            for architecture in ARCHITECTURES.values():
                for arm in ARMS:
                    name = f"{data}/{architecture}/{arm}/{seed}"
                    if name in found:
                        continue
                    config = LAZY / f"{architecture}_convnextv2_tiny_{arm}_1x.py"
                    weights = encoder if arm == "fcmae" else None
                    cfg = configure(config, data, weights, out / "runs" / name, options.iterations)
                    found[name] = train(cfg, seed)
                    print(name, found[name], flush=True)
                    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(found, options.seeds)
    (out / "table.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)
    if options.page:
        write_between(options.page, MARKS, text)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
