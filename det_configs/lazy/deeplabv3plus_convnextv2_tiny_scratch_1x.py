# DeepLabV3+ on convnextv2_tiny from random weights, for detectron2's lazyconfig_train_net.py.
#
# Command:  python tools/lazyconfig_train_net.py --num-gpus 8 --config-file det_configs/lazy/deeplabv3plus_convnextv2_tiny_scratch_1x.py
# Expected: not yet run at this scale; its tests are a few iterations.
# Schedule: detectron2's 1x, 90,000 iterations of 16 images; AdamW, lr 1e-4, layer decay 0.95.
import detectron2.data.transforms as T
from detectron2.evaluation import SemSegEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.projects.deeplab import DeepLabV3PlusHead

from backbones.convnext import SIZES as _SIZES

from .common import SIZE, L, data, encoder, lr_multiplier, on_convnext, optimizer, train

_features = {"stage1": (0, 4), "stage4": (3, 16)}  # place among the stages, stride
model = L(SemanticSegmentor)(
    sem_seg_head=L(DeepLabV3PlusHead)(
        input_shape={
            name: L(ShapeSpec)(channels=_SIZES[SIZE].dims[place], stride=stride)
            for name, (place, stride) in _features.items()
        },
        project_channels=[64],
        aspp_dilations=[6, 12, 18],
        aspp_dropout=0.1,
        decoder_channels=[256, 256],
        common_stride=4,
        norm="GN",
        train_size=None,
        loss_type="hard_pixel_mining",
        ignore_value=255,
        num_classes=150,
    ),
)
model = on_convnext(model, encoder(out_features=list(_features), output_stride=16))
dataloader = data()
dataloader.train.dataset.names = "ade20k_sem_seg_train"
dataloader.test.dataset.names = "ade20k_sem_seg_val"
dataloader.train.dataset.filter_empty = False
dataloader.train.mapper.augmentations.insert(
    1, L(T.RandomCrop)(crop_type="absolute", crop_size=[512, 512])
)
dataloader.train.mapper.use_instance_mask = False
dataloader.evaluator = L(SemSegEvaluator)(dataset_name="${..test.dataset.names}")
