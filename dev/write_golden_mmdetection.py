"""Run mmdetection on small detectors and store what it says in tests/golden/mmdetection.json.

``tests/test_detection_mmdetection.py`` holds both engines to this. It needs mmdetection 3.3, which
runs without mmcv's compiled part: its operators are torchvision's here. In an environment with
torch and torchvision::

    pip install --no-deps mmdet==3.3.0 mmengine mmcv-lite==2.1.0 mmpretrain==1.2.0 six addict \
        terminaltables yapf platformdirs shapely rich scipy tomli einops mat4py ordered-set \
        model-index "importlib_metadata<8" zipp

``--packages`` names the folder of such an environment's packages, put behind this one's.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from training.cli import ToolParser, run_tool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from golden import inputs, mmdetection, outputs
from two_engines import Detections

EPILOG = "example:\n  python dev/write_golden_mmdetection.py --packages mmdet/lib/site-packages"
CONFIGS = {
    "mask": "mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py",
    "cascade": "cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
}


class RoIAlign(nn.Module):
    """mmcv's, by torchvision."""

    def __init__(self, output_size: Any, spatial_scale: float, sampling_ratio: int = 0, **_: Any):
        super().__init__()
        assert isinstance(output_size, int)
        self.output_size = (output_size, output_size)
        self.spatial_scale, self.sampling_ratio = spatial_scale, sampling_ratio

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        ratio = self.sampling_ratio or -1
        return torchvision.ops.roi_align(
            x, rois, self.output_size, self.spatial_scale, ratio, aligned=True
        )


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, nms_cfg: dict[str, Any], *_: Any
) -> tuple[Tensor, Tensor]:
    """mmcv's, by torchvision."""
    threshold = nms_cfg["iou_threshold"]
    keep = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, groups, threshold)
    return torch.cat([boxes[keep], scores[keep, None]], -1), keep


class _Operators(types.ModuleType):
    """``mmcv.ops``: what is not here is an empty class that nobody calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return {"RoIAlign": RoIAlign, "batched_nms": batched_nms}.get(name) or type(
            name, (nn.Module,), {}
        )


class _Finder:
    """Finds ``mmcv.ops``, and leaves out a part of mmpretrain that newer transformers break."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.startswith("mmcv.ops") or name == "mmpretrain.models.multimodal":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Operators(spec.name) if "ops" in spec.name else types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def build(kind: str) -> nn.Module:
    """mmdetection's own detector of the published config, at the size of the golden ones."""
    import mmdet
    import mmpretrain.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "convnext"
    model = Config.fromfile(str(folder / CONFIGS[kind])).model
    model.backbone.init_cfg = None
    model.backbone.arch = {
        "depths": list(mmdetection.SIZE.depths),
        "channels": list(mmdetection.SIZE.dims),
    }
    model.neck.in_channels, model.neck.out_channels = list(mmdetection.SIZE.dims), 16
    model.rpn_head.in_channels = model.rpn_head.feat_channels = 16
    model.rpn_head.anchor_generator.scales = [2]
    heads = model.roi_head
    for part in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        part.out_channels, part.finest_scale = 16, 56
    for head in heads.bbox_head if kind == "cascade" else [heads.bbox_head]:
        head.in_channels, head.fc_out_channels, head.num_classes = 16, 32, inputs.NUM_CLASSES
        if kind == "cascade":
            head.num_shared_convs, head.conv_out_channels = 2, 16
    mask = heads.mask_head
    mask.num_convs, mask.in_channels, mask.conv_out_channels = 1, 16, 16
    mask.num_classes = inputs.NUM_CLASSES
    test = model.test_cfg
    test.rpn.nms_pre, test.rpn.max_per_img, test.rcnn.max_per_img = 60, 50, 20
    return MODELS.build(model).eval()


@torch.no_grad()
def detect(model: Any, samples: list[dict[str, Any]]) -> list[Detections]:
    """What mmdetection finds on images that are not resized."""
    from mmdet.structures import DetDataSample

    found = []
    for sample in samples:
        image = sample["image"].flip(0)  # RGB to the BGR that it reads
        size = tuple(image.shape[1:])
        scale = (size[1] / sample["width"], size[0] / sample["height"])
        data = DetDataSample(
            metainfo={
                "img_shape": size,
                "ori_shape": (sample["height"], sample["width"]),
                "scale_factor": scale,
            }
        )
        result = model.test_step({"inputs": [image], "data_samples": [data]})[0].pred_instances
        masks = torch.as_tensor(np.asarray(result.masks)).bool()
        found.append(Detections(result.bboxes, result.scores, result.labels, masks))
    return found


def main() -> None:
    parser = ToolParser(__doc__, EPILOG)
    parser.add_argument("--packages", type=Path, help="a folder that holds mmdet")
    parser.add_argument("--output", type=Path, default=mmdetection.FILE)
    args = parser.parse_args()
    if args.packages:
        sys.path.append(str(args.packages))
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    torch.set_num_threads(1)
    golden = {}
    for kind in CONFIGS:
        model = build(kind)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict(mmdetection.weights(shapes))
        found = detect(model, mmdetection.samples())
        golden[kind] = {"shapes": shapes, "detections": [outputs.pack(one) for one in found]}
        print(f"{kind}: detections {[len(one.scores) for one in found]}")
    args.output.write_text(
        json.dumps(golden, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8"
    )
    print(f"wrote {args.output} ({args.output.stat().st_size} bytes)")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
