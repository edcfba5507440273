"""The plan of a detection training: each rule on data whose answer is known in advance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tiled_coco import tiled_coco, write_tiled_coco
from torchvision.ops import box_iou

from backbones.errors import InputError
from detection.config import load_config
from detection.data.augmentation.geometry import resize_shortest_edge
from detection.data.scenes import write_scenes
from detection.data.tile_records import training_records
from detection.plan import rules
from detection.plan.anchors import best_overlap, fitted_anchors
from detection.plan.plan import base_values, decide, write_part
from detection.plan.survey import Survey, load_sets, survey
from detection.run import run
from images.plans import Encoder, Request, statistics_from_nothing
from training.plans import ON_TIME, Machine, Timing, timed

CPU = Machine("cpu", 2, 8192.0)
GPU = Machine("cuda", 8, 81920.0, has_detectron2=True)


def drawn(
    image: tuple[int, int] = (480, 640),
    box: tuple[float, float] = (60, 60),
    per_image: int = 4,
    images: int = 20,
    spread: float = 0.3,
    **changes,
) -> Survey:
    """Images of one size with objects around one size (width, height), log-normal."""
    random = np.random.default_rng(0)
    count = images * per_image
    boxes = np.array(box) * np.exp(spread * random.standard_normal((count, 1)))
    values = {
        "sizes": np.tile(image, (images, 1)),
        "boxes": np.minimum(boxes, [image[1], image[0]]).astype(float),
        "owners": np.repeat(np.arange(images), per_image),
        "classes": np.zeros(count, int),
        "class_names": ("thing",),
        "with_masks": count,
        "test_images": 10,
    }
    return Survey(**values | changes)


def planned(numbers, minutes=10.0, step=0.3, machine=CPU, encoder=None, memory=1000.0):
    """The plan on a machine where a step takes so many seconds whatever its size."""
    request = Request(("json:a.json:a",), ("json:b.json:b",), minutes, encoder, machine)
    return decide(request, numbers, lambda plan: Timing(step, 0.2, 30.0, memory))


def test_overlap_is_that_of_boxes_put_centre_on_centre():
    boxes, sizes, ratios = np.array([[30.0, 60.0], [11.0, 10.0]]), np.array([8, 32.0]), [0.5, 2.0]
    anchors = [(s / r**0.5, s * r**0.5) for s in sizes for r in ratios]

    def centred(sides):
        halves = torch.tensor(sides, dtype=torch.float64) / 2
        return torch.cat((-halves, halves), 1)

    expected = box_iou(centred(boxes.tolist()), centred(anchors)).max(1).values
    assert best_overlap(boxes, sizes, np.array(ratios)) == pytest.approx(expected.numpy())


@pytest.mark.parametrize(("size", "first"), [(8, 8), (24, 24), (70, 32), (500, 32)])
def test_anchors_have_the_size_of_objects_that_all_have_one(size, first):
    sizes, ratios, overlap, _ = fitted_anchors(np.full((50, 2), float(size)))
    assert sizes == [2**level * first for level in range(5)]  # where several fit, the finest map
    assert any(abs(one / size - 1) < 0.1 for one in sizes)
    assert ratios == [0.5, 1.0, 2.0]
    assert overlap > 0.8


def test_long_thin_objects_get_anchors_of_their_shape():
    random = np.random.default_rng(0)
    lengths = 60 * np.exp(0.2 * random.standard_normal(200))
    lying = np.stack([lengths, lengths / 8], 1)
    _, ratios, overlap, usual = fitted_anchors(lying)
    assert ratios == pytest.approx([0.125], abs=0.01)  # height / width = 1 / 8
    assert overlap > 2 * usual
    both = np.concatenate([lying, lying[:, ::-1]])
    _, ratios, _, _ = fitted_anchors(both)
    assert min(ratios) == pytest.approx(0.125, abs=0.01)
    assert max(ratios) == pytest.approx(8, rel=0.02)


def test_usual_shapes_keep_detectron2s_ratios_when_others_gain_little():
    random = np.random.default_rng(0)
    size, shape = random.standard_normal((2, 500, 1)) / 2
    boxes = 50 * np.exp(size + shape * [-0.5, 0.5])
    assert fitted_anchors(boxes)[1] == [0.5, 1.0, 2.0]


def test_a_survey_counts_objects_crowds_and_classes(data):
    found = survey(load_sets([data], []))
    # of tests/small_coco.py: four objects and a crowd on three of four images
    assert sorted(map(tuple, found.sizes.tolist())) == [(60, 80), (64, 64), (90, 50)]
    assert (len(found.boxes), found.crowds, found.empty, found.with_masks) == (4, 1, 1, 4)
    assert found.class_names == ("box", "disc")
    assert found.images_of_class.tolist() == [2, 2]
    assert found.per_image.max() == 2
    assert (found.channels, found.depth) == (3, "8 bits")
    assert "1 crowd, 1 image without an object" in found.sentence()


def test_everything_wrong_with_the_data_comes_at_once(tmp_path, data):
    missing = f"json:{tmp_path}/none.json:{tmp_path}"
    with pytest.raises(InputError) as error:
        load_sets([missing, "what"], [data])
    assert "none.json" in str(error.value)
    assert "unknown data set 'what'" in str(error.value)


def test_masks_that_some_objects_lack_are_told_before_anything_is_timed(data):
    file = Path(data.split(":")[1])
    tree = json.loads(file.read_text())
    del tree["annotations"][0]["segmentation"]
    file.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"1 of 5 objects .* have no mask"):
        survey(load_sets([data], []))


def test_masks_that_a_crowd_or_a_test_set_lacks_are_told_too(tmp_path, data):
    _, file, images = data.split(":")
    tree = json.loads(Path(file).read_text())
    without = [a for a in tree["annotations"] if a["iscrowd"]] + tree["annotations"][:1]
    for item in without:
        del item["segmentation"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(tree))
    with pytest.raises(InputError) as error:
        survey(load_sets([data], [f"json:{other}:{images}"]))
    assert f"json:{other}:{images}: 2 of 5 objects" in str(error.value)
    alone = [a for a in tree["annotations"] if a["iscrowd"] or "segmentation" in a]
    other.write_text(json.dumps(tree | {"annotations": alone}))
    with pytest.raises(InputError, match=r"1 of 4 objects \(crowds counted\)"):
        survey(load_sets([f"json:{other}:{images}"], []))
    for item in tree["annotations"]:
        item.pop("segmentation", None)
    other.write_text(json.dumps(tree))
    assert survey(load_sets([f"json:{other}:{images}"], [data])).with_masks == 0


@pytest.mark.parametrize(
    ("relative", "side"),
    [(0.8, 128), (0.25, 192), (0.15, 320), (0.075, 640)],
)
def test_the_side_gives_half_of_the_objects_forty_eight_pixels(relative, side):
    numbers = drawn((1000, 1200), (1000 * relative,) * 2, spread=0.0)
    assert rules.wanted_side(numbers) == side


def test_small_images_are_enlarged_to_twice_their_size_at_most():
    assert rules.wanted_side(drawn((160, 160), (8, 8))) == 320


@pytest.mark.parametrize("image", [(300, 4000), (4000, 300), (400, 700)])
def test_what_is_said_of_the_objects_sizes_is_true_of_long_images(image):
    numbers = drawn(image, (150, 150), spread=0.0)
    plan, _ = planned(numbers)
    side, longest = plan["INPUT.MIN_SIZE_TRAIN"][0], plan["INPUT.MAX_SIZE_TRAIN"]
    resized = resize_shortest_edge(*image, side, longest)
    size = 150 * resized.new_width / image[1]
    assert f"half of them {size:.0f}" in plan.choices["INPUT.MIN_SIZE_TRAIN"].reason
    assert f"have {size:.0f} to {size:.0f}" in plan.choices["MODEL.ANCHOR_GENERATOR.SIZES"].reason
    assert size > 40


def test_panoramas_of_small_objects_are_cut_into_tiles():
    for machine in (CPU, GPU):
        plan, _ = planned(drawn((400, 20_000), (30, 30), per_image=40), machine=machine)
        assert plan["INPUT.TILES.ENABLED"] is True


def test_few_minutes_take_pixels_away_and_many_add_some():
    numbers = drawn((480, 640), (100, 100), spread=0.0)
    assert rules.side_for_time(192, rules.WANTED_STEPS, numbers) == 192
    assert rules.side_for_time(192, rules.WANTED_STEPS // 2, numbers) == 128
    assert rules.side_for_time(256, 0, numbers) == 128  # half of it at least
    assert rules.side_for_time(192, 4 * rules.RICH_STEPS, numbers) == 384
    assert rules.side_for_time(192, 10**6, numbers) == 448  # the images have 480
    tiny = drawn((480, 640), (10, 10), spread=0.0)
    assert rules.side_for_time(512, 1, tiny) == 384  # 8 pixels of 10 of 480


def test_dense_cells_are_all_proposed_and_all_kept():
    plan, _ = planned(drawn((512, 512), (14, 14), per_image=320))
    assert plan["TEST.DETECTIONS_PER_IMAGE"] == 430  # 320 * 4 / 3, up to tens
    assert plan["MODEL.RPN.POST_NMS_TOPK_TEST"] == 1000  # 3 each, up to hundreds
    assert plan["MODEL.RPN.PRE_NMS_TOPK_TEST"] == 2000
    few, _ = planned(drawn(per_image=3))
    assert few["TEST.DETECTIONS_PER_IMAGE"] == 100
    assert few["MODEL.RPN.POST_NMS_TOPK_TRAIN"] == 200


def test_limits_that_are_reached_are_said_and_hold_no_object_back():
    numbers = drawn((500, 500), (10, 10), per_image=1500, images=2)
    reasons = {key: one.reason for key, one in planned(numbers)[0].choices.items()}
    plan, _ = planned(numbers)
    assert plan["TEST.DETECTIONS_PER_IMAGE"] == 2000
    assert plan["MODEL.RPN.POST_NMS_TOPK_TEST"] == 4000
    for key in ("MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"):
        assert "the most that is planned" in reasons[key]
    assert "a third more" in reasons["TEST.DETECTIONS_PER_IMAGE"]
    more, _ = planned(drawn((500, 500), (10, 10), per_image=2000, images=2))
    assert more["TEST.DETECTIONS_PER_IMAGE"] == 2000
    assert "the most that is planned" in more.choices["TEST.DETECTIONS_PER_IMAGE"].reason


@pytest.mark.parametrize(("objects", "samples"), [(1, 64), (16, 64), (17, 128), (500, 256)])
def test_heads_learn_from_as_many_objects_as_an_image_has(objects, samples):
    plan, _ = planned(drawn(per_image=objects))
    assert plan["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == samples


def test_huge_images_of_small_objects_are_cut_into_tiles_that_hold_them():
    numbers = drawn((8000, 8000), (24, 48), per_image=40, spread=0.1)
    plan, _ = planned(numbers)
    largest = np.percentile(numbers.boxes[:, 1], 95)
    assert plan["INPUT.TILES.ENABLED"] is True
    assert plan["INPUT.TILES.SIZE"] == 256
    assert largest <= plan["INPUT.TILES.OVERLAP"] <= largest + 8
    assert "INPUT.MIN_SIZE_TRAIN" not in plan.choices
    assert plan["TEST.DETECTIONS_PER_IMAGE"] == 100  # of a tile: 40 of (8000 / 256)^2 tiles
    full, _ = planned(drawn((8000, 8000), (24, 48), per_image=40_000, images=2, spread=0.1))
    # 40,000 * (256 / 8000)^2 is 41; four times that and a third more, up to tens
    assert full["TEST.DETECTIONS_PER_IMAGE"] == 220
    anchors = np.ravel(plan["MODEL.ANCHOR_GENERATOR.SIZES"])
    assert any(abs(anchor / np.sqrt(24 * 48) - 1) < 0.3 for anchor in anchors)


def test_a_gpu_cuts_huge_images_too():
    plan, _ = planned(drawn((8000, 8000), (24, 48), per_image=40, spread=0.1), machine=GPU)
    assert plan["INPUT.TILES.SIZE"] == 800


def test_no_tile_is_as_large_as_a_few_huge_objects():
    numbers = drawn((20_000, 20_000), (40, 40), per_image=100, images=2, spread=2.5)
    large = np.percentile(numbers.boxes.max(1), 95)
    plan, _ = planned(numbers)
    assert large > 1024
    assert (plan["INPUT.TILES.SIZE"], plan["INPUT.TILES.OVERLAP"]) == (1024, 512)
    for key in ("SIZE", "OVERLAP"):
        assert "united from their parts" in plan.choices[f"INPUT.TILES.{key}"].reason


@pytest.mark.parametrize(
    "numbers",
    [
        drawn((480, 640), (12, 12)),  # small objects, but the images are small, too
        drawn((4000, 6000), (2500, 2500)),  # large images, but of large objects
        drawn((4000, 6000), (300, 300)),
    ],
)
def test_other_images_are_resized(numbers):
    plan, _ = planned(numbers)
    assert "INPUT.TILES.ENABLED" not in plan.choices
    assert plan["INPUT.MIN_SIZE_TRAIN"][0] <= 2 * np.median(numbers.short)


def test_grey_deep_images_are_read_as_they_are_and_measured():
    numbers = drawn(channels=1, depth="16 bits")
    plan, _ = planned(numbers)
    assert (plan["INPUT.FORMAT"], plan["MODEL.CONVNEXT.IN_CHANS"]) == ("L", 1)
    assert "measured" in plan.choices["MODEL.PIXEL_MEAN"].reason
    of_rgb = Encoder("e.safetensors", "convnextv2_nano", 3, True)
    plan, _ = planned(numbers, encoder=of_rgb)
    assert (plan["INPUT.FORMAT"], plan["MODEL.CONVNEXT.IN_CHANS"]) == ("RGB", 3)
    assert plan["MODEL.CONVNEXT.SIZE"] == "convnextv2_nano"
    assert "encoder" in plan.choices["MODEL.PIXEL_MEAN"].reason
    plan, _ = planned(drawn(channels=5), encoder=of_rgb)
    assert (plan["INPUT.FORMAT"], plan["MODEL.CONVNEXT.IN_CHANS"]) == ("raw", 5)
    assert plan["MODEL.CONVNEXT.ADAPT_CHANNELS"] is True


def test_random_weights_get_the_own_mean_and_deviation_of_images_unlike_imagenets(tmp_path):
    random = np.random.default_rng(0)
    dark = random.integers(0, 40, (3, 16, 16, 3))
    dark[..., 2] //= 20  # almost nothing is in the blue channel
    for number, pixels in enumerate(dark.astype(np.uint8)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels[..., ::-1])
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    found = statistics_from_nothing(paths, 3, "8 bits")
    plan, _ = planned(drawn(statistics=found))
    assert plan["MODEL.PIXEL_MEAN"] == pytest.approx(dark.mean((0, 1, 2)), abs=0.05)
    std = dark.std((0, 1, 2))
    assert plan["MODEL.PIXEL_STD"] == pytest.approx([*std[:2], std.max() / 4], abs=0.05)
    assert "measured over 3" in plan.choices["MODEL.PIXEL_MEAN"].reason
    assert statistics_from_nothing(paths, 3, "16 bits") is None  # a training measures these itself
    for path in paths:
        usual = random.integers(0, 230, (16, 16, 3)).astype(np.uint8)
        cv2.imwrite(path, usual)
    assert statistics_from_nothing(paths, 3, "8 bits") is None  # ImageNet's will do


def test_a_class_of_one_example_is_drawn_more_often():
    numbers = drawn(images=50, per_image=2, class_names=("usual", "rare", "never"))
    numbers.classes[7] = 1
    plan, _ = planned(numbers)
    assert plan["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler"
    assert plan["DATALOADER.REPEAT_THRESHOLD"] == pytest.approx(0.1)
    assert "rare" in plan.choices["DATALOADER.SAMPLER_TRAIN"].reason
    assert planned(drawn())[0]["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"


def test_labels_without_masks_train_boxes_alone():
    assert planned(drawn(with_masks=0))[0]["MODEL.MASK_ON"] is False


def test_iterations_are_what_is_left_of_the_minutes():
    plan, timing = planned(drawn(images=100), minutes=10, step=0.5)
    # 600 s: 4% kept back, 30 s to start and report, 10 images of 0.2 s
    steps = plan["SOLVER.MAX_ITER"]
    assert steps == int((600 * ON_TIME - 30 - 2) / 0.5)
    assert timing.minutes(steps, 10) == pytest.approx(10 * ON_TIME, abs=0.01)
    assert plan["SOLVER.STEPS"] == [round(0.8 * steps), round(0.95 * steps)]
    assert plan["SOLVER.WARMUP_ITERS"] == steps // 15


def test_minutes_that_are_too_few_are_refused_with_those_that_would_do():
    with pytest.raises(InputError, match=r"too little here.*give at least 0\.7") as error:
        planned(drawn(), minutes=0.5, step=0.4)
    assert "0.5 minutes" in str(error.value)  # 32 s of start and evaluation


def test_an_epoch_of_tiles_is_as_long_as_the_trainings(tmp_path):
    """One huge image is hundreds of samples: neither a batch of one nor 2000 steps are much."""
    name = write_tiled_coco(tmp_path, tiled_coco())
    sets = load_sets([name], [])
    tiles = ["INPUT.TILES.ENABLED", "True", "INPUT.TILES.SIZE", "64", "INPUT.TILES.OVERLAP", "16"]
    config = load_config("quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml", tiles)
    records = training_records(sets.train.records.with_objects(), config)
    assert survey(sets).tiles(64) == len(records) > 10
    huge = drawn((20_000, 20_000), (30, 30), per_image=20_000, images=1)
    plan, _ = planned(huge, minutes=10_000, machine=GPU)
    samples = (20_000 // 800) ** 2
    assert plan["SOLVER.IMS_PER_BATCH"] == 16
    assert plan["SOLVER.MAX_ITER"] == 400 * samples // 16
    assert plan.choices["SOLVER.MAX_ITER"].reason.endswith(f"epochs of {samples} tiles")


def test_three_images_are_not_trained_on_for_days():
    plan, _ = planned(drawn(images=3), minutes=10_000)
    assert plan["SOLVER.MAX_ITER"] == 2000
    assert "3 images" in plan.choices["SOLVER.MAX_ITER"].reason


def test_a_batch_that_does_not_fit_into_memory_is_halved():
    numbers = drawn(images=1000)

    def timer(plan):
        return Timing(0.1, 0.1, 10, 10_000.0 * plan["SOLVER.IMS_PER_BATCH"])

    request = Request(("json:a.json:a",), (), 60, None, GPU)
    plan, _ = decide(request, numbers, timer)
    assert plan["SOLVER.IMS_PER_BATCH"] == 4  # of 80 GiB
    assert "memory" in plan.choices["SOLVER.IMS_PER_BATCH"].reason
    assert plan["SOLVER.BASE_LR"] == 5e-5  # the root of a fourth of 1e-4
    assert plan["ENGINE"] == "detectron2"
    with pytest.raises(InputError, match="takes 900000 MB"):
        decide(request, numbers, lambda plan: Timing(0.1, 0.1, 10, 900_000.0))


def test_a_long_path_in_the_plans_command_stays_in_one_piece():
    plan, _ = planned(drawn(per_image=200))
    path = "a-long-name/" * 12 + "plan.yaml"
    text = plan.text([f"Command: fcmae train --config-file {path}"], base_values(plan))
    assert f"# {path}\n" in text


def test_the_file_says_each_value_with_its_reason_and_differs_from_the_base_alone(tmp_path):
    plan, _ = planned(drawn(per_image=200))
    file = tmp_path / "folder" / "plan.yaml"
    file.parent.mkdir()
    file.write_text(plan.text(["made by a test"], base_values(plan)), encoding="utf-8")
    config = load_config(file)  # its base is found by name, from any folder
    text = file.read_text(encoding="utf-8")
    base = load_config(plan.base)
    tree = yaml.safe_load(text)
    joined = " ".join(line.strip().lstrip("# ") for line in text.splitlines())
    for choice in plan.choices.values():
        *sections, leaf = choice.key.split(".")
        node, of_base, found = config, base, tree
        for section in sections:
            node, of_base, found = node[section], of_base[section], found.get(section, {})
        assert list(np.ravel(node[leaf])) == list(np.ravel(choice.value)), choice.key
        assert (leaf in found) == (list(np.ravel(of_base[leaf])) != list(np.ravel(choice.value)))
        assert choice.reason in joined, choice.key
        assert choice.key in plan.table()
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_without_a_test_set_the_bases_own_is_not_evaluated(tmp_path, machine):
    request = Request(("json:a.json:a",), (), 10, None, machine)
    plan, _ = decide(request, drawn(test_images=0), lambda plan: Timing(0.3, 0, 30, 1000))
    file = tmp_path / "plan.yaml"
    file.write_text(plan.text([], base_values(plan)), encoding="utf-8")
    assert list(load_config(file).DATASETS.TEST) == []
    assert "no --test" in plan.choices["DATASETS.TEST"].reason


def test_names_with_any_characters_keep_the_file_whole(tmp_path):
    train = 'json:b\u00e4r \U0001f43b "\\x"\u2028.json:#a: b'
    request = Request((train,), (), 10, None, CPU)
    names = ("a\nENGINE: detectron2", "# b: \x1b[31m", "\U0001f43b")
    numbers = drawn(class_names=names, test_images=0)
    plan, _ = decide(request, numbers, lambda plan: Timing(0.3, 0, 30, 1000))
    file = tmp_path / "plan.yaml"
    file.write_text(plan.text([], base_values(plan)), encoding="utf-8")
    config = load_config(file)
    assert list(config.DATASETS.TRAIN) == [train]
    assert config.ENGINE == "torchvision"
    assert "\n" not in plan.choices["MODEL.ROI_HEADS.NUM_CLASSES"].reason


def test_a_device_that_a_training_would_not_take_by_itself_is_written(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert planned(drawn())[0]["MODEL.DEVICE"] == "cpu"  # --device cpu beside a GPU
    assert "MODEL.DEVICE" not in planned(drawn(), machine=GPU)[0].choices
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "MODEL.DEVICE" not in planned(drawn())[0].choices
    apples = Machine("mps", 8, 16384.0)
    assert planned(drawn(), machine=apples)[0]["MODEL.DEVICE"] == "mps"


def test_a_part_of_a_data_set_is_a_data_set_of_the_same_classes(tmp_path, data):
    sets = load_sets([data], [])
    name = write_part(sets.train, tmp_path / "part.json", 2)
    part = load_sets([name], []).train
    assert len(part.records) == 2
    assert part.class_names == sets.train.class_names
    whole = {Path(record["file_name"]).resolve(): record for record in sets.train.records}
    for record in part.records:
        original = whole[Path(record["file_name"]).resolve()]
        assert [a["bbox"] for a in record["annotations"]] == [
            a["bbox"] for a in original["annotations"]
        ]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_scenes(folder, train=6, val=2, unlabelled=1, seed=5)
    return folder


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_planned_config_trains_on_both_engines(scenes, tmp_path, engine):
    names = [f"json:{scenes}/annotations/{part}.json:{scenes}/images" for part in ("train", "val")]
    numbers = survey(load_sets(names[:1], names[1:]))
    request = Request((names[0],), (names[1],), 5, None, CPU)
    plan, _ = decide(request, numbers, lambda plan: Timing(0.5, 0.1, 10, 500))
    file = tmp_path / "plan.yaml"
    file.write_text(plan.text([], base_values(plan)), encoding="utf-8")
    changes = ["ENGINE", engine, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"]
    changes += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[1]", "SOLVER.WARMUP_ITERS", "0"]
    metrics = run(load_config(file, [*changes, "DATALOADER.NUM_WORKERS", "0"]))
    assert {"bbox", "segm"} <= metrics.keys()


def test_the_command_times_steps_and_writes_a_config_that_it_names(
    run_tool, scenes, tmp_path, monkeypatch
):
    """With the training itself timed, but once and shortly."""
    monkeypatch.setattr("images.plans.timed", lambda *of, **how: timed(*of, steps=3, **how))
    monkeypatch.setattr(rules, "side_for_time", lambda wanted, steps, survey: wanted)
    out = tmp_path / "plan.yaml"
    flags = ["--images", f"{scenes}/images", "--minutes", 20, "--output", out, "--device", "cpu"]
    flags += ["--test", f"{scenes}/annotations/val.json"]
    result = run_tool("plan_training", f"{scenes}/annotations/train.json", *flags)
    assert result.code == 0, result.err
    config = load_config(out)
    assert config.SOLVER.MAX_ITER >= 20
    assert (f"json:{scenes}/annotations/train.json:{scenes}/images",) == config.DATASETS.TRAIN
    assert f"train_net.py --config-file {out}" in result.out
    assert "SOLVER.MAX_ITER" in result.out
    again = run_tool("plan_training", f"{scenes}/annotations/train.json", *flags)
    assert again.code == 1
    assert "exists already" in again.err


def test_timed_steps_leave_the_first_ones_out_and_split_the_rest(tmp_path):
    """A stand-in for the training, which says that it took 1 s, then 0.1 s a step, and 2 s."""
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys, pathlib\n"
        "arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "run = pathlib.Path(arguments['OUTPUT_DIR']); run.mkdir(parents=True)\n"
        "steps = int(arguments['SOLVER.MAX_ITER'])\n"
        "lines = [{'iteration': i + 1, 'time': 1.0 if i < 4 else 0.1} for i in range(steps)]\n"
        "lines.append({'iteration': steps, 'bbox/AP': 1.0})\n"
        "(run / 'metrics.json').write_text('\\n'.join(map(json.dumps, lines)))\n"
        "(run / 'run.json').write_text(json.dumps({'predict_seconds': 2.0,\n"
        "                                          'peak_memory_mb': 512}))\n",
        encoding="utf-8",
    )
    found = timed([sys.executable, str(script)], images=4)
    assert found.step == pytest.approx(0.1)
    assert found.image == pytest.approx(0.5)
    assert found.memory_mb == 512
    assert found.fixed >= 0
    script.write_text("raise SystemExit('no such thing')", encoding="utf-8")
    with pytest.raises(InputError, match="no such thing"):
        timed([sys.executable, str(script)], images=4)
