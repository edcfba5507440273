"""The rules by which a detection training is planned: each with its source or its measurement.

Every rule takes the numbers of a data set (:class:`detection.plan.survey.Survey`) and of the
machine, and sets keys of a config, each with the reason that is written beside it. Nothing is
searched by training; what the minutes allow comes from a few timed steps (:mod:`training.plans`).

"Measured" is told in docs/plan.md, with the commands.
"""

from __future__ import annotations

import math

import numpy as np

from detection.plan.anchors import fitted_anchors
from detection.plan.survey import Encoder, Survey
from training.plans import Machine, Plan

CPU_BASE = "quick/mask_rcnn_convnextv2_atto_scratch_quick.yaml"
GPU_BASE = "coco/mask_rcnn_convnextv2_atto_scratch_1x.yaml"

# Shorter sides that are planned, in pixels: multiples of the encoder's stride.
SIDES = (128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 800, 1024, 1280)
SMALL, MIDDLE = 20, 40  # pixels that a small and a middling object shall have
LEAST_SMALL = 8  # pixels: two sites of the finest map (stride 4)
LARGEST_ENLARGEMENT = 2.0
LONGEST = 1.75  # longer side / shorter side: the quick config's 448 / 256
WANTED_STEPS = 600  # that a training takes before sharper images are worth more

DETECTIONS = 100  # COCO's own limit
MOST_DETECTIONS = 1000


def plan_base(machine: Machine) -> Plan:
    """The heads: a fourth of the channels on a CPU, detectron2's on a GPU."""
    if not machine.is_gpu:
        return Plan(CPU_BASE)
    plan = Plan(GPU_BASE)
    engine = "detectron2" if machine.has_detectron2 else "torchvision"
    why = "the field's engine, which is installed" if machine.has_detectron2 else (
        "detectron2 is not installed; both engines are the same function (PARITY)"
    )  # fmt: skip
    plan.set("ENGINE", engine, why)
    return plan


def plan_classes(plan: Plan, survey: Survey) -> None:
    """Classes from the labels; masks where every object has one."""
    names = survey.class_names
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    plan.set("MODEL.ROI_HEADS.NUM_CLASSES", len(names), f"the labels': {shown}")
    if survey.with_masks:
        plan.set("MODEL.MASK_ON", True, f"{survey.with_masks} objects have a mask")
    else:
        plan.set("MODEL.MASK_ON", False, "no object has a mask")


def plan_channels(plan: Plan, survey: Survey, encoder: Encoder | None) -> None:
    """Channels and depth of the files; mean and deviation as a training finds them."""
    channels = survey.channels
    files = f"the files have {channels} channel{'s' * (channels > 1)} of {survey.depth}"
    if channels == 1 and encoder is not None and encoder.in_chans == 3:
        channels, files = 3, f"{files}, the encoder takes 3: grey is repeated"
    formats = {3: "RGB", 1: "L"}
    plan.set("INPUT.FORMAT", formats.get(channels, "raw"), files)
    plan.set("MODEL.CONVNEXT.IN_CHANS", channels, "as INPUT.FORMAT has")
    if encoder is not None and encoder.has_statistics and encoder.in_chans == channels:
        source = "empty: the encoder's file has its own"
    elif channels == 3 and survey.depth == "8 bits":
        source = "empty: ImageNet's, as for all RGB of 8 bits"
    else:
        source = f"empty: measured when training starts, for ImageNet's do not fit {survey.depth}"
    plan.set("MODEL.PIXEL_MEAN", [], source)
    plan.set("MODEL.PIXEL_STD", [], source)
    if encoder is not None and encoder.in_chans != channels:
        plan.set(
            "MODEL.CONVNEXT.ADAPT_CHANNELS", True,
            f"the encoder has {encoder.in_chans} channels (timm's rule, docs/transfer.md)",
        )  # fmt: skip


def plan_weights(plan: Plan, encoder: Encoder | None) -> None:
    """The encoder that was given, or random weights of the smallest."""
    if encoder is None:
        plan.set(
            "MODEL.CONVNEXT.WEIGHTS", "",
            "random: no --encoder was given; FCMAE on your images is worth 5 to 15 AP "
            "(docs/reproduction.md)",
        )  # fmt: skip
        return
    plan.set("MODEL.CONVNEXT.SIZE", encoder.size, "of the encoder's file")
    plan.set("MODEL.CONVNEXT.WEIGHTS", encoder.path, "--encoder")


def wanted_side(survey: Survey) -> tuple[int, str]:
    """The shorter side at which objects are large enough to be found, and why.

    A quarter of the objects may be smaller than ``SMALL`` pixels, half smaller than ``MIDDLE``.
    Boxes are found well from 32 pixels on (COCO's bound of small objects, whose AP is about half of
    the others'); more costs time that more steps use better (measured). Images are enlarged to
    twice their size at most: it shows nothing new, but puts small objects on more sites.
    """
    quarter, half = np.percentile(survey.relative_sizes, [25, 50])
    native = float(np.median(survey.short))
    side = min(max(SMALL / quarter, MIDDLE / half), LARGEST_ENLARGEMENT * native)
    chosen = nearest_side(side)
    reason = (
        f"half of the objects have {half * chosen:.0f} pixels and more there, three quarters "
        f"{quarter * chosen:.0f} (in the files {half * native:.0f} and {quarter * native:.0f})"
    )
    return chosen, reason


def nearest_side(side: float) -> int:
    """The nearest of SIDES, by ratio."""
    return min(SIDES, key=lambda one: abs(math.log(one / side)))


def affordable_side(wanted: int, steps: int, survey: Survey) -> int:
    """A smaller side where the minutes are too few for WANTED_STEPS at the wanted one.

    A step's time goes with the pixels. No smaller than where a quarter of the objects would have
    under ``LEAST_SMALL`` pixels, or the half of the wanted side.
    """
    if steps >= WANTED_STEPS:
        return wanted
    side = wanted * math.sqrt(max(steps, 1) / WANTED_STEPS)
    quarter = float(np.percentile(survey.relative_sizes, 25))
    least = min(wanted, max(LEAST_SMALL / quarter, wanted / 2, SIDES[0]))
    return min(wanted, nearest_side(max(side, least)))


def plan_side(plan: Plan, side: int, reason: str) -> None:
    """One side for training and test, and a longer side that lets panoramas in, shrunk."""
    longest = int(side * LONGEST)
    plan.set("INPUT.MIN_SIZE_TRAIN", [side], reason)
    plan.set("INPUT.MAX_SIZE_TRAIN", longest, f"{LONGEST} x MIN_SIZE, as in the quick config")
    plan.set("INPUT.MIN_SIZE_TEST", side, "as in training")
    plan.set("INPUT.MAX_SIZE_TEST", longest, "as in training")


def plan_anchors(plan: Plan, survey: Survey) -> None:
    """Sizes and ratios by the objects at their size in training (:mod:`detection.plan.anchors`)."""
    shortest, longest = plan["INPUT.MIN_SIZE_TRAIN"][0], plan["INPUT.MAX_SIZE_TRAIN"]
    boxes = survey.boxes * survey.scales(shortest, longest)[survey.owners, None]
    sizes, ratios, overlap, usual = fitted_anchors(boxes)
    small, large = np.percentile(np.sqrt(boxes.prod(1)), [5, 95])
    plan.set(
        "MODEL.ANCHOR_GENERATOR.SIZES", [[size] for size in sizes],
        f"90% of the objects have {small:.0f} to {large:.0f} pixels; mean overlap with the best "
        f"anchor {overlap:.2f} (with 32 to 512: {usual:.2f})",
    )  # fmt: skip
    low, high = np.percentile(boxes[:, 1] / boxes[:, 0], [5, 95])
    plan.set(
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [ratios],
        f"height / width is {low:.2f} to {high:.2f} for 90% of the objects",
    )  # fmt: skip


def plan_counts(plan: Plan, survey: Survey) -> None:
    """Proposals and detections, by the fullest image.

    detectron2 keeps 1000 proposals for at most about 60 objects on COCO's fullest images; the
    quick config 200. Three for each object and no fewer than the base; detections a third more
    than the fullest image has, for COCO's 100 would leave objects out.
    """
    most = int(survey.per_image.max())
    said = f"the fullest image has {most} objects"
    low_train, low_test = (1000, 1000) if plan.base == GPU_BASE else (200, 200)
    kept = min(max(low_train, _hundreds(3 * most)), 2000)
    found = min(max(DETECTIONS, _tens(4 * most / 3)), MOST_DETECTIONS)
    plan.set("MODEL.RPN.POST_NMS_TOPK_TRAIN", kept, f"{said}: 3 for each")
    test = min(max(low_test, _hundreds(3 * most)), 2000)
    plan.set("MODEL.RPN.POST_NMS_TOPK_TEST", test, "as in training")
    pre = (2000, 1000) if plan.base == GPU_BASE else (500, 500)
    plan.set("MODEL.RPN.PRE_NMS_TOPK_TRAIN", max(pre[0], 2 * kept), "of a level, before NMS")
    plan.set("MODEL.RPN.PRE_NMS_TOPK_TEST", max(pre[1], 2 * test), "of a level, before NMS")
    plan.set("TEST.DETECTIONS_PER_IMAGE", found, f"{said}; COCO's limit is {DETECTIONS}")


def _hundreds(count: float) -> int:
    return math.ceil(count / 100) * 100


def _tens(count: float) -> int:
    return math.ceil(count / 10) * 10


RATES = {  # AdamW's, from random weights or an FCMAE encoder, at RATE_BATCH images a step
    "atto": 5e-4, "femto": 5e-4, "pico": 4e-4, "nano": 3e-4, "tiny": 2e-4, "small": 2e-4,
    "base": 1e-4, "large": 1e-4, "xlarge": 1e-4, "huge": 1e-4,
}  # fmt: skip
RATE_BATCH = 2


def plan_batch(plan: Plan, survey: Survey, machine: Machine, batch: int | None = None) -> None:
    """Images of a step, and the rate.

    On a CPU a step of one image takes half the time of one of two, and from random weights steps
    are what is short: one image (measured). On a GPU 16 images use it, but an epoch shall have 10
    steps. The rate goes with the square root of the batch, as for Adam (arXiv 2205.10287).
    """
    if batch is None:
        most = 16 if machine.is_gpu else 1
        batch = max(1, min(most, len(survey.sizes) // 10 or 1))
    reason = "more steps in the same time (measured)" if batch == 1 else "uses the GPU"
    plan.set("SOLVER.IMS_PER_BATCH", batch, reason)
    size = plan.choices.get("MODEL.CONVNEXT.SIZE")
    name = size.value.rpartition("_")[2] if size else "atto"
    rate = RATES[name] * math.sqrt(max(batch, RATE_BATCH) / RATE_BATCH)
    plan.set(
        "SOLVER.BASE_LR", float(f"{rate:.2g}"),
        f"{RATES[name]:g} for {name} at {RATE_BATCH} images, by the root of the batch above it",
    )  # fmt: skip


def plan_schedule(plan: Plan, iterations: int, survey: Survey, reason: str) -> None:
    """Iterations, a warm-up, and a tenth of the rate for the last fifth."""
    epochs = iterations * plan["SOLVER.IMS_PER_BATCH"] / len(survey.sizes)
    plan.set("SOLVER.MAX_ITER", iterations, f"{reason}; {epochs:.3g} epochs of {len(survey.sizes)}")
    warmup = max(1, min(1000, iterations // 15))
    plan.set("SOLVER.WARMUP_ITERS", warmup, "a fifteenth, as in the quick config; at most 1000")
    steps = sorted({max(1, round(0.8 * iterations)), max(2, round(0.95 * iterations))})
    plan.set("SOLVER.STEPS", steps, "after 80% and 95%")
    plan.set("SOLVER.CHECKPOINT_PERIOD", max(1, -(-iterations // 4)), "four checkpoints")


def plan_augmentation(plan: Plan, survey: Survey) -> None:
    """What makes more of few images."""
    plan.set("INPUT.RANDOM_FLIP", "horizontal", "a mirrored scene is a scene, as on COCO")


def plan_loader(plan: Plan, machine: Machine) -> None:
    workers = min(8, machine.cores - 1) if machine.is_gpu else min(1, machine.cores - 1)
    why = f"{machine.cores} core{'s' * (machine.cores > 1)}; the others compute"
    plan.set("DATALOADER.NUM_WORKERS", workers, why)


def enough_steps(survey: Survey, batch: int) -> int:
    """Steps beyond which a training is not planned: 400 epochs, but 2000 steps at least.

    400 epochs are the longest schedule of which a gain is published for detectors (100 to 400 on
    COCO from random weights, arXiv 2012.07177).
    """
    return max(2000, 400 * len(survey.sizes) // batch)
