"""Published data sets known by name: their folders, and their classes in order.

References:
    ADE20K (arXiv 1608.05442): the 150 classes of its scene parsing benchmark, values 1 to 150;
    Cityscapes (arXiv 1604.01685): the 19 classes that are evaluated, with their label ids;
    COCO-Stuff (arXiv 1612.03716): 80 things and 91 stuffs; the value in a map is the id minus 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.replace("-\n", "-").replace("\n", " ").split(","))


ADE20K = _listed("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper,
fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door,
stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel,
bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver,
airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster,
stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool,
barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower,
radiator, glass, clock, flag
""")
CITYSCAPES = dict(
    zip(
        _listed("""
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain,
sky, person, rider, car, truck, bus, train, motorcycle, bicycle
"""),
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        strict=True,
    )
)
_THINGS = _listed("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
""")
_STUFFS = _listed("""
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-
other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-
stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-
other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand,
sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other,
table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-
panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
""")
# the ids from 1 to 90 that COCO did not use
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_THING_VALUES = [i - 1 for i in range(1, 91) if i not in _UNUSED]
COCO_STUFF = dict(zip(_THINGS, _THING_VALUES, strict=True)) | {
    name: value for value, name in enumerate(_STUFFS, 91)
}


@dataclass(frozen=True)
class Published:
    """A published data set; an image and its map differ only in the endings of their names."""

    images: str  # a folder under DETECTRON2_DATASETS
    labels: str  # a folder there, too
    image_ending: str
    label_ending: str
    names: tuple[str, ...]  # of the classes
    # value -> class index; empty if values are indices (after ``reduce_zero_label``)
    of_value: dict[int, int] = field(default_factory=dict)
    reduce_zero_label: bool = False  # see :mod:`segmentation.label_maps`


def _indices(values: dict[str, int]) -> dict[int, int]:
    return {value: index for index, value in enumerate(values.values())}


PUBLISHED = {
    f"ade20k_{split}": Published(
        f"ADEChallengeData2016/images/{folder}", f"ADEChallengeData2016/annotations/{folder}",
        ".jpg", ".png", ADE20K, reduce_zero_label=True,
    )
    for split, folder in (("train", "training"), ("val", "validation"))
}  # fmt: skip
PUBLISHED |= {
    f"cityscapes_{split}": Published(
        f"cityscapes/leftImg8bit/{split}", f"cityscapes/gtFine/{split}",
        "_leftImg8bit.png", "_gtFine_labelIds.png", tuple(CITYSCAPES), _indices(CITYSCAPES),
    )
    for split in ("train", "val")
}  # fmt: skip
PUBLISHED |= {
    f"coco_stuff_{split}": Published(
        f"coco/{split}2017", f"coco/stuffthingmaps/{split}2017",
        ".jpg", ".png", tuple(COCO_STUFF), _indices(COCO_STUFF),
    )
    for split in ("train", "val")
}  # fmt: skip
