"""Rare classes: detectron2's repeat factors and order, on both engines, resumed from anywhere."""

import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from small_coco import small_coco, write_small_coco
from small_detector import small_config
from tiled_coco import tiled_coco, write_tiled_coco

from detection.config import to_detectron2
from detection.data.repeats import repeat_factors, repeats_of
from detection.data.tile_records import training_records
from detection.dataset import load_dataset
from detection.engines.torchvision.engine import TrainingSamples
from detection.run import run
from training.data import BatchOrder, seed_cpu_generators

REPEATS = {
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.9,
}
EVERYTHING = REPEATS | {
    "INPUT.RANDOM_FLIP": "both",
    **{f"INPUT.AUGMENTATION.{name}": 0.2 for name in ("BRIGHTNESS", "HUE", "BLUR", "NOISE")},
    "INPUT.AUGMENTATION.ROTATE_90": True,
    "INPUT.AUGMENTATION.COPY_PASTE.ENABLED": True,
}


def rare(folder):
    """The small data set, of whose three images with objects one shows the class "disc"."""
    tree = small_coco()
    tree["annotations"] = [a for a in tree["annotations"] if a["id"] not in (4, 9)]
    annotations, images = write_small_coco(folder, tree)
    return f"json:{annotations}:{images}"


def samples_of(order, number):
    return [key.sample for key in itertools.islice(itertools.chain.from_iterable(order), number)]


@pytest.mark.detectron2
@pytest.mark.parametrize("square_root", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.0])
def test_repeat_factors_are_detectron2s(tmp_path, threshold, square_root):
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    records = load_dataset(rare(tmp_path)).records
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, threshold, square_root
    )
    found = repeat_factors(records, threshold, square_root)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_repeat_factors_of_known_frequencies(tmp_path):
    dataset = load_dataset(rare(tmp_path))
    records = dataset.records.with_objects()
    assert [record["image_id"] for record in records] == [3, 7, 12]  # box; disc; box
    # the disc is on 1/3 of the images, the box on 2/3
    np.testing.assert_allclose(repeat_factors(records, 0.5, False), [1, 1.5, 1])
    np.testing.assert_allclose(repeat_factors(records, 1.0, True), [1.5**0.5, 3**0.5, 1.5**0.5])


@pytest.mark.detectron2
@pytest.mark.parametrize("seed", [0, 5, 2**31 - 1])
def test_the_order_is_detectron2s_index_by_index(seed):
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    repeats = torch.tensor([1.0, 2.5, 1.0, 1.3, 4.0])
    expected = itertools.islice(RepeatFactorTrainingSampler(repeats, seed=seed), 200)
    assert samples_of(BatchOrder(5, 4, seed, repeats=repeats), 200) == list(expected)


def test_samples_come_as_often_as_their_numbers_say_and_no_two_draws_are_alike():
    repeats = torch.tensor([1.0, 2.5, 1.0, 1.3])
    order = itertools.chain.from_iterable(BatchOrder(4, 2, 3, repeats=repeats))
    keys = list(itertools.islice(order, 11600))
    counted = Counter(key.sample for key in keys)
    np.testing.assert_allclose([counted[i] for i in range(4)], 2000 * repeats.numpy(), rtol=0.02)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("repeats", [None, torch.tensor([1.0, 2.5, 1.0, 1.3, 1.0, 1.0, 7.2])])
def test_an_order_goes_on_from_any_batch_in_any_number_of_processes(repeats):
    whole = list(itertools.islice(BatchOrder(7, 4, 9, repeats=repeats), 30))
    for first in (1, 2, 7, 29):
        assert next(iter(BatchOrder(7, 4, 9, first, repeats=repeats))) == whole[first]
        shares = [next(iter(BatchOrder(7, 4, 9, first, rank, 2, repeats))) for rank in (0, 1)]
        assert [shares[0][0], shares[1][0], shares[0][1], shares[1][1]] == whole[first]


@pytest.mark.detectron2
def test_both_engines_draw_the_same_images_and_change_them_alike(tmp_path):
    from detection.engines.detectron2.data import TrainingBatches

    dataset = load_dataset(rare(tmp_path))
    config = small_config(
        EVERYTHING | {"MODEL.ROI_HEADS.NUM_CLASSES": 2, "DATALOADER.REPEAT_SQRT": False}
    )
    ours = TrainingSamples(dataset, config)
    batches = TrainingBatches(to_detectron2(config), dataset, seed=5, first_step=1)
    order = BatchOrder(len(ours), 2, 5, first_batch=1, repeats=ours.repeats)
    seen = Counter()
    for batch, keys in itertools.islice(zip(batches, order, strict=False), 20):
        for theirs, key in zip(batch, keys, strict=True):
            seed_cpu_generators(5, 0, *key)
            sample = ours[key.sample]
            assert torch.equal(theirs["image"], sample["image"])
            assert torch.equal(theirs["instances"].gt_boxes.tensor, sample["boxes"])
            assert torch.equal(theirs["instances"].gt_masks.tensor, sample["masks"])
            seen[sample["image_id"]] += 1
    assert seen[7] > 1.3 * max(seen[3], seen[12])


def tiles_of_a_rare_class(folder):
    """Two images in tiles; one class is on both, the other on the second alone, by one object."""
    tree = tiled_coco()
    for item in tree["annotations"]:
        item["category_id"] = 1
    one = tree["annotations"][0]
    tree["annotations"] += [
        one | {"id": 100 + key, "image_id": 2, "category_id": key} for key in (1, 2)
    ]
    changes = {"INPUT.TILES.ENABLED": True, "INPUT.TILES.SIZE": 64, "INPUT.TILES.OVERLAP": 16}
    return load_dataset(write_tiled_coco(folder, tree)), small_config(
        EVERYTHING | changes | {"MODEL.ROI_HEADS.NUM_CLASSES": 2, "DATALOADER.REPEAT_SQRT": False}
    )


def test_how_rare_a_class_is_goes_by_images_and_not_by_tiles(tmp_path, caplog):
    dataset, config = tiles_of_a_rare_class(tmp_path)
    images = dataset.records.with_objects()
    records = training_records(images, config)
    tiles = Counter(record["image_id"] for record in records)
    assert tiles[1] > 5
    assert tiles[2] == 1
    with caplog.at_level(logging.INFO):
        factors = repeats_of(config, records)
    # half of the images show the rare class: 0.9 / 0.5, whatever the other image's tiles
    np.testing.assert_allclose(factors, [1.0] * tiles[1] + [1.8])
    assert f"an epoch has {tiles[1] + 1.8:.0f} tiles instead of {tiles[1] + 1}" in caplog.text


@pytest.mark.detectron2
def test_both_engines_repeat_turn_and_paste_the_same_tiles(tmp_path):
    from detection.engines.detectron2.data import TrainingBatches

    dataset, config = tiles_of_a_rare_class(tmp_path)
    ours = TrainingSamples(dataset, config)
    batches = TrainingBatches(to_detectron2(config), dataset, seed=5)
    assert torch.equal(batches.repeats, ours.repeats)
    order = BatchOrder(len(ours), 2, 5, repeats=ours.repeats)
    objects = 0
    for batch, keys in itertools.islice(zip(batches, order, strict=False), 8):
        for theirs, key in zip(batch, keys, strict=True):
            seed_cpu_generators(5, 0, *key)
            sample = ours[key.sample]
            assert sample["image"].shape == (3, 64, 64)  # what is pasted is scaled, the tile is not
            assert torch.equal(theirs["image"], sample["image"])
            assert torch.equal(theirs["instances"].gt_boxes.tensor, sample["boxes"])
            assert torch.equal(theirs["instances"].gt_masks.tensor, sample["masks"])
            objects += len(sample["labels"])
    assert objects > 10


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_resumed_run_with_every_augmentation_ends_bit_identically(tmp_path, engine):
    data = rare(tmp_path / "data")

    def train(folder, steps, resume=False):
        changes = EVERYTHING | {
            "ENGINE": engine,
            "SEED": 5,
            "MODEL.ROI_HEADS.NUM_CLASSES": 0,
            "DATASETS.TRAIN": (data,),
            "OUTPUT_DIR": str(tmp_path / folder),
            "SOLVER.MAX_ITER": steps,
        }
        run(small_config(changes), resume=resume)
        (final,) = (tmp_path / folder).glob("model_final.*")
        if engine == "detectron2":
            return torch.load(final, weights_only=True)["model"]
        from safetensors.torch import load_file

        return load_file(final)

    whole = train("whole", 4)
    half = train("cut", 2)
    resumed = train("cut", 4, resume=True)
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    assert [name for name in whole if not torch.equal(resumed[name], whole[name])] == []


def test_what_is_repeated_is_said_and_that_nothing_is_too(tmp_path, caplog):
    records = load_dataset(rare(tmp_path)).records.with_objects()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert repeats_of(small_config(), records) is None
        assert not caplog.records
        repeats_of(small_config(REPEATS), records)
        assert "up to 1.6 times: an epoch has 4 images instead of 3" in caplog.text
        repeats_of(small_config(REPEATS | {"DATALOADER.REPEAT_THRESHOLD": 0.2}), records)
        assert "repeats no image" in caplog.text
