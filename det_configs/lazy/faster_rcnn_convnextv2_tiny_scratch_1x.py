# Faster R-CNN on convnextv2_tiny from random weights, for detectron2's lazyconfig_train_net.py.
#
# Command:  python tools/lazyconfig_train_net.py --num-gpus 8 --config-file det_configs/lazy/faster_rcnn_convnextv2_tiny_scratch_1x.py
# Expected: not yet run at this scale; its tests are a few iterations.
# Schedule: detectron2's 1x, 90,000 iterations of 16 images; AdamW, lr 1e-4, layer decay 0.95.
from .common import data, lr_multiplier, on_convnext, optimizer, pyramid, train, zoo

model = on_convnext(zoo("models/mask_rcnn_fpn.py").model, pyramid())
for part in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(part)
dataloader = data()
dataloader.train.mapper.use_instance_mask = False
