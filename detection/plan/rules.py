"""The rules by which a detection training is planned: each with its source or its measurement.

A rule takes the numbers of a data set (:class:`detection.plan.survey.Survey`) and of the machine,
and sets keys of a config, each with the reason that is written beside it. No trainings
are compared; what the minutes allow comes from a few timed steps (:mod:`training.plans`).

What is called "measured" here is in docs/plan.md, with the commands; what is called "chosen" has
neither source nor measurement.
"""

from __future__ import annotations

import math

import numpy as np

from backbones.errors import counted
from detection.plan.anchors import GAIN, USUAL_RATIOS, fitted_anchors
from detection.plan.survey import LONGEST, Survey
from images.plans import Encoder, plan_device, plan_iterations
from training.plans import Machine, Plan

CPU_BASE = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
GPU_BASES = {
    False: "coco/mask_rcnn_convnextv2_atto_scratch_1x.yaml",
    True: "coco/mask_rcnn_convnextv2_atto_fcmae_1x.yaml",  # with an encoder
}

# Shorter sides that are planned, in pixels: multiples of the encoder's stride of 32.
SIDES = (128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 800, 1024, 1280)
SMALL, MIDDLE = 24, 48  # pixels that 3/4 and 1/2 of the objects should have
LEAST_SMALL = 8  # pixels: two cells of the finest feature map, whose stride is 4
LARGEST_ENLARGEMENT = 2.0
USUAL_LARGEST = 800  # detectron2's shorter side
WANTED_STEPS = 600  # below this, smaller images and more steps are better
RICH_STEPS = 3000  # above this, larger images and fewer steps are better

GATHERED = 4.0  # objects of the fullest tile, relative to the mean tile

COCO_DETECTIONS = 100  # that COCO's AP counts
MOST_DETECTIONS = 2000
PROPOSALS_OF_OBJECT = 3
MOST_PROPOSALS = 4000

# AdamW's rate and the images of a step that it is for: the quick config's, found on other data than
# it is used on, for the smallest encoders; the paper's recipe for COCO (RECIPES: 1e-4 at 16 to 32).
SMALL_ENCODERS = ("atto", "femto", "pico", "nano")
QUICK_RATE = 5e-4
COCO_RATE, COCO_BATCH = 1e-4, 16
LEAST_SAMPLES, MOST_SAMPLES = 64, 256  # regions per image that the heads learn from, on a CPU
RARE = 0.1  # a class is rare on fewer images than this share of the most frequent class's


def plan_base(machine: Machine, encoder: Encoder | None) -> Plan:
    """The heads: a fourth of the channels on a CPU; on a GPU detectron2's, and its engine."""
    plan = Plan(GPU_BASES[encoder is not None] if machine.is_gpu else CPU_BASE)
    plan_device(plan, machine)
    if not machine.is_gpu:
        return plan
    if machine.has_detectron2:
        plan.set("ENGINE", "detectron2", "detectron2 is installed, the usual engine on a GPU")
    else:
        plan.set("ENGINE", "torchvision", "detectron2 is not installed; the numbers are the same")
    if machine.device == "mps":
        plan.set("SOLVER.AMP.ENABLED", False, "bf16 was not tried on Apple's GPU")
    return plan


def plan_classes(plan: Plan, survey: Survey) -> None:
    """Classes from the labels; masks where objects have some."""
    names = survey.class_names
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    plan.set("MODEL.ROI_HEADS.NUM_CLASSES", len(names), f"the labels': {shown}")
    have = f"{survey.with_masks} of {counted(len(survey.boxes), 'object')} have a mask"
    plan.set("MODEL.MASK_ON", survey.with_masks > 0, have)


def wanted_pixels(survey: Survey) -> float:
    """The shorter side at which objects are large enough to be found.

    Three quarters of the objects get ``SMALL`` pixels or more, half of them ``MIDDLE``: COCO calls
    those below 32 small, and detectors find them half as well (RECIPES: 35.9 against 57.3 and 67.0
    AP). With 41 pixels for half of them boxes were less exact (measured). Images are enlarged to
    twice their size at most: that adds no detail, but small objects then cover more cells of the
    feature maps.
    """
    quarter, half = np.percentile(survey.relative_sizes, [25, 50])
    most = LARGEST_ENLARGEMENT * float(np.median(survey.frames))
    return min(max(SMALL / quarter, MIDDLE / half), most)


def wanted_side(survey: Survey) -> int:
    """The nearest of SIDES to the wanted one; for tiny images the smallest of them."""
    return nearest_side(
        wanted_pixels(survey), LARGEST_ENLARGEMENT * float(np.median(survey.frames))
    )


def said_sizes(survey: Survey, side: int) -> str:
    quarter, half = np.percentile(survey.relative_sizes, [25, 50])
    return (
        f"three quarters of the objects have {quarter * side:.0f} pixels or more, half of them "
        f"{half * side:.0f}"
    )


def nearest_side(side: float, most: float = SIDES[-1]) -> int:
    """The nearest of SIDES, by ratio, that is not larger than ``most``."""
    allowed = [one for one in SIDES if one <= most] or SIDES[:1]
    return min(allowed, key=lambda one: abs(math.log(one / side)))


def side_for_time(wanted: int, steps: int, survey: Survey) -> int:
    """Another side where time is short or ample: a step's time is proportional to the pixels.

    Smaller where the wanted one leaves fewer than WANTED_STEPS, but not where a quarter of the
    objects would have under ``LEAST_SMALL`` pixels; and not under half of it. Larger where it
    leaves more than RICH_STEPS, up to the images' own size and detectron2's 800.
    """
    if steps < WANTED_STEPS:
        quarter = float(np.percentile(survey.relative_sizes, 25))
        side = wanted * math.sqrt(max(steps, 1) / WANTED_STEPS)
        return min(wanted, nearest_side(max(side, LEAST_SMALL / quarter, wanted / 2)))
    if steps > RICH_STEPS:
        most = min(float(np.median(survey.frames)), USUAL_LARGEST)
        return max(wanted, nearest_side(wanted * math.sqrt(steps / RICH_STEPS), most))
    return wanted


def plan_side(plan: Plan, side: int, reason: str) -> None:
    """One side for training and test, and a longest one, which shrinks panoramas."""
    longest = int(side * LONGEST)
    plan.set("INPUT.MIN_SIZE_TRAIN", [side], reason)
    plan.set("INPUT.MAX_SIZE_TRAIN", longest, f"{LONGEST} x MIN_SIZE, as in the quick config")
    plan.set("INPUT.MIN_SIZE_TEST", side, "as in training")
    plan.set("INPUT.MAX_SIZE_TEST", longest, "as in training")


def plan_anchors(plan: Plan, survey: Survey) -> None:
    """Sizes and ratios by the objects at their size in training (:mod:`detection.plan.anchors`)."""
    boxes = survey.boxes
    if "INPUT.TILES.ENABLED" not in plan.choices:
        scales = plan["INPUT.MIN_SIZE_TRAIN"][0] / survey.frames
        boxes = boxes * scales[survey.owners, None]
    sizes, ratios, overlap, usual = fitted_anchors(boxes)
    small, large = np.percentile(np.sqrt(boxes.prod(1)), [5, 95])
    plan.set(
        "MODEL.ANCHOR_GENERATOR.SIZES", [[size] for size in sizes],
        f"90% of the objects have {small:.0f} to {large:.0f} pixels; overlap with their best "
        f"anchor {overlap:.2f} on average ({usual:.2f} with detectron2's 32 to 512)",
    )  # fmt: skip
    low, high = np.percentile(boxes[:, 1] / boxes[:, 0], [5, 95])
    why = f"height / width of 90% of the objects is {low:.2f} to {high:.2f}"
    if tuple(ratios) == USUAL_RATIOS:
        why += f"; their own ratios would add less than {GAIN} of overlap"
    plan.set("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [ratios], why)


def objects_of_sample(plan: Plan, survey: Survey) -> np.ndarray:
    """``[N]``, the objects that a detector sees at once of each image.

    For tiles ``GATHERED`` times as many as the image's mean tile has, because objects cluster.
    """
    counts = survey.per_image
    if "INPUT.TILES.ENABLED" not in plan.choices:
        return counts
    share = plan["INPUT.TILES.SIZE"] ** 2 / survey.sizes.prod(1)
    return np.ceil(counts * np.minimum(1, GATHERED * share)).astype(int)


def plan_counts(plan: Plan, survey: Survey) -> None:
    """Proposals and detections, by the fullest image.

    A few proposals for each object and no fewer than the base's; detections a third more than the
    fullest image has, but COCO's 100 at least: an object beyond the limit is never found. Both have
    a largest number (chosen), which the reason says where it holds.
    """
    most = int(objects_of_sample(plan, survey).max())
    in_tiles = "INPUT.TILES.ENABLED" in plan.choices
    said = f"the fullest {'tile may have' if in_tiles else 'image has'} {counted(most, 'object')}"
    on_gpu = plan.base != CPU_BASE
    for split, low, before in (
        ("TRAIN", 1000 if on_gpu else 200, 2000 if on_gpu else 500),
        ("TEST", 1000 if on_gpu else 200, 1000 if on_gpu else 500),
    ):
        kept = max(low, rounded_up(PROPOSALS_OF_OBJECT * most, 100))
        why = f"{said}: {PROPOSALS_OF_OBJECT} for each, {low} at least"
        if kept > MOST_PROPOSALS:
            kept, why = MOST_PROPOSALS, f"{said}; this is the most that is planned"
        plan.set(f"MODEL.RPN.POST_NMS_TOPK_{split}", kept, why)
        plan.set(f"MODEL.RPN.PRE_NMS_TOPK_{split}", max(before, 2 * kept), "per level, before NMS")
    found = max(COCO_DETECTIONS, rounded_up(4 * most / 3, 10))
    why = f"{said}: a third more, but at least the {COCO_DETECTIONS} that COCO's AP counts"
    if found > MOST_DETECTIONS:
        found, why = MOST_DETECTIONS, f"{said}; this is the most that is planned"
    plan.set("TEST.DETECTIONS_PER_IMAGE", found, why)


def plan_samples(plan: Plan, survey: Survey, machine: Machine) -> None:
    """Regions that the heads learn from: a quarter of them objects, as many as a mean image has.

    The true boxes are among the proposals. With fewer regions, the box regression would learn
    from little but these, which need no change. No fewer than the quick config has in a step, of
    its two images; on a GPU detectron2's 512.
    """
    if machine.is_gpu:
        return
    mean = float(objects_of_sample(plan, survey).mean())
    wanted = 2 ** math.ceil(math.log2(4 * mean))
    samples = min(max(LEAST_SAMPLES, wanted), MOST_SAMPLES)
    limit = f"{LEAST_SAMPLES} at least" if samples >= wanted else "the most that is planned"
    why = f"a quarter are objects, of which {mean:.1f} are seen at once; {limit}"
    plan.set("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", samples, why)


def rounded_up(number: float, unit: int) -> int:
    """The next multiple."""
    return math.ceil(number / unit) * unit


def samples_of_epoch(plan: Plan, survey: Survey) -> tuple[int, str]:
    """How many samples an epoch has, and what one is."""
    if "INPUT.TILES.ENABLED" in plan.choices:
        return survey.tiles(plan["INPUT.TILES.SIZE"]), "tile"
    return len(survey.sizes), "image"


def plan_batch(plan: Plan, survey: Survey, machine: Machine, most: int = COCO_BATCH + 1) -> None:
    """Images of a step, and the rate.

    On a CPU a step takes one image: that takes little more than half the time of two, and more
    steps are worth more. A GPU takes up to 16, but an epoch should have 10 steps. The rate grows
    with the square root of the batch, as for Adam (arXiv 2205.10287); it is not lowered for one
    image.
    """
    why, batch = "more steps in the same time", 1
    if machine.is_gpu:
        batch = min(COCO_BATCH, most, max(1, samples_of_epoch(plan, survey)[0] // 10))
        why = "as on COCO" if batch == COCO_BATCH else "so that an epoch has 10 steps, if possible"
        why = why if batch < most else "what fits into the memory"
    plan.set("SOLVER.IMS_PER_BATCH", batch, why)
    size = plan.choices.get("MODEL.CONVNEXT.SIZE")
    is_small = size is None or size.value.rpartition("_")[2] in SMALL_ENCODERS
    if is_small and not machine.is_gpu:
        plan.set("SOLVER.BASE_LR", QUICK_RATE, "the quick config's, for small encoders and heads")
        return
    rate = float(f"{COCO_RATE * math.sqrt(batch / COCO_BATCH):.2g}")
    why = f"the paper's {COCO_RATE:g} at {COCO_BATCH} images, scaled by the root of the batch"
    plan.set("SOLVER.BASE_LR", rate, why)


def plan_sampler(plan: Plan, survey: Survey) -> None:
    """Images of rare classes come more often: LVIS's repeat factors (arXiv 1908.03195)."""
    counts = survey.images_of_class
    limit = RARE * counts.max()
    if rare := [name for name, n in zip(survey.class_names, counts, strict=True) if 0 < n < limit]:
        plan.set(
            "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
            f"{len(rare)} of {len(counts)} classes are on fewer than {RARE:.0%} of the images of "
            f"the commonest one, such as {', '.join(rare[:3])}",
        )  # fmt: skip
        threshold = float(f"{limit / len(survey.sizes):.2g}")
        plan.set("DATALOADER.REPEAT_THRESHOLD", threshold, "rare below this share of images")
    else:
        why = f"none that is labelled is on fewer than {RARE:.0%} of the commonest one's images"
        plan.set("DATALOADER.SAMPLER_TRAIN", "TrainingSampler", why)


def plan_augmentation(plan: Plan) -> None:
    plan.set(
        "INPUT.RANDOM_FLIP", "horizontal",
        "a mirrored scene is a scene, as on COCO; labels do not tell whether images have an up and "
        "down: where not (microscopy, views from above), both, and AUGMENTATION.ROTATE_90 True",
    )  # fmt: skip


def plan_schedule(plan: Plan, iterations: int, survey: Survey, reason: str) -> None:
    """Iterations, a warm-up, and the rate x 0.1 for the last fifth, as in the quick config.

    The second reduction shortly before the end is as in detectron2 (at 96% of its 3x schedule).
    """
    samples, sample = samples_of_epoch(plan, survey)
    plan_iterations(plan, iterations, samples, reason, most_warmup=1000, sample=sample)
    steps = [max(1, round(0.8 * iterations)), max(2, round(0.95 * iterations))]
    plan.set("SOLVER.STEPS", steps, "after 80% and 95%")
