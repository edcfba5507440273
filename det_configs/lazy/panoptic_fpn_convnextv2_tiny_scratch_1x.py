# Panoptic FPN on convnextv2_tiny from random weights, for detectron2's lazyconfig_train_net.py.
#
# Command:  python tools/lazyconfig_train_net.py --num-gpus 8 --config-file det_configs/lazy/panoptic_fpn_convnextv2_tiny_scratch_1x.py
# Expected: not yet run at this scale; its tests are a few iterations.
# Schedule: detectron2's 1x, 90,000 iterations of 16 images; AdamW, lr 1e-4, layer decay 0.95.
from .common import data, in_rgb, lr_multiplier, optimizer, pyramid, train, zoo

model = in_rgb(zoo("models/panoptic_fpn.py").model)
model.backbone = pyramid()
dataloader = data("coco_panoptic_separated.py")
