"""Run detectron2's own scripts, unmodified, on this backbone and on its R50, and print the table.

Each script of the given checkout runs a few iterations on a small drawn data set, from random
weights, as a process of its own; before it, the three lines that a detectron2 project adds
(docs/detectron2.md). Both models have the same small heads. A cell holds what a script left that
can be checked: the last loss, AP, a file; or the last line of its error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import yaml
from PIL import Image

from backbones.errors import InputError
from detection.data.scenes import write_scenes
from reporting.tables import markdown_table, write_between
from training.cli import ToolParser, run_tool

EXAMPLES = """\
examples:
  git clone https://github.com/facebookresearch/detectron2
  python dev/detectron2_clients.py detectron2 --output-dir /tmp/clients
  python dev/detectron2_clients.py detectron2 --output-dir /tmp/clients --only train_net analyze
"""
MODELS = ("ConvNeXt V2", "R50")
MARKS = ("<!-- clients -->", "<!-- end of clients -->")
ROOT = Path(__file__).resolve().parent.parent

# What runs before each script: the lines of docs/detectron2.md, and the data set's registration.
# Their scripts call get_cfg() themselves, so the keys go into what it copies.
PRELUDE = """
import runpy, sys
import torch
torch.set_num_threads(1)
from backbones.d2_adapter import add_convnext_config
from detectron2.config.defaults import _C
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances
add_convnext_config(_C)
data = {data!r}
for split in ("train", "val"):
    register_coco_instances(
        f"clients_{{split}}", {{}}, f"{{data}}/annotations/{{split}}.json", f"{{data}}/images"
    )
    name = f"clients_stuff_{{split}}"
    DatasetCatalog.register(
        name, lambda split=split: load_sem_seg(
            f"{{data}}/stuff_{{split}}", f"{{data}}/images", image_ext="png"
        )
    )
    MetadataCatalog.get(name).set(
        evaluator_type="sem_seg", stuff_classes={stuff!r}, ignore_label=255,
        stuff_dataset_id_to_contiguous_id={{n: n for n in range(len({stuff!r}))}},
    )
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _heads(classes: int, folder: Path) -> dict[str, Any]:
    """Settings of both models: small heads, small pictures, a few iterations, a CPU."""
    return {
        "VERSION": 2,
        "OUTPUT_DIR": str(folder),
        "SEED": 1,
        "DATASETS": {"TRAIN": ["clients_train"], "TEST": ["clients_val"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {
            "MIN_SIZE_TRAIN": [96],
            "MAX_SIZE_TRAIN": 160,
            "MIN_SIZE_TEST": 96,
            "MAX_SIZE_TEST": 160,
            "MASK_FORMAT": "bitmask",
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 1e-3, "MAX_ITER": 3, "STEPS": []},
        "TEST": {"DETECTIONS_PER_IMAGE": 5, "AUG": {"MIN_SIZES": [64, 96], "MAX_SIZE": 160}},
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "MASK_ON": True,
            "FPN": {"OUT_CHANNELS": 64},
            "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]]},
            "RPN": {
                "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
                "PRE_NMS_TOPK_TRAIN": 100,
                "PRE_NMS_TOPK_TEST": 100,
                "POST_NMS_TOPK_TRAIN": 50,
                "POST_NMS_TOPK_TEST": 50,
            },
            "ROI_HEADS": {
                "NAME": "StandardROIHeads",
                "IN_FEATURES": ["p2", "p3", "p4", "p5"],
                "NUM_CLASSES": classes,
                "BATCH_SIZE_PER_IMAGE": 32,
                "SCORE_THRESH_TEST": 0.0,
            },
            "ROI_BOX_HEAD": {
                "NAME": "FastRCNNConvFCHead",
                "NUM_FC": 1,
                "FC_DIM": 64,
                "POOLER_RESOLUTION": 7,
            },
            "ROI_MASK_HEAD": {
                "NAME": "MaskRCNNConvUpsampleHead",
                "NUM_CONV": 1,
                "CONV_DIM": 64,
                "POOLER_RESOLUTION": 14,
            },
        },
    }


STAGES = ["stage1", "stage2", "stage3", "stage4"]
BLOCKS = ["res2", "res3", "res4", "res5"]
ENCODERS: dict[str, dict[str, Any]] = {
    MODELS[0]: {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "BACKBONE": {"NAME": "build_convnext_fpn_backbone", "FREEZE_AT": 0},
            "FPN": {"IN_FEATURES": STAGES},
        },
    },
    MODELS[1]: {
        "MODEL": {
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
            "RESNETS": {"NORM": "GN", "STRIDE_IN_1X1": False, "OUT_FEATURES": BLOCKS},
            "FPN": {"IN_FEATURES": BLOCKS},
        }
    },
}
POINT_REND = {
    "MODEL": {
        "ROI_MASK_HEAD": {
            "NAME": "PointRendMaskHead",
            "POOLER_TYPE": "",
            "FC_DIM": 64,
            "NUM_FC": 1,
            "IN_FEATURES": ["p2"],
            "POINT_HEAD_ON": True,
        },
        "POINT_HEAD": {"FC_DIM": 64, "NUM_FC": 1, "IN_FEATURES": ["p2"]},
    }
}


def deeplab(model: str, stuff: int) -> dict[str, Any]:
    low, high = ("stage1", "stage4") if model == MODELS[0] else ("res2", "res5")
    backbone: dict[str, Any] = {"BACKBONE": {"NAME": "build_convnext_backbone"}}
    if model == MODELS[0]:
        backbone["CONVNEXT"] = {"OUTPUT_STRIDE": 16}
    else:
        backbone = {
            "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
            "RESNETS": {"OUT_FEATURES": [low, high], "RES5_DILATION": 2, "STEM_OUT_CHANNELS": 128},
        }
    return {
        "DATASETS": {"TRAIN": ["clients_stuff_train"], "TEST": ["clients_stuff_val"]},
        "MODEL": {
            **backbone,
            "META_ARCHITECTURE": "SemanticSegmentor",
            "SEM_SEG_HEAD": {
                "NAME": "DeepLabV3PlusHead",
                "IN_FEATURES": [low, high],
                "PROJECT_FEATURES": [low],
                "PROJECT_CHANNELS": [32],
                "ASPP_CHANNELS": 32,
                "CONVS_DIM": 32,
                "COMMON_STRIDE": 4,
                "NUM_CLASSES": stuff,
                "NORM": "GN",
            },
        },
        "SOLVER": {"LR_SCHEDULER_NAME": "WarmupPolyLR"},
    }


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """Later trees win."""
    found: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


LAZY = {
    MODELS[0]: """
from backbones.d2_adapter import D2ConvNeXt
model.backbone.bottom_up = L(D2ConvNeXt)(size="convnextv2_atto", out_features={stages})
model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
model.input_format = dataloader.train.mapper.image_format = "RGB"
""",
    MODELS[1]: """
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "GN"
""",
}
LAZY_BASE = """
from pathlib import Path
import detectron2
from detectron2.config import LazyCall as L, LazyConfig

zoo = Path(detectron2.__file__).parent / "model_zoo/configs/common"
model = LazyConfig.load(str(zoo / "models/mask_rcnn_fpn.py")).model
dataloader = LazyConfig.load(str(zoo / "data/coco.py")).dataloader
optimizer = LazyConfig.load(str(zoo / "optim.py")).AdamW
lr_multiplier = LazyConfig.load(str(zoo / "coco_schedule.py")).lr_multiplier_1x
train = LazyConfig.load(str(zoo / "train.py")).train
train.update(max_iter=2, device="cpu", eval_period=2, log_period=1, output_dir={folder!r})
dataloader.train.dataset.names, dataloader.test.dataset.names = "clients_train", "clients_val"
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.instance_mask_format = "bitmask"
for _mapper in (dataloader.train.mapper, dataloader.test.mapper):
    _mapper.augmentations[0].short_edge_length, _mapper.augmentations[0].max_size = 96, 160
model.roi_heads.num_classes = {classes}
model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (50, 50)
"""


@dataclass
class Client:
    """One script with its arguments, and what it must have left."""

    name: str  # the row
    script: str  # relative to the checkout
    config: str  # which config file it takes; "" for none
    arguments: tuple[str, ...]  # of its command line; ``{out}`` is the model's folder
    # from that folder and what was printed to the text of the table
    outcome: Callable[[Path, str], str]


def last_loss(folder: Path, printed: str) -> str:
    lines = [json.loads(line) for line in (folder / "metrics.json").open(encoding="utf-8")]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    if not np.isfinite(losses).all():
        raise InputError(f"a loss is not finite: {losses}")
    return f"loss {losses[-1]:.3g}"


def said(text: str, shown: str = "yes") -> Callable[[Path, str], str]:
    def outcome(folder: Path, printed: str) -> str:
        if text not in printed:
            raise InputError(f"it did not print {text!r}")
        return shown

    return outcome


def left(pattern: str) -> Callable[[Path, str], str]:
    def outcome(folder: Path, printed: str) -> str:
        count = len(list(folder.glob(pattern)))
        if not count:
            raise InputError(f"it left no {pattern}")
        return "1 file" if count == 1 else f"{count} files"

    return outcome


FINAL = ("MODEL.WEIGHTS", "{out}/run/model_final.pth")
EVALUATED = said("copypaste: ", "evaluates")
CLIENTS = (
    Client("train_net.py", "tools/train_net.py", "rcnn", (), last_loss),
    Client("train_net.py --resume", "tools/train_net.py", "rcnn",
           ("--resume", "SOLVER.MAX_ITER", "5"), last_loss),
    Client("train_net.py --eval-only", "tools/train_net.py", "rcnn",
           ("--eval-only", *FINAL), EVALUATED),
    Client("test-time augmentation", "tools/train_net.py", "rcnn",
           ("--eval-only", *FINAL, "TEST.AUG.ENABLED", "True"),
           said("test-time augmentation", "evaluates")),
    Client("plain_train_net.py", "tools/plain_train_net.py", "rcnn",
           ("OUTPUT_DIR", "{out}/plain"), EVALUATED),
    Client("lazyconfig_train_net.py", "tools/lazyconfig_train_net.py", "lazy", (), EVALUATED),
    Client("analyze_model.py, four tasks", "tools/analyze_model.py", "rcnn",
           ("--tasks", "flop", "activation", "parameter", "structure", "--num-inputs", "2"),
           said("Average GFlops", "counts")),
    Client("visualize_data.py", "tools/visualize_data.py", "rcnn",
           ("--source", "annotation", "--output-dir", "{out}/drawn"), left("../drawn/*")),
    Client("visualize_json_results.py", "tools/visualize_json_results.py", "",
           ("--input", "{out}/run/inference/coco_instances_results.json", "--output",
            "{out}/results", "--dataset", "clients_val"), left("../results/*")),
    Client("benchmark.py --task eval", "tools/benchmark.py", "rcnn",
           ("--task", "eval"), said("300 iters in", "times")),
    Client("export_model.py, tracing", "tools/deploy/export_model.py", "rcnn",
           ("--output", "{out}/exported", "--run-eval", *FINAL), EVALUATED),
    Client("projects/PointRend", "projects/PointRend/train_net.py", "pointrend", (), last_loss),
    Client("projects/DeepLab", "projects/DeepLab/train_net.py", "deeplab", (), last_loss),
)  # fmt: skip


def write_data(folder: Path) -> tuple[int, list[str]]:
    """A drawn data set, with label maps of the same objects; classes, and names of label values."""
    write_scenes(folder, train=4, val=6, unlabelled=0)
    names: list[str] = []
    for split in ("train", "val"):
        file = folder / "annotations" / f"{split}.json"
        tree = json.loads(file.read_text(encoding="utf-8"))
        names = [category["name"] for category in tree["categories"]]
        place = {category["id"]: n + 1 for n, category in enumerate(tree["categories"])}
        (folder / f"stuff_{split}").mkdir(exist_ok=True)
        for image in tree["images"]:
            labels = np.zeros((image["height"], image["width"]), np.uint8)
            for item in tree["annotations"]:
                if item["image_id"] == image["id"]:
                    labels[_mask(item["segmentation"], *labels.shape)] = place[item["category_id"]]
            name = Path(image["file_name"]).with_suffix(".png").name
            Image.fromarray(labels).save(folder / f"stuff_{split}" / name)
    return len(names), ["ground", *names]


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(segmentation).astype(bool)


def write_configs(folder: Path, model: str, classes: int, stuff: int) -> dict[str, Path]:
    """The config files of one model, by the names that ``CLIENTS`` has."""
    trees = {"rcnn": {}, "pointrend": POINT_REND, "deeplab": deeplab(model, stuff)}
    trees["pointrend"] = merged(POINT_REND, {"MODEL": {"POINT_HEAD": {"NUM_CLASSES": classes}}})
    found = {}
    for name, tree in trees.items():
        output = folder / ("run" if name == "rcnn" else name)
        content = merged(_heads(classes, output), ENCODERS[model], tree)
        found[name] = folder / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(content), encoding="utf-8")
    found["lazy"] = folder / "lazy.py"
    text = LAZY_BASE.format(folder=str(folder / "lazy"), classes=classes)
    found["lazy"].write_text(text + LAZY[model].format(stages=STAGES), encoding="utf-8")
    (folder / "lazy").mkdir(exist_ok=True)
    return found


def run_client(client: Client, checkout: Path, prelude: Path, folder: Path, configs: dict) -> str:
    """Run one script on one model; the cell of the table."""
    arguments = [argument.replace("{out}", str(folder)) for argument in client.arguments]
    if client.config:
        arguments = ["--config-file", str(configs[client.config]), *arguments]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(prelude), str(checkout / client.script), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=_environment(),
    )
    log = folder / f"{client.name.replace('/', ' ')}.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    seconds = time.perf_counter() - began
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return f"fails: {lines[-1] if lines else done.returncode}"
    output = folder / (client.config if client.config in ("pointrend", "deeplab") else "run")
    try:
        return f"{client.outcome(output, done.stdout + done.stderr)} ({seconds:.0f} s)"
    except (InputError, OSError) as error:
        return f"fails: {error}"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def main() -> int:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("checkout", type=Path, help="detectron2's repository")
    add("--output-dir", type=Path, required=True, help="data, configs and logs go here")
    add("--only", nargs="+", default=[""], metavar="TEXT", help="rows that have one of these")
    add("--page", type=Path, help="write the table into this page, between its marks")
    arguments = parser.parse_args()
    checkout, output = arguments.checkout.resolve(), arguments.output_dir.resolve()
    if not (checkout / "tools" / "train_net.py").is_file():
        raise InputError(f"{checkout} is no checkout of detectron2: it has no tools/train_net.py")
    classes, stuff = write_data(output / "data")
    prelude = output / "client.py"
    text = PRELUDE.format(data=str(output / "data"), stuff=stuff)
    prelude.write_text(text, encoding="utf-8")
    rows = []
    for client in CLIENTS:
        if not any(text in client.name for text in arguments.only):
            continue
        cells = []
        for model in MODELS:
            folder = output / model.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            configs = write_configs(folder, model, classes, len(stuff))
            cells.append(run_client(client, checkout, prelude, folder, configs))
            print(f"{client.name}, {model}: {cells[-1]}", file=sys.stderr, flush=True)
        rows.append((f"`{client.name}`", *cells))
    table = markdown_table(("detectron2's", *MODELS), rows)
    print(table)
    if arguments.page:
        write_between(arguments.page, MARKS, table)
    return int(any(cell.startswith("fails") for _, ours, _ in rows for cell in [ours]))


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
