"""The engines agree on whatever comes: any size, any number of objects, any proposals, no object.

The golden cases of ``test_detection_parity.py`` are fixed; here hypothesis draws the batches.
"""

from functools import cache
from itertools import product

import pytest
import torch
from golden import inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_coco import small_coco, write_small_coco
from two_engines import (
    Detectron2Detector,
    TorchvisionDetector,
    assert_same_detections,
    assert_same_gradients,
)

from detection.data.transforms import DetectionSamples
from detection.dataset import load_dataset
from training.data import seed_generators

pytestmark = pytest.mark.detectron2
NORMS = list(product(("", "LN"), repeat=2))  # of the pyramid and of the heads
SIDES = st.integers(33, 120)
BATCHES = st.lists(st.tuples(SIDES, SIDES, st.integers(0, 4)), min_size=1, max_size=2)
FEW = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@cache
def detectors(fpn_norm="", head_norm="", weights="random"):
    """The golden detector through both engines: (torchvision's, detectron2's)."""
    case = inputs.Case("LN" if head_norm else "plain", weights, ())
    config = case.config()
    config.defrost()
    config.MODEL.FPN.NORM = fpn_norm
    with inputs.tiny_encoder():
        ours, theirs = TorchvisionDetector(config), Detectron2Detector(config)
    state = case.state({name: list(value.shape) for name, value in theirs.state().items()})
    ours.load(state)
    theirs.load(state)
    return ours, theirs


def samples(batch):
    return [
        inputs.sample(f"drawn {height} {width} {objects}", (height, width), objects)
        for height, width, objects in batch
    ]


def assert_same_training(pair, samples, their_samples=None):
    losses, gradients = pair[0].learn(samples)
    their_losses, their_gradients = pair[1].learn(their_samples or samples)
    assert losses == pytest.approx(their_losses, rel=1e-5, abs=1e-9)
    assert_same_gradients(gradients, their_gradients)
    return losses


@pytest.mark.parametrize("norms", NORMS)
@FEW
@given(BATCHES)
def test_losses_and_gradients_agree_for_any_sizes_and_numbers_of_objects(norms, batch):
    assert_same_training(detectors(*norms), samples(batch))


@pytest.mark.parametrize(
    ("weights", "norms"),
    [("random", n) for n in NORMS] + [("trained", ("", "")), ("trained", ("LN", "LN"))],
)
@FEW
@given(BATCHES, st.tuples(SIDES, SIDES))
def test_detections_agree_for_any_sizes_in_and_out(weights, norms, batch, output):
    batch = [sample | {"height": output[0], "width": output[1]} for sample in samples(batch)]
    ours, theirs = detectors(*norms, weights=weights)
    assert_same_detections(ours.detect(batch), theirs.detect(batch))


NUMBER = st.floats(-20, 140, width=32)
PROPOSALS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), min_size=0, max_size=8)


@pytest.mark.parametrize("weights", ["random", "trained"])
@FEW
@given(PROPOSALS, PROPOSALS)
def test_detections_agree_for_any_proposals_even_empty_or_outside(weights, first, second):
    batch = samples([(97, 64, 1), (50, 111, 2)])
    proposals = [torch.tensor(boxes).view(-1, 4) for boxes in (first, second)]
    proposals = [torch.cat((b[:, :2], b[:, :2] + b[:, 2:].abs()), 1) for b in proposals]
    ours, theirs = detectors(weights=weights)
    assert_same_detections(ours.detect(batch, proposals), theirs.detect(batch, proposals))


@pytest.mark.parametrize("norms", NORMS)
def test_images_without_objects_teach_both_engines_the_same(norms):
    losses = assert_same_training(detectors(*norms), samples([(64, 81, 0), (55, 64, 0)]))
    assert losses["loss_rpn_loc"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    assert losses["loss_rpn_cls"] > 0
    assert losses["loss_cls"] > 0


def test_a_data_set_with_empty_and_crowd_only_images_teaches_both_engines_the_same(tmp_path):
    from detection.config import to_detectron2
    from detection.engines.detectron2.data import Mapper

    tree = small_coco()
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != 12 or a["iscrowd"]]
    annotations, images = write_small_coco(tmp_path, tree)
    dataset = load_dataset(f"json:{annotations}:{images}")
    pair = detectors()
    config = pair[0].config.clone()
    config.defrost()
    config.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    config.INPUT.MIN_SIZE_TRAIN, config.INPUT.MAX_SIZE_TRAIN = (50,), 90
    mapper = Mapper(to_detectron2(config), is_train=True)
    our_samples = DetectionSamples(dataset, config, training=True)
    objects = []
    for index, record in enumerate(dataset.records):
        seed_generators(index)
        sample = our_samples[index]
        seed_generators(index)
        their_sample = mapper(record)
        objects.append(len(sample["labels"]))
        assert_same_training(pair, [sample], [their_sample])
    assert sorted(objects) == [0, 0, 1, 2]
