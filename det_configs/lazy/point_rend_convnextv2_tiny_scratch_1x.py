# PointRend on convnextv2_tiny from random weights, for detectron2's lazyconfig_train_net.py.
#
# Command:  python tools/lazyconfig_train_net.py --num-gpus 8 --config-file det_configs/lazy/point_rend_convnextv2_tiny_scratch_1x.py
# Expected: not yet run at this scale; its tests are a few iterations.
# Schedule: detectron2's 1x, 90,000 iterations of 16 images; AdamW, lr 1e-4, layer decay 0.95.
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.projects.point_rend import PointRendMaskHead, add_pointrend_config
from omegaconf import OmegaConf

from .common import L, data, lr_multiplier, on_convnext, optimizer, pyramid, train, zoo

_settings = get_cfg()  # the mask head is made from a config alone
add_pointrend_config(_settings)
_settings.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = True
_settings.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
_parts = ("ROI_HEADS", "ROI_MASK_HEAD", "POINT_HEAD")

model = on_convnext(zoo("models/mask_rcnn_fpn.py").model, pyramid())
model.roi_heads.mask_in_features = ["p2"]
model.roi_heads.mask_pooler = None
model.roi_heads.mask_head = L(PointRendMaskHead)(
    cfg=OmegaConf.create({"MODEL": {part: dict(_settings.MODEL[part]) for part in _parts}}),
    input_shape={"p2": L(ShapeSpec)(channels=256, stride=4)},
)
model.roi_heads.mask_head.cfg.MODEL.ROI_HEADS.NUM_CLASSES = "${model.roi_heads.num_classes}"
model.roi_heads.mask_head.cfg.MODEL.POINT_HEAD.NUM_CLASSES = "${model.roi_heads.num_classes}"
dataloader = data()
dataloader.train.mapper.instance_mask_format = "bitmask"
