"""The torchvision engine's parts against naive references, and against detectron2 itself."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util
from small_coco import write_small_coco
from small_detector import sample, small_config, spread_scores
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from detection.dataset import load_dataset
from detection.engines.renaming import detectron2_to_torchvision, torchvision_to_detectron2
from detection.engines.torchvision.engine import TorchvisionEngine, warmup_schedule
from detection.engines.torchvision.model import build_mask_rcnn
from detection.engines.torchvision.predict import coco_results
from detection.engines.torchvision.roi import (
    AlignedRoIPool,
    mask_targets,
    paste_masks,
    rescale_detections,
)
from detection.engines.torchvision.rpn import Anchors

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def detector(changes=None, seed=0):
    torch.manual_seed(seed)
    return build_mask_rcnn(small_config(changes))


def sample_everything(model):
    """Take every anchor and every proposal into the losses, so that nothing is random."""
    for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image = 100_000
        sampler.positive_fraction = 0.5


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return overlap / (sum(areas) - overlap)


def test_anchors_are_unrounded_at_given_strides_by_sizes_then_ratios():
    # p5 of 250 x 330 pixels is 8 x 11, so p6 is 4 x 6: no integer of 256 // 4, 352 // 6 is 64.
    grids, strides = [(8, 11), (4, 6)], [32, 64]
    sizes, ratios = [[10.0, 15.0], [33.0]], [[0.5, 2.0], [0.5, 1.0, 2.0]]
    anchors = Anchors(sizes, ratios, strides, offset=0.25)
    features = [torch.zeros(2, 1, *grid, dtype=torch.bfloat16) for grid in grids]
    images = ImageList(torch.zeros(2, 3, 256, 352), [(250, 330), (256, 256)])
    expected = [
        [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        for (rows, columns), stride, level_sizes, level_ratios in zip(
            grids, strides, sizes, ratios, strict=True
        )
        for y in [(row + 0.25) * stride for row in range(rows)]
        for x in [(column + 0.25) * stride for column in range(columns)]
        for size in level_sizes
        for ratio in level_ratios
        for w, h in [(size / math.sqrt(ratio), size * math.sqrt(ratio))]
    ]
    for found in anchors(images, features):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_regions_are_pooled_from_the_level_of_their_size():
    pool = AlignedRoIPool(STRIDES, 7, 0)
    sides = [1, 111.9, 112, 223.9, 224, 447.9, 448, 2000, 0]
    boxes = torch.tensor([[10.0, 10.0, 10 + side, 10 + side] for side in sides])
    # 4 + log2(side / 224), floored, between levels 2 and 5
    assert pool.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]


def test_roi_align_has_no_half_pixel_shift():
    # On a map whose value is its own position in the image, a bin's mean is its centre.
    x = (torch.arange(32) + 0.5) * 4
    features = {"p2": torch.stack(torch.meshgrid(x, x, indexing="ij"))[None]}
    box = [20.3, 41.9, 76.1, 97.7]
    pooled = AlignedRoIPool({"p2": 4}, 7, 0)(features, [torch.tensor([box])], [(128, 128)])
    centres = [(torch.arange(7) + 0.5) * (box[i + 2] - box[i]) / 7 + box[i] for i in (1, 0)]
    expected = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None]
    torch.testing.assert_close(pooled, expected, atol=1e-3, rtol=0)


def test_no_regions_pool_to_nothing_and_images_keep_theirs():
    features = {name: torch.rand(2, 3, 64 // s, 64 // s) for name, s in STRIDES.items()}
    pool = AlignedRoIPool(STRIDES, 7, 0)
    boxes = [torch.zeros(0, 4), torch.tensor([[3.0, 3.0, 40.0, 30.0]])]
    both = pool(features, boxes, [(64, 64)] * 2)
    alone = pool({k: v[1:] for k, v in features.items()}, boxes[1:], [(64, 64)])
    assert torch.equal(both, alone)
    assert pool(features, [boxes[0], boxes[0]], [(64, 64)] * 2).shape == (0, 3, 7, 7)


def naive_paste(mask, box, height, width):
    """Bilinear interpolation at pixel centres, zero outside of the mask, cell by cell."""
    size = len(mask)
    result = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            u = (column + 0.5 - box[0]) / (box[2] - box[0]) * size - 0.5
            v = (row + 0.5 - box[1]) / (box[3] - box[1]) * size - 0.5
            value = 0.0
            for i in (math.floor(v), math.floor(v) + 1):
                for j in (math.floor(u), math.floor(u) + 1):
                    if 0 <= i < size and 0 <= j < size:
                        value += mask[i][j] * (1 - abs(v - i)) * (1 - abs(u - j))
            result[row, column] = value >= 0.5
    return result


def test_masks_are_pasted_at_pixel_centres():
    masks = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(
        [[2.3, 1.7, 13.9, 9.2], [0, 0, 20, 12], [-3.0, 4.0, 6.5, 15.0], [7.2, 3.1, 7.9, 11.0]]
    )
    pasted = paste_masks(masks, boxes, (12, 20))
    for mask, box, found in zip(masks, boxes, pasted, strict=True):
        expected = naive_paste(mask.tolist(), box.tolist(), 12, 20)
        assert np.array_equal(found.numpy(), expected)
    assert pasted.flatten(1).any(1).sum() >= 3
    assert paste_masks(masks[:0], boxes[:0], (12, 20)).shape == (0, 12, 20)


def test_mask_values_of_exactly_a_half_are_inside():
    inside = paste_masks(torch.full((1, 4, 4), 0.5), torch.tensor([[0.0, 0, 8, 8]]), (8, 8))
    assert inside[0, 1:-1, 1:-1].all()


def test_mask_targets_on_the_pixel_grid_are_the_masks_own_pixels():
    masks = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.5
    boxes = torch.tensor([[3.0, 5.0, 11.0, 13.0], [20.0, 2.0, 28.0, 10.0]])
    targets = mask_targets(masks, torch.tensor([1, 0]), boxes, 8)
    assert torch.equal(targets[0].bool(), masks[1, 5:13, 3:11])
    assert torch.equal(targets[1].bool(), masks[0, 2:10, 20:28])


def test_boxes_are_rescaled_then_clipped_and_empty_ones_dropped():
    detections = {
        "boxes": torch.tensor([[10.0, 10, 30, 40], [95.0, 10, 100, 20], [0.0, 48, 10, 50]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([1, 2, 3]),
        "masks": torch.ones(3, 4, 4),
    }
    found = rescale_detections(detections, (50, 100), (100, 190))
    expected = [[19.0, 20, 57, 80], [180.5, 20, 190, 40], [0, 96, 19, 100]]
    torch.testing.assert_close(found["boxes"], torch.tensor(expected))
    assert found["masks"].shape == (3, 100, 190)
    outside = detections | {"boxes": torch.tensor([[1.0, 1, 1, 9], [1.0, 1, 2, 2], [5.0, 5, 4, 9]])}
    assert rescale_detections(outside, (50, 100), (50, 100))["labels"].tolist() == [2]


def test_proposals_are_ranked_by_logits_where_sigmoid_saturates():
    rpn = detector().rpn.eval()
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1.0, 1, 20, 20], [30.0, 30, 50, 50]]])
    logits = torch.tensor([100.0, 200.0, 150.0])  # all 1.0 as float32 probabilities
    found, scores = rpn.filter_proposals(boxes, logits, [(64, 64)], [3])
    assert scores[0].tolist() == [200, 150]  # the first overlaps the second by more than 0.7
    assert found[0].tolist() == [[1, 1, 20, 20], [30, 30, 50, 50]]


def test_thin_proposals_stay_and_empty_or_infinite_ones_go():
    rpn = detector().rpn.eval()
    boxes = torch.tensor(
        [[[5.0, 5, 5.0005, 20], [5.0, 5, 5, 20], [70.0, 5, 90, 20], [1.0, 1, float("inf"), 9]]]
    )
    found, _ = rpn.filter_proposals(boxes, torch.zeros(4), [(64, 64)], [4])
    assert found[0].tolist() == [torch.tensor([5.0, 5, 5.0005, 20]).tolist()]


def test_a_prediction_that_is_not_finite_shows_in_the_losses_even_if_never_sampled():
    model = detector({"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2}).train()
    with torch.no_grad():
        model.rpn.head.bbox_pred.bias[3] = float("inf")
    losses = model([sample(64, 64, 1)])
    assert torch.isnan(losses["loss_rpn_cls"])


def test_proposals_are_suppressed_within_a_level_only():
    rpn = detector().rpn.eval()
    boxes = torch.tensor([[[0.0, 0, 20, 20], [0.0, 0, 20, 20]]])
    assert len(rpn.filter_proposals(boxes, torch.zeros(2), [(64, 64)], [2])[0][0]) == 1
    assert len(rpn.filter_proposals(boxes, torch.zeros(2), [(64, 64)], [1, 1])[0][0]) == 2


def test_rpn_losses_are_the_sums_over_anchors_by_a_fixed_divisor():
    model = detector({"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000}).train()
    inputs = [sample(64, 96, 2), sample(64, 96, 0, seed=1)]
    images = model.normalize_and_pad([item["image"] for item in inputs])
    with torch.no_grad():
        features = model.backbone(images.tensors)
        _, losses = model.rpn(images, features, [{"boxes": item["boxes"]} for item in inputs])
        logits, deltas = model.rpn.head(list(features.values()))
    anchors = model.rpn.anchor_generator(images, list(features.values()))[0].double()
    objectness, regression = 0.0, 0.0
    for index, item in enumerate(inputs):
        z = torch.cat([level[index].permute(1, 2, 0).flatten() for level in logits]).double()
        d = torch.cat([level[index].permute(1, 2, 0).reshape(-1, 4) for level in deltas]).double()
        for number, anchor in enumerate(anchors.tolist()):
            overlaps = [iou(anchor, box) for box in item["boxes"].tolist()]
            best = max(overlaps, default=0.0)
            is_best_of_a_box = any(
                overlap > 0 and overlap >= max(iou(a, box) for a in anchors.tolist()) - 1e-6
                for overlap, box in zip(overlaps, item["boxes"].tolist(), strict=True)
                if overlap > 0.1 and overlap < 0.7
            )
            if best >= 0.7 or is_best_of_a_box:
                x0, y0, x1, y1 = item["boxes"][overlaps.index(best)].tolist()
                w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
                target = [
                    ((x0 + x1) - (anchor[0] + anchor[2])) / 2 / w,
                    ((y0 + y1) - (anchor[1] + anchor[3])) / 2 / h,
                    math.log((x1 - x0) / w),
                    math.log((y1 - y0) / h),
                ]
                regression += sum(
                    abs(a - b) for a, b in zip(d[number].tolist(), target, strict=True)
                )
                objectness += math.log1p(math.exp(-z[number]))
            elif best < 0.3:
                objectness += math.log1p(math.exp(z[number]))
    assert losses["loss_rpn_cls"].item() == pytest.approx(objectness / 200_000, rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(regression / 200_000, rel=1e-3)


def test_box_and_mask_losses_are_means_over_all_sampled_regions():
    model = detector().train()
    sample_everything(model)
    inputs = [sample(64, 96, 2), sample(64, 96, 1, seed=1)]
    targets = [item | {"labels": item["labels"] + 1} for item in inputs]
    sizes = [(64, 96)] * 2
    proposals = [item["boxes"] + torch.tensor([1.0, -1.0, 2.0, 0.5]) for item in inputs]
    proposals = [torch.cat((p, torch.tensor([[0.0, 0.0, 9.0, 9.0]]))) for p in proposals]
    with torch.no_grad():
        features = model.backbone(torch.rand(2, 3, 64, 96))
        losses = model.roi_heads.losses(features, list(proposals), sizes, targets)
        regions = [torch.cat((p, t["boxes"])) for p, t in zip(proposals, targets, strict=True)]
        logits, deltas = model.roi_heads.predict_boxes(features, regions, sizes)
    box_loss, class_loss, mask_losses, row = 0.0, 0.0, [], 0
    for index, (boxes, target) in enumerate(zip(regions, targets, strict=True)):
        for box in boxes:
            overlaps = [iou(box.tolist(), b) for b in target["boxes"].tolist()]
            match = int(np.argmax(overlaps))
            label = target["labels"][match].item() if overlaps[match] >= 0.5 else 0
            class_loss -= logits[row].log_softmax(0)[label].item()
            if label:
                truth, width, height = target["boxes"][match], box[2] - box[0], box[3] - box[1]
                wanted = torch.stack(
                    [
                        10 * ((truth[0] + truth[2]) - (box[0] + box[2])) / 2 / width,
                        10 * ((truth[1] + truth[3]) - (box[1] + box[3])) / 2 / height,
                        5 * ((truth[2] - truth[0]) / width).log(),
                        5 * ((truth[3] - truth[1]) / height).log(),
                    ]
                )
                box_loss += (deltas[row, 4 * label : 4 * label + 4] - wanted).abs().sum().item()
                alone = [box[None] if i == index else box[None][:0] for i in range(2)]
                with torch.no_grad():
                    mask = model.roi_heads.predict_masks(
                        features, alone, sizes, torch.tensor([label])
                    )
                bits = mask_targets(target["masks"], torch.tensor([match]), box[None], 28)
                mask_losses.append(F.binary_cross_entropy_with_logits(mask, bits).item())
            row += 1
    assert len(mask_losses) >= 4
    assert losses["loss_cls"].item() == pytest.approx(class_loss / row, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(box_loss / row, rel=1e-4)
    assert losses["loss_mask"].item() == pytest.approx(np.mean(mask_losses), rel=1e-5)


def test_a_batch_without_objects_trains():
    model = detector().train()
    losses = model([sample(64, 64, 0), sample(64, 96, 0, seed=1)])
    assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_the_backgrounds_box_and_mask_rows_stay_zero_in_training():
    model = detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model([sample(64, 64, 3)]).values()).backward()
        optimizer.step()
    torchvision_to_detectron2(model.state_dict())  # refuses anything else
    assert model.roi_heads.box_predictor.bbox_pred.weight[4:].abs().min() > 0


def test_images_are_normalised_then_padded_with_zeros_to_32s():
    model = detector({"MODEL.PIXEL_MEAN": [10.0, 20.0, 30.0], "MODEL.PIXEL_STD": [1.0, 2.0, 4.0]})
    images = [torch.full((3, 33, 60), 50, dtype=torch.uint8), torch.full((3, 64, 30), 50.0)]
    batch = model.normalize_and_pad(images)
    assert batch.tensors.shape == (2, 3, 64, 64)
    assert batch.image_sizes == [(33, 60), (64, 30)]
    assert batch.tensors[0, :, :33, :60].amax((1, 2)).tolist() == [40, 15, 5]
    assert batch.tensors[0, :, 33:].abs().max() == batch.tensors[1, :, :, 30:].abs().max() == 0


def test_fresh_heads_have_detectron2s_spread():
    heads = detector({"MODEL.ROI_HEADS.NUM_CLASSES": 40}).roi_heads
    assert heads.box_predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert heads.box_predictor.bbox_pred.weight[4:].std().item() == pytest.approx(0.001, rel=0.1)
    masks = heads.mask_predictor
    assert masks.mask_fcn_logits.weight[1:].std().item() == pytest.approx(0.001, rel=0.1)
    fc = heads.box_head.fc6.weight  # uniform of Caffe2's XavierFill: variance 1 / fan in
    assert fc.var().item() == pytest.approx(1 / fc.shape[1], rel=0.1)
    biases = [p for name, p in heads.named_parameters() if name.endswith("bias")]
    assert all(bias.abs().max() == 0 for bias in biases)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_the_stem_and_the_stages(freeze_at):
    body = detector({"MODEL.BACKBONE.FREEZE_AT": freeze_at}).backbone.body
    frozen = {
        ".".join(name.split(".")[:2]) for name, p in body.named_parameters() if not p.requires_grad
    }
    expected = {"downsample_layers.0"} if freeze_at else set()
    for stage in range(freeze_at - 1):
        expected |= {f"downsample_layers.{stage}", f"stages.{stage}"}
    assert frozen == expected
    assert all(p.requires_grad for p in body.out_norms.parameters())


def test_bf16_autocast_keeps_boxes_and_losses_in_float32():
    model = detector()
    spread_scores(model)
    inputs = [sample(64, 96, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(inputs)
        with torch.no_grad():
            (found,) = model.eval()(inputs)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(found["boxes"]) > 0


def test_an_image_is_detected_alike_alone_and_in_a_batch():
    model = detector().eval()
    spread_scores(model)
    first, second = sample(96, 96, 0), sample(96, 96, 0, seed=1)
    with torch.no_grad():
        together, alone = model([first, second])[1], model([second])[0]
    assert len(alone["boxes"]) > 10
    torch.testing.assert_close(together["boxes"], alone["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(together["scores"], alone["scores"], atol=1e-5, rtol=0)


def test_other_widths_of_rpn_convolutions_are_refused():
    with pytest.raises(ValueError, match=r"CONV_DIMS is \[64\].*use -1"):
        detector({"MODEL.RPN.CONV_DIMS": [64]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.001, 0.5005, 1, 0.1]),
        ({"SOLVER.WARMUP_METHOD": "constant"}, [0.001, 0.001, 1, 0.1]),
        (
            {"SOLVER.WARMUP_ITERS": 0, "SOLVER.STEPS": (1, 2), "SOLVER.GAMMA": 0.5},
            [1, 0.5, 0.25, 0.25],
        ),
        (
            {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.WARMUP_ITERS": 0},
            [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4],
        ),
    ],
)
def test_learning_rate_factors_by_hand(changes, expected):
    factor = warmup_schedule(small_config(changes).SOLVER)
    assert [factor(step) for step in range(4)] == pytest.approx(expected)


def test_results_are_coco_boxes_masks_and_the_annotations_category_ids(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    masks[0, 1:4, 2:8] = True
    detections = {
        "boxes": torch.tensor([[1.5, 2.0, 8.25, 4.0], [0.0, 0.0, 3.0, 3.0]]),
        "scores": torch.tensor([0.9, 0.25]),
        "labels": torch.tensor([1, 0]),
        "masks": masks,
    }
    first, second = coco_results(detections, dataset, 12)
    assert first["bbox"] == [1.5, 2.0, 6.75, 2.0]
    assert (first["category_id"], second["category_id"]) == (9, 2)
    assert (first["image_id"], second["score"]) == (12, 0.25)
    assert first["segmentation"]["size"] == [6, 9]
    for result, mask in zip((first, second), masks, strict=True):
        assert np.array_equal(mask_util.decode(result["segmentation"]), mask.numpy())
    json.dumps([first, second])


def test_predictions_cover_every_image_in_order_and_repeat_exactly(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    changes = {"OUTPUT_DIR": str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES": 0}
    config = small_config(changes | {"TEST.DETECTIONS_PER_IMAGE": 5})
    model = detector({"MODEL.ROI_HEADS.NUM_CLASSES": 2})
    spread_scores(model)
    weights = tmp_path / "detectron2s.pth"
    torch.save({"model": torchvision_to_detectron2(model.state_dict())}, weights)
    engine = TorchvisionEngine()
    path = engine.predict(config, dataset, str(weights))
    assert path == tmp_path / "inference" / "coco_instances_results.json"
    text = path.read_text()
    ids = [result["image_id"] for result in json.loads(text)]
    assert ids == sorted(ids)
    assert set(ids) == {3, 7, 12, 20}
    assert engine.predict(config, dataset, str(weights)).read_text() == text


def test_predicting_without_any_weights_is_a_clear_error(tmp_path):
    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    config = small_config({"OUTPUT_DIR": str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES": 0})
    with pytest.raises(ValueError, match="holds no checkpoint: train first"):
        TorchvisionEngine().predict(config, dataset, None)


def test_a_gpu_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    changes = {"OUTPUT_DIR": str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES": 0}
    config = small_config(changes | {"MODEL.DEVICE": "cuda:3"})
    with pytest.raises(ValueError, match=r"cuda:3, but PyTorch finds 0 GPU"):
        TorchvisionEngine().predict(config, dataset, "any.pth")


# Against detectron2 itself, in the variants that the stored values of test_detection_parity lack.

VARIANTS = {
    "no norms": {},
    "norms and convolutions": {
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.NORM": "GN",
        "MODEL.RPN.CONV_DIMS": [-1, -1],
    },
    "other anchors, levels and sampling": {
        "MODEL.CONVNEXT.OUT_FEATURES": ["stage2", "stage3", "stage4"],
        "MODEL.FPN.IN_FEATURES": ["stage2", "stage3", "stage4"],
        "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[11.0, 23.0]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    },
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def pair(request):
    """The same weights in both engines: (torchvision's, detectron2's)."""
    from detectron2.modeling import build_model

    import backbones.d2_adapter  # noqa: F401 - registers the backbone
    from detection.config import to_detectron2

    ours = detector(request.param)
    spread_scores(ours)
    theirs = build_model(to_detectron2(small_config(request.param)))
    theirs.load_state_dict(torchvision_to_detectron2(ours.state_dict()))
    return ours, theirs


@pytest.mark.detectron2
@pytest.mark.parametrize("size", [(256, 256), (250, 330)])
def test_detections_equal_detectron2s(pair, size):
    ours, theirs = (model.eval() for model in pair)
    items = [sample(*size, 0), sample(size[0] - 21, size[1] - 34, 0, seed=1)]
    items = [
        item | {"height": item["height"] * 2 - 7, "width": item["width"] + 3} for item in items
    ]
    with torch.no_grad():
        results = zip(ours(items), theirs(items), strict=True)
    for found, expected in results:
        expected = expected["instances"]
        assert len(found["boxes"]) > 20
        assert torch.equal(found["labels"], expected.pred_classes)
        torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, atol=1e-4, rtol=0)
        torch.testing.assert_close(found["scores"], expected.scores, atol=1e-5, rtol=0)
        differing = (found["masks"] != expected.pred_masks).sum().item()
        # Boxes that differ by a rounding may move a mask's value across one half in a pixel or two.
        is_exact = torch.equal(found["boxes"], expected.pred_boxes.tensor)
        assert differing == 0 or (not is_exact and differing <= 2)


@pytest.mark.detectron2
def test_losses_and_gradients_equal_detectron2s(pair):
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    ours, theirs = (model.train() for model in pair)
    sample_everything(ours)
    theirs.proposal_generator.batch_size_per_image = 100_000
    theirs.roi_heads.batch_size_per_image = 100_000
    theirs.roi_heads.positive_fraction = 0.5
    items = [sample(160, 200, 4), sample(130, 160, 0, seed=1), sample(160, 160, 3, seed=2)]
    instances = [
        Instances(
            (item["height"], item["width"]),
            gt_boxes=Boxes(item["boxes"]),
            gt_classes=item["labels"],
            gt_masks=BitMasks(item["masks"]),
        )
        for item in items
    ]
    batch = [
        {"image": item["image"], "instances": truth}
        for item, truth in zip(items, instances, strict=True)
    ]
    found = ours(items)
    with EventStorage():
        expected = theirs(batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.item() > 0
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    gradients = detectron2_to_torchvision({n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        assert error < 1e-4, name


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 5, 12, 100])
def test_learning_rates_equal_detectron2s(name, method, warmup):
    from detectron2.solver import build_lr_scheduler

    from detection.config import to_detectron2

    config = small_config(
        {
            "SOLVER.LR_SCHEDULER_NAME": name,
            "SOLVER.WARMUP_METHOD": method,
            "SOLVER.WARMUP_ITERS": warmup,
            "SOLVER.WARMUP_FACTOR": 0.01,
            "SOLVER.MAX_ITER": 20,
            "SOLVER.STEPS": (8, 15),
        }
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(to_detectron2(config), optimizer)
    factor = warmup_schedule(config.SOLVER)
    for step in range(20):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.detectron2
def test_results_equal_detectron2s_writer(tmp_path):
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.structures import Boxes, Instances

    annotations, images = write_small_coco(tmp_path)
    dataset = load_dataset(f"json:{annotations}:{images}")
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 2, generator=generator) * 20
    boxes = torch.cat((corner, corner + torch.rand(5, 2, generator=generator) * 30), 1)
    detections = {
        "boxes": boxes,
        "scores": torch.rand(5, generator=generator),
        "labels": torch.tensor([0, 1, 0, 1, 1]),
        "masks": torch.rand(5, 40, 50, generator=generator) > 0.7,
    }
    instances = Instances(
        (40, 50),
        pred_boxes=Boxes(boxes.clone()),
        scores=detections["scores"],
        pred_classes=detections["labels"],
        pred_masks=detections["masks"],
    )
    expected = instances_to_coco_json(instances, 7)
    for result in expected:
        result["category_id"] = dataset.category_ids[result["category_id"]]
    assert coco_results(detections, dataset, 7) == expected
