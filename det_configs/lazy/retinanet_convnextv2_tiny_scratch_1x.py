# RetinaNet on convnextv2_tiny from random weights, for detectron2's lazyconfig_train_net.py.
#
# Command:  python tools/lazyconfig_train_net.py --num-gpus 8 --config-file det_configs/lazy/retinanet_convnextv2_tiny_scratch_1x.py
# Expected: not yet run at this scale; its tests are a few iterations.
# Schedule: detectron2's 1x, 90,000 iterations of 16 images; AdamW, lr 1e-4, layer decay 0.95.
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from backbones.convnext import SIZES as _SIZES

from .common import SIZE, L, data, lr_multiplier, on_convnext, optimizer, pyramid, train, zoo

model = on_convnext(zoo("models/retinanet.py").model, pyramid())
model.backbone.bottom_up.out_features = ["stage2", "stage3", "stage4"]
model.backbone.top_block = L(LastLevelP6P7)(
    in_channels=_SIZES[SIZE].dims[3], out_channels="${..out_channels}", in_feature="stage4"
)
dataloader = data()
dataloader.train.mapper.use_instance_mask = False
