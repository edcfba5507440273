"""Configs: read without detectron2, checked all at once, equal in detectron2 after merging."""

import logging
import re
from itertools import chain
from pathlib import Path

import pytest
import torch

import det_configs
from backbones.convnext import SIZES
from backbones.param_groups import last_layer_id
from detection.benchmarks.complexity import complexity
from detection.config import (
    add_convnext_config,
    default_config,
    get,
    load_config,
    resolve_num_classes,
    to_detectron2,
)
from detection.data.records import Records
from detection.dataset import CocoDataset
from detection.engines.torchvision.model import build_mask_rcnn
from detection.schema import SCHEMA, TORCHVISION_ONLY
from training.config_files import DEFAULTS, OVERRIDES

ROOT = Path(det_configs.__file__).parent
SHIPPED = sorted(
    path for folder in ("quick", "coco", "edge") for path in (ROOT / folder).glob("*rcnn*.yaml")
)
shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
IS_CASCADE = "cascade_mask_rcnn"
MASK_RCNN = [path for path in SHIPPED if not path.name.startswith(IS_CASCADE)]
AGNOSTIC = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
CASCADE = f"ENGINE detectron2 MODEL.ROI_HEADS.NAME CascadeROIHeads {AGNOSTIC} True"


def build_on_meta(config):
    """The detector without memory for its weights."""
    with torch.device("meta"):
        return build_mask_rcnn(config)


def write(folder, name="config.yaml", text=""):
    (folder / name).write_text(text)
    return folder / name


def problems(path, overrides=()):
    with pytest.raises(ValueError, match="in the config") as caught:
        load_config(path, overrides)
    first, *rest = str(caught.value).split("\n  ")
    count = 1 if first.startswith("1 problem ") else int(first.split()[0])
    assert len(rest) == count
    return rest


def test_defaults_are_valid_and_contradict_nothing(tmp_path):
    for name, key in SCHEMA.items():
        assert key.is_valid(key.default), name
    assert load_config(write(tmp_path)) == default_config()


def test_defaults_are_not_shared_between_configs():
    default_config().MODEL.PIXEL_MEAN.append(0.0)
    assert default_config().MODEL.PIXEL_MEAN == []


def test_bases_chain_and_later_ones_win(tmp_path):
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "root.yaml", "SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 1, STEPS: []}")
    write(tmp_path / "base", "a.yaml", "_BASE_: root.yaml\nSOLVER: {MAX_ITER: 2, BASE_LR: 0.5}")
    write(tmp_path / "base", "b.yaml", "SOLVER: {BASE_LR: 0.25, GAMMA: 0.5}")
    path = write(
        tmp_path, text="_BASE_: [base/a.yaml, base/b.yaml]\nSOLVER: {GAMMA: 0.75, STEPS: [1]}"
    )
    solver = load_config(path, ["SOLVER.WEIGHT_DECAY", "0.125"]).SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.BASE_LR) == (1, 2, 0.25)
    assert (solver.GAMMA, solver.STEPS, solver.WEIGHT_DECAY) == (0.75, (1,), 0.125)


def test_every_problem_is_reported_with_its_file(tmp_path):
    base = write(tmp_path, "base.yaml", "SOLVER: {BASE_LRR: 1.0}\nINPUT: {RANDOM_FLIP: left}")
    path = write(
        tmp_path, text="_BASE_: base.yaml\nMODEL: {MASK_ON: maybe, RPN: 3}\nSOLVER: {MAX_ITER: 0}"
    )
    assert problems(path, ["SOLVER.GAMA", "1", "TEST.EVAL_PERIOD", "x", "SEED"]) == [
        f"{OVERRIDES}: overrides are KEY VALUE pairs, but 'SEED' has no value",
        f"{base}: unknown key SOLVER.BASE_LRR; the closest known key is SOLVER.BASE_LR",
        f"{base}: INPUT.RANDOM_FLIP is 'left'; it must be 'horizontal' or 'vertical' or 'none' or "
        "'both'",
        f"{path}: MODEL.MASK_ON is 'maybe'; it must be True or False",
        f"{path}: MODEL.RPN is a section, it cannot be 3",
        f"{path}: SOLVER.MAX_ITER is 0; it must be an integer of at least 1",
        f"{OVERRIDES}: unknown key SOLVER.GAMA; the closest known key is SOLVER.GAMMA",
        f"{OVERRIDES}: TEST.EVAL_PERIOD is 'x'; it must be an integer of at least 0",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", "0", "a number above 0"),
        ("SOLVER.BASE_LR", "nan", "a number above 0"),
        ("SOLVER.MAX_ITER", "10.5", "an integer of at least 1"),
        ("SOLVER.MAX_ITER", "True", "an integer of at least 1"),
        ("SOLVER.STEPS", "(5, 4)", "increasing positive integers"),
        ("SOLVER.OPTIMIZER", "SGD", "'AdamW' (the only value)"),
        ("MODEL.CONVNEXT.SIZE", "convnextv2_bas", "'convnextv2_base'"),
        ("MODEL.CONVNEXT.OUT_FEATURES", "('stage1','stage5')", "stage1, stage2, stage3, stage4"),
        ("MODEL.CONVNEXT.DROP_PATH_RATE", "1", "a number of at least 0 and at most 0.99"),
        ("MODEL.DEVICE", "gpu", "'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"),
        ("MODEL.PIXEL_STD", "(1, 0, 1)", "[], or a list of one number above 0 for each channel"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[8, 16]", "a list of lists of positive numbers"),
        ("DATASETS.TRAIN", "('a', 'a')", "a list of different data sets"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "a list of one or more integers of at least 1"),
        ("ENGINE", "mmdet", "'torchvision' or 'detectron2'"),
        ("SEED", "-2", "an integer of at least -1"),
    ],
)
def test_a_bad_value_is_told_what_is_allowed(tmp_path, key, value, message):
    (problem,) = problems(write(tmp_path), [key, value])
    assert f"{key} is " in problem
    assert message in problem


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("INPUT.LSJ.MIN_SCALE 3.0", "INPUT.LSJ.MIN_SCALE 3.0 is above MAX_SCALE 2.0"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range", "'range' needs (low, high)"),
        (
            "INPUT.FORMAT L MODEL.CONVNEXT.IN_CHANS 1 MODEL.PIXEL_MEAN [1,1] MODEL.PIXEL_STD [1]",
            "MODEL.PIXEL_MEAN is for 2 channels, but INPUT.FORMAT 'L' has 1",
        ),
        ("MODEL.PIXEL_STD [1,1,1]", "MODEL.PIXEL_STD is given without MODEL.PIXEL_MEAN"),
        ("MODEL.CONVNEXT.IN_CHANS 4", "INPUT.FORMAT 'RGB' has 3; 'raw' has IN_CHANS channels"),
        ("INPUT.VALUE_RANGE [5,5]", "INPUT.VALUE_RANGE is [5, 5]; it must be [] or [LOW, HIGH]"),
        ("INPUT.SHOW_BANDS [4]", "INPUT.SHOW_BANDS names [4], but images have 3 channels"),
        ("MODEL.CONVNEXT.OUT_FEATURES ('stage1','stage2','stage3')", "names ['stage4'], but"),
        ("MODEL.FPN.IN_FEATURES ('stage1','stage2','stage4')", "must be consecutive"),
        ("MODEL.RPN.IN_FEATURES ('p3','p4')", "ANCHOR_GENERATOR.SIZES is"),
        ("MODEL.RPN.IOU_THRESHOLDS [0.7,0.3]", "it must be [low, high], at most 1"),
        ("SOLVER.ACCUMULATE 3", "IMS_PER_BATCH is 16, the images of one optimizer step, which"),
        ("INPUT.MASK_FORMAT polygon", "ENGINE torchvision only has 'bitmask'"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm", "ENGINE torchvision only has 'full_model'"),
        ("TEST.AUG.ENABLED True", "ENGINE torchvision only has False"),
        (f"{AGNOSTIC} True", "ENGINE torchvision only has False"),
        (f"{CASCADE} {AGNOSTIC} False", f"set {AGNOSTIC} to True"),
        (f"{CASCADE} MODEL.ROI_BOX_CASCADE_HEAD.IOUS (0.5,0.6)", "for 2 stages, BBOX_REG_WEIGHTS"),
        (f"{CASCADE} MODEL.ROI_HEADS.IOU_THRESHOLDS [0.4]", "IOUS begins with 0.5, but"),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path, overrides, message):
    found = problems(write(tmp_path), overrides.split())
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith((OVERRIDES, f"{DEFAULTS}, {OVERRIDES}", f"{OVERRIDES}, {DEFAULTS}"))


def test_cascade_heads_are_detectron2s_alone(tmp_path):
    path = write(tmp_path)
    assert load_config(path, CASCADE.split()).MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    found = problems(path, f"{CASCADE} ENGINE torchvision".split())
    assert "'CascadeROIHeads', but ENGINE torchvision only has 'StandardROIHeads'" in found[0]


def test_a_pyramid_without_its_lowest_level_hangs_together(tmp_path):
    overrides = {
        "MODEL.FPN.IN_FEATURES": "('stage2','stage3','stage4')",
        "MODEL.ROI_HEADS.IN_FEATURES": "('p3','p4','p5')",
        "MODEL.RPN.IN_FEATURES": "('p3','p4','p5','p6')",
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[32],[64],[128],[256]]",
    }
    given = list(chain.from_iterable(overrides.items()))
    assert load_config(write(tmp_path), given).MODEL.RPN.IN_FEATURES[0] == "p3"
    (problem,) = problems(write(tmp_path), [*given[:2], *given[4:]])
    assert "MODEL.ROI_HEADS.IN_FEATURES names ['p2']" in problem


def test_what_torchvision_lacks_is_allowed_for_detectron2(tmp_path):
    overrides = ["ENGINE", "detectron2", "INPUT.MASK_FORMAT", "polygon"]
    assert load_config(write(tmp_path), overrides).INPUT.MASK_FORMAT == "polygon"
    for name, allowed in TORCHVISION_ONLY.items():
        assert SCHEMA[name].default in allowed


def test_values_are_coerced_where_nothing_is_lost(tmp_path):
    path = write(tmp_path, text="SOLVER: {BASE_LR: 1e-3, GAMMA: 1}\nDATASETS: {TEST: ['a']}")
    config = load_config(path, ["DATASETS.TRAIN", "json:a.json:images", "SOLVER.STEPS", "[3, 5]"])
    assert config.SOLVER.BASE_LR == 0.001
    assert isinstance(config.SOLVER.GAMMA, float)
    assert config.SOLVER.STEPS == (3, 5)
    assert config.DATASETS.TRAIN == ("json:a.json:images",)
    assert config.DATASETS.TEST == ("a",)
    config = load_config(path, ["DATASETS.TRAIN", "('json:a.json:images',)", "DATASETS.TEST", "()"])
    assert config.DATASETS.TRAIN == ("json:a.json:images",)
    assert config.DATASETS.TEST == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {MAX_ITER: 1, MAX_ITER: 2}", "the key 'MAX_ITER' is given twice"),
        ("SEED: 1\nSOLVER: [", "line 2: not readable as YAML"),
        ("- SOLVER", "a config is a mapping"),
        ("SEED: !!python/object/apply:os.getcwd []", "not readable as YAML"),
    ],
)
def test_a_file_that_cannot_be_read_safely_is_refused(tmp_path, text, message):
    assert message in problems(write(tmp_path, text=text))[0]


@pytest.mark.parametrize("before", ["", "quick/", "det_configs/quick/"])
def test_a_config_in_any_folder_builds_on_one_of_the_projects(tmp_path, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    name = "mask_rcnn_convnextv2_atto_fcmae_quick.yaml"
    path = write(tmp_path, text=f"_BASE_: {before}{name}\nSOLVER: {{MAX_ITER: 7, STEPS: [3]}}")
    config = load_config(path)
    assert config.SOLVER.MAX_ITER == 7
    assert config.SOLVER.BASE_LR == load_config(ROOT / "quick" / name).SOLVER.BASE_LR


def test_missing_files_and_circles_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
    path = write(tmp_path, text="_BASE_: gone.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, which is the _BASE_ of .*config"):
        load_config(path)
    write(tmp_path, "gone.yaml", "_BASE_: config.yaml")
    with pytest.raises(ValueError, match="goes in a circle"):
        load_config(path)


def test_configs_are_frozen_and_dump_to_a_config(tmp_path):
    config = load_config(SHIPPED[0], ["SOLVER.MAX_ITER", "7", "SOLVER.STEPS", "()"])
    with pytest.raises(AttributeError):
        config.SEED = 1
    assert load_config(write(tmp_path, text=config.dump())) == config


def test_steps_behind_the_end_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(write(tmp_path), ["SOLVER.MAX_ITER", "100"])
    assert "SOLVER.STEPS [30000] lie behind MAX_ITER 100" in caplog.text
    caplog.clear()
    load_config(write(tmp_path), ["SOLVER.MAX_ITER", "100"], training=False)
    assert not caplog.text  # of no use to who predicts


def test_number_of_classes_comes_from_the_annotations(tmp_path):
    dataset = CocoDataset("d", Path("d.json"), Path("i"), ("a", "b"), {1: 0, 5: 1}, Records())
    path = write(tmp_path)
    assert resolve_num_classes(load_config(path), dataset) == 2
    assert (
        resolve_num_classes(load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "2"]), dataset) == 2
    )
    with pytest.raises(ValueError, match=r"is 80, but d\.json has 2 categories; set it to 2"):
        resolve_num_classes(load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "80"]), dataset)


@shipped
def test_shipped_config_is_valid_and_its_header_complete(path):
    config = load_config(path)
    header = path.read_text().split("\n_BASE_")[0]
    for line in ("Command:", "Expected:", "Schedule:"):
        assert f"\n# {line} " in header
    # by the name that any folder understands, for the command that a wheel brings
    command = " ".join(header.partition("\n# Command:")[2].partition("\n# Expected:")[0].split())
    assert f"--config-file {path.parent.name}/{path.name}" in command
    assert "fcmae train" in command
    assert "tools/" not in command
    assert f"`{path.parent.name}/{path.name}`" in (ROOT / "README.md").read_text()
    engines = {"quick": "torchvision", "edge": "torchvision", "coco": "detectron2"}
    assert engines[path.parent.name] == config.ENGINE
    name = re.fullmatch(
        r"(?:cascade_)?mask_rcnn_(convnext(?:v2)?_[a-z]+)_(scratch|fcmae_in1k|fcmae|in1k|in22k)_([a-z0-9]+)",
        path.stem,
    )
    assert name
    size, init, _ = name.groups()
    assert size == config.MODEL.CONVNEXT.SIZE
    weights = {
        "scratch": "",
        "fcmae": f"timm:{size}.fcmae",
        "fcmae_in1k": f"timm:{size}.fcmae_ft_in1k",
        "in1k": f"timm:{size}.fb_in1k",
        "in22k": f"timm:{size}.fb_in22k",
    }
    assert weights[init] == config.MODEL.CONVNEXT.WEIGHTS


def test_every_v2_size_has_its_configs():
    names = {path.stem for path in SHIPPED}
    for size in (size for size in SIZES if size.startswith("convnextv2_")):
        is_small = size not in ("convnextv2_base", "convnextv2_large", "convnextv2_huge")
        for init in ("scratch", "fcmae", "fcmae_in1k"):
            for schedule in ("lsj3x", "1x") if is_small else ("lsj3x",):
                assert f"mask_rcnn_{size}_{init}_{schedule}" in names
    for size in ("atto", "femto", "pico", "nano"):
        for init in ("scratch", "fcmae"):
            assert f"mask_rcnn_convnextv2_{size}_{init}_edge1x" in names
    assert "mask_rcnn_convnext_base_in1k_lsj3x" in names
    assert "cascade_mask_rcnn_convnextv2_base_fcmae_lsj3x" in names


# million parameters, by the ConvNeXt authors' object_detection/README
PUBLISHED_CASCADES = {"tiny": 86, "small": 108, "base": 146, "large": 255, "xlarge": 407}

# facebookresearch/ConvNeXt, object_detection/configs/convnext, and mmdetection's configs/convnext
# for T and S: drop path, rate, layer decay (its num_layers + 1 ids: 13, of T 7)
PUBLISHED_RECIPES = {
    "mask_rcnn_convnext_tiny_in1k": (0.4, 1e-4, 0.95, 7),
    "cascade_mask_rcnn_convnext_tiny_in1k": (0.4, 2e-4, 0.7, 7),
    "cascade_mask_rcnn_convnext_small_in1k": (0.6, 2e-4, 0.7, 13),
    "cascade_mask_rcnn_convnext_base_in1k": (0.7, 2e-4, 0.8, 13),
    "cascade_mask_rcnn_convnext_base_in22k": (0.6, 1e-4, 0.8, 13),
    "cascade_mask_rcnn_convnext_large_in22k": (0.7, 1e-4, 0.7, 13),
    "cascade_mask_rcnn_convnext_xlarge_in22k": (0.8, 1e-4, 0.7, 13),
}


@pytest.mark.parametrize("name", PUBLISHED_RECIPES)
def test_a_published_detectors_config_trains_as_it_was_trained(name):
    config = load_config(ROOT / f"coco/{name}_ms3x.yaml")
    drop_path, rate, decay, last = PUBLISHED_RECIPES[name]
    convnext, solver = config.MODEL.CONVNEXT, config.SOLVER
    assert (drop_path, rate, decay) == (convnext.DROP_PATH_RATE, solver.BASE_LR, solver.LAYER_DECAY)
    assert last_layer_id(SIZES[convnext.SIZE].depths, solver.LAYER_DECAY_TYPE) == last
    assert (solver.IMS_PER_BATCH, solver.WEIGHT_DECAY, solver.GAMMA) == (16, 0.05, 0.1)
    assert [round(n * 16 / 117266) for n in (*solver.STEPS, solver.MAX_ITER)] == [27, 33, 36]


def is_soft(path):
    """Whether a config tests with soft-NMS: the paper's do, published V1 detectors do not."""
    return path.parent.name == "coco" and not path.stem.endswith("_ms3x")


@shipped
def test_the_papers_recipe_is_tested_with_soft_nms_and_quick_ones_without(path):
    """As the reproduction's ``dict(type="soft_nms")``: mmcv's defaults, linear above 0.5."""
    heads = load_config(path).MODEL.ROI_HEADS
    assert is_soft(path) == heads.SOFT_NMS.ENABLED
    assert (heads.SOFT_NMS.METHOD, heads.NMS_THRESH_TEST, heads.SOFT_NMS.MIN_SCORE) == (
        "linear",
        0.5,
        0.001,
    )


@pytest.mark.parametrize("path", MASK_RCNN, ids=lambda path: path.stem)
def test_shipped_config_builds_on_torchvision(path):
    config = load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    detector = build_on_meta(config)
    predicted = detector.roi_heads.box_predictor.cls_score.out_features
    assert predicted == 81


@pytest.mark.detectron2
@shipped
def test_shipped_config_builds_on_detectron2_with_as_many_parameters(path):
    from detectron2.modeling import build_model

    import backbones.d2_adapter  # noqa: F401 - registers the backbone
    import detection.engines.detectron2.cascade  # noqa: F401 - registers heads

    config = load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "MODEL.CONVNEXT.WEIGHTS", ""])
    cfg = to_detectron2(config)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    found = sum(p.numel() for p in model.parameters())
    if "PerClass" in config.MODEL.ROI_HEADS.NAME:
        size = config.MODEL.CONVNEXT.SIZE.removeprefix("convnext_")
        assert round(found / 1e6) == PUBLISHED_CASCADES[size]
        return
    if path.name.startswith(IS_CASCADE):
        assert found == cascade_parameters(config)
        return
    heads = build_on_meta(config).roi_heads
    box, mask = heads.box_predictor, heads.mask_predictor
    # torchvision predicts a box (and a mask) for the background as well
    extra = 4 * (box.bbox_pred.in_features + 1) + mask.mask_fcn_logits.in_channels + 1
    ours = sum(p.numel() for p in build_on_meta(config).parameters())
    assert found == ours - extra


def cascade_parameters(config):
    """Those of the Mask R-CNN, with three box heads instead of one, of one box each."""
    heads = build_on_meta(config).roi_heads
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    features, classes = heads.box_predictor.cls_score.in_features, 80
    stage = count(heads.box_head) + (features + 1) * (classes + 1 + 4)
    mask_of_background = heads.mask_predictor.mask_fcn_logits.in_channels + 1
    rest = count(build_on_meta(config)) - count(heads.box_head) - count(heads.box_predictor)
    return rest - mask_of_background + 3 * stage


def test_flops_of_base_are_the_papers():
    """486 G at 1280 x 800 (arXiv 2301.00808, Table 6), within 2%: as the tool wrote it, and as
    two small images tell (all but the heads is proportional to the pixels)."""
    table = (ROOT / "README.md").read_text()
    row = re.search(r"coco/mask_rcnn_convnextv2_base_fcmae_lsj3x.*?\| ([\d.]+) M \| (\d+) G", table)
    assert row
    assert abs(int(row[2]) / 486 - 1) < 0.02
    path = ROOT / "coco/mask_rcnn_convnextv2_base_fcmae_lsj3x.yaml"
    config = load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    small, large = (complexity(config, side, 64).flops for side in (64, 128))
    assert int(row[2]) == round((small + (large - small) * (1280 * 800 / 64**2 - 1)) / 1e9)


def test_flops_grow_with_the_image_and_stay_in_the_heads():
    """All but the heads is proportional to the pixels: two sizes give what a third must be."""
    path = ROOT / "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
    config = load_config(path, ["MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    small, large, larger = (complexity(config, side, 64).flops for side in (64, 128, 256))
    assert larger - large == 2 * (large - small)
    resolution, channels = 7, config.MODEL.FPN.OUT_CHANNELS
    box_head = channels * resolution**2 * 256 + 256**2 + 256 * 81 + 256 * 4 * 81
    assert 2 * small - large > 1000 * box_head


@pytest.mark.detectron2
def test_cascade_counts_two_more_box_heads_and_one_box_a_stage():
    """All other layers are the Mask R-CNN's, which torchvision builds with a background's mask."""
    path = ROOT / "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
    given = ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    plain = complexity(load_config(path, given), 64, 64).flops
    cascade = complexity(load_config(path, [*given, *CASCADE.split()]), 64, 64).flops
    fc, rows = 64 * 49 * 256 + 256 * 256, 256
    box_heads = 1000 * (2 * fc + 3 * rows * (8 + 4) - rows * (8 + 4 * 8))
    assert cascade - plain == box_heads - 100 * 28 * 28 * 64


def test_coco_schedule_is_36_epochs_of_the_images_with_objects():
    solver = load_config(ROOT / "coco/mask_rcnn_convnextv2_base_fcmae_lsj3x.yaml").SOLVER
    epoch = -(-117266 // 32)
    assert solver.IMS_PER_BATCH == 32
    assert 36 * epoch == solver.MAX_ITER
    assert (27 * epoch, 33 * epoch) == solver.STEPS


@pytest.mark.detectron2
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("SIZE 128 INPUT.TILES.OVERLAP 128", ["INPUT.TILES.OVERLAP is 128", "at most 127 pixels"]),
        ("SIZE 32", ["INPUT.TILES.SIZE is 32", "give at least 64"]),
        ("SIZE 256 INPUT.LSJ.ENABLED True", ["INPUT.LSJ.ENABLED is True beside INPUT.TILES"]),
        (
            "SIZE 256 ENGINE detectron2 TEST.AUG.ENABLED True INPUT.MASK_FORMAT polygon",
            ["TEST.AUG.ENABLED is True", "set it to bitmask"],
        ),
    ],
)
def test_tiles_that_cannot_be_are_told_with_the_remedy(tmp_path, settings, said):
    overrides = f"INPUT.TILES.ENABLED True INPUT.TILES.{settings}".split()
    text = "\n".join(problems(write(tmp_path), overrides))
    assert all(words in text for words in said), text
    overrides[1] = "False"
    if "LSJ" not in settings:
        load_config(write(tmp_path), overrides)


@pytest.mark.detectron2
def test_shared_keys_have_detectron2s_types():
    cfg = detectron2_defaults()
    ours = set()
    for name, key in SCHEMA.items():
        try:
            value = get(cfg, name)
        except KeyError:
            ours.add(name)
            continue
        assert type(value) is type(key.default), name
    assert ours == {
        "ENGINE",
        "WANDB",
        *(n for n in SCHEMA if n.startswith(("MODEL.CONVNEXT.", "INPUT.LSJ.", "INPUT.TILES."))),
        *(n for n in SCHEMA if n.startswith("INPUT.AUGMENTATION.") or "SOFT_NMS" in n),
        "DATASETS.VAL",
        "MODEL.CLASS_ALIASES",
        "MODEL.FREEZE",
        "INPUT.VALUE_RANGE",
        "INPUT.SHOW_BANDS",
        "SOLVER.ACCUMULATE",
        "SOLVER.EMA.ENABLED",
        "SOLVER.EMA.DECAY",
        "SOLVER.OPTIMIZER",
        "SOLVER.LAYER_DECAY",
        "SOLVER.LAYER_DECAY_TYPE",
        "SOLVER.AMP.PRECISION",
        "SOLVER.EARLY_STOPPING.PATIENCE",
        "TEST.BEST_METRIC",
    }


@pytest.mark.detectron2
@shipped
def test_shipped_config_means_the_same_in_detectron2(path):
    """Through ``to_detectron2``, and by a detectron2 user's own ``merge_from_file``."""
    cfg = detectron2_defaults()
    config = load_config(path, ["MODEL.DEVICE", "cuda"])
    add_convnext_config(cfg)
    cfg.merge_from_file(str(path))
    converted = to_detectron2(config)
    for name in SCHEMA:
        assert get(cfg, name) == get(config, name), name
        if name not in ("MODEL.ROI_HEADS.NAME", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
            assert get(converted, name) == get(config, name), name
    assert converted.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert converted.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    soft = "SoftNMS" if is_soft(path) else ""
    assert soft + config.MODEL.ROI_HEADS.NAME == converted.MODEL.ROI_HEADS.NAME


@pytest.mark.detectron2
def test_adding_our_keys_leaves_a_detectron2_config_as_it_was():
    cfg, before = detectron2_defaults(), detectron2_defaults()
    add_convnext_config(cfg)

    def assert_kept(old, new):
        for key, value in old.items():
            if isinstance(value, dict):
                assert_kept(value, new[key])
            else:
                assert new[key] == value

    assert_kept(before, cfg)


@pytest.mark.detectron2
def test_device_auto_becomes_a_device(tmp_path):
    detectron2_defaults()
    assert to_detectron2(load_config(write(tmp_path))).MODEL.DEVICE in ("cpu", "cuda")


def detectron2_defaults():
    from detectron2.config import get_cfg

    return get_cfg()


@pytest.mark.detectron2
def test_the_adapters_keys_are_those_of_the_schema_that_detectron2_lacks():
    """The adapter, which may not import this package, has a table of its own."""
    from backbones.d2_config import KEYS

    theirs = detectron2_defaults()

    def has(name):
        node = theirs
        for part in name.split("."):
            if part not in node:
                return False
            node = node[part]
        return True

    ours = {name: key.default for name, key in SCHEMA.items() if not has(name)}
    alone = {"MODEL.CONVNEXT.OUTPUT_STRIDE", "MODEL.CONVNEXT.ALLOW_IGNORED_KEYS"}
    assert set(KEYS) - alone == set(ours)
    # there they say what detectron2 itself does
    differ = {name for name in ours if KEYS[name] != ours[name]}
    assert differ == {"ENGINE", "SOLVER.OPTIMIZER"}
