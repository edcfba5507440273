"""Detections of overlapping tiles, joined across the seams: the same for both engines.

Two tiles that overlap both see what lies in their overlap. Two detections of one class are one
object if they agree there: the IoU of their parts in the overlap is at least ``SAME``; or, for a
detection that its tile's border cuts, the other one covers at least ``SAME`` of its part. (Of a cut
object a tile may find less, because it sees less of it.) Agreeing
pairs are joined, those of the most common pixels first, into one object, which has one detection of
each tile; or several where all of these are cut and each is covered by one of another tile, as two
arms of a U are.

Of an object that some tile sees whole, the best-scored whole detection stays as the engine gave it.
An object that every tile cuts is the union of its parts: of the masks, and of the boxes; its score
is the largest. A detection is cut if it reaches within ``MARGIN`` of its own size (at least
``LEAST_MARGIN`` pixels) of a border of its tile that is no border of the image. What remains cut,
and agrees with an object that has a whole detection of its tile already, is left out.

Classes are joined one by one, as detectors suppress duplicates. Detections without masks are joined
by their boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec

from detection.data.tiles import Tile
from detection.data.windows import decode_window, encode_strips

SAME = 0.5
MARGIN, LEAST_MARGIN = 0.05, 2.0
COVERS = 0.8  # of all of an object, that a whole detection of it shows

Result = dict[str, Any]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(eq=False)
class _Piece:
    """A detection of a tile, in pixels of the image."""

    tile: int
    result: Result
    box: Box
    is_cut: bool

    @property
    def mask(self) -> dict[str, Any] | None:
        return self.result.get("segmentation")


@dataclass(frozen=True)
class _Pair:
    """Two detections: how much they agree, on how many pixels, and the smaller one if it is cut."""

    agreement: float
    common: float
    first: _Piece
    second: _Piece
    cut: _Piece | None


def join_tiles(
    found: Sequence[tuple[Tile, list[Result]]],
    height: int,
    width: int,
    counts: Counter[str] | None = None,
) -> list[Result]:
    """One image's detections of those of its tiles, best score first.

    Args:
        found: each tile and its detections in COCO's results format, in the tile's pixels.
        height, width: of the image.
        counts: gets ``tiles``, ``found`` (detections of tiles), ``repeated`` (of what another
            detection shows), ``united`` (objects of several parts) and their ``parts``.

    Returns:
        Results in the image's pixels, masks as run lengths of the image.
    """
    pieces = [
        [_piece(result, number, tile, height, width) for result in results]
        for number, (tile, results) in enumerate(found)
    ]
    tiles = [tile for tile, _ in found]
    pairs = [pair for i, j in _neighbours(tiles) for pair in _pairs(pieces, tiles, i, j)]
    groups, left_out = _grouped(pieces, pairs)
    counts = Counter() if counts is None else counts
    counts.update(tiles=len(tiles), found=sum(map(len, pieces)), repeated=len(left_out))
    joined = [_resolved(group, counts) for group in groups]
    return sorted(joined, key=lambda result: -result["score"])


def _piece(result: Result, number: int, tile: Tile, height: int, width: int) -> _Piece:
    x, y, wide, high = result["bbox"]
    moved = result | {"bbox": [x + tile.x, y + tile.y, wide, high]}
    mask = result.get("segmentation")
    if mask is not None and list(mask["size"]) != [height, width]:
        inside, (left, top) = decode_window(mask)
        strips = [(inside, left + tile.x)]
        moved["segmentation"] = encode_strips(strips, top + tile.y, height, width)
    across, down = (max(LEAST_MARGIN, MARGIN * side) for side in (wide, high))
    is_cut = (
        (tile.x > 0 and x < across)
        or (tile.y > 0 and y < down)
        or (tile.x + tile.width < width and x + wide > tile.width - across)
        or (tile.y + tile.height < height and y + high > tile.height - down)
    )
    left, top = moved["bbox"][:2]
    return _Piece(number, moved, (left, top, left + wide, top + high), is_cut)


def _neighbours(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles that share pixels."""
    boxes = np.array([(t.x, t.y, t.x + t.width, t.y + t.height) for t in tiles]).reshape(-1, 4)
    found = []
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        later = boxes[number + 1 :]
        shares = (later[:, 0] < x1) & (later[:, 2] > x0) & (later[:, 1] < y1) & (later[:, 3] > y0)
        found += [(number, number + 1 + int(place)) for place in np.flatnonzero(shares)]
    return found


def _pairs(
    pieces: Sequence[Sequence[_Piece]], tiles: Sequence[Tile], i: int, j: int
) -> list[_Pair]:
    """The detections of two tiles that agree on what both tiles see."""
    a, b = tiles[i], tiles[j]
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1, y1 = min(a.x + a.width, b.x + b.width), min(a.y + a.height, b.y + b.height)
    seen = x0, y0, x1, y1
    sides = [[piece for piece in pieces[n] if _common(piece.box, seen)] for n in (i, j)]
    if not all(sides):
        return []
    window = _Seen(seen)
    others = np.array([piece.box for piece in sides[1]])
    classes = np.array([hash(piece.result["category_id"]) for piece in sides[1]])
    found = []
    for piece in sides[0]:
        left, top, right, bottom = piece.box
        meets = (
            (others[:, 0] < min(right, x1)) & (others[:, 2] > max(left, x0))
            & (others[:, 1] < min(bottom, y1)) & (others[:, 3] > max(top, y0))
            & (classes == hash(piece.result["category_id"]))
        )  # fmt: skip
        for place in np.flatnonzero(meets):
            pair = window.pair(piece, sides[1][place])
            if pair is not None and pair.agreement >= SAME:
                found.append(pair)
    return found


class _Seen:
    """What two tiles both see: the part of the image from x0, y0 to x1, y1."""

    def __init__(self, bounds: tuple[int, int, int, int]) -> None:
        self.bounds = bounds
        self.areas: dict[int, float] = {}

    def pair(self, first: _Piece, second: _Piece) -> _Pair | None:
        """What two detections agree by here; None if one of them shows nothing here."""
        areas = self.area(first), self.area(second)
        if not all(areas):
            return None
        if first.mask is not None and second.mask is not None:
            common = float(rle_codec.area(rle_codec.merge([first.mask, second.mask], True)))
        else:
            common = _area(_common(_common(first.box, second.box), self.bounds))
        small = first if areas[0] <= areas[1] else second
        if small.is_cut:
            return _Pair(common / min(areas), common, first, second, small)
        return _Pair(common / (sum(areas) - common), common, first, second, None)

    def area(self, piece: _Piece) -> float:
        """Pixels of a detection that lie here."""
        if id(piece) not in self.areas:
            x0, y0, x1, y1 = self.bounds
            if piece.mask is None:
                self.areas[id(piece)] = _area(_common(piece.box, self.bounds))
            else:
                inside, (x, y) = decode_window(piece.mask)
                part = inside[max(y0 - y, 0) : max(y1 - y, 0), max(x0 - x, 0) : max(x1 - x, 0)]
                self.areas[id(piece)] = float(part.sum())
        return self.areas[id(piece)]


def _common(a: Box | None, b: Box) -> Box | None:
    """What two boxes share; None for nothing."""
    if a is None:
        return None
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _area(box: Box | None) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) if box else 0.0


def _grouped(
    pieces: Sequence[Sequence[_Piece]], pairs: Sequence[_Pair]
) -> tuple[list[list[_Piece]], set[int]]:
    """The detections of each object, and the ids of those that are left out."""
    group_of = {id(piece): [piece] for of_tile in pieces for piece in of_tile}
    refused = []
    for pair in sorted(pairs, key=lambda pair: (-pair.common, -pair.agreement)):
        a, b = group_of[id(pair.first)], group_of[id(pair.second)]
        if a is b:
            continue
        if not _is_one_object(a, b, pair):
            refused.append(pair)
            continue
        a += b
        for piece in b:
            group_of[id(piece)] = a
    left_out = {id(pair.cut) for pair in refused if pair.cut and len(group_of[id(pair.cut)]) == 1}
    groups = {id(group): group for key, group in group_of.items() if key not in left_out}
    return list(groups.values()), left_out


def _is_one_object(a: Sequence[_Piece], b: Sequence[_Piece], pair: _Pair) -> bool:
    """Whether two groups may be one: they share no tile, or the pair's cut part has none there."""
    shared = {piece.tile for piece in a} & {piece.tile for piece in b}
    if not shared:
        return True
    if pair.cut is None or not all(p.is_cut for p in [*a, *b] if p.tile in shared):
        return False
    own, other = (a, pair.second) if pair.cut is pair.first else (b, pair.first)
    return all(piece.tile != other.tile for piece in own)


def _resolved(group: list[_Piece], counts: Counter[str]) -> Result:
    """The one result of an object, made of its detections."""
    best = max(group, key=lambda piece: (not piece.is_cut, piece.result["score"]))
    if len(group) == 1:
        return best.result
    masks = [piece.mask for piece in group if piece.mask is not None]
    edges = np.array([piece.box for piece in group])
    x0, y0 = map(float, edges[:, :2].min(0))
    x1, y1 = map(float, edges[:, 2:].max(0))
    if len(masks) == len(group):
        union = rle_codec.merge(masks)
        parts = [float(rle_codec.area(rle)) for rle in (best.mask, union)]
    else:
        parts = [_area(best.box), _area((x0, y0, x1, y1))]
    if not best.is_cut and parts[0] >= COVERS * parts[1]:
        counts["repeated"] += len(group) - 1
        return best.result
    counts.update(united=1, parts=len(group))
    score = max(piece.result["score"] for piece in group)
    united = best.result | {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
    if len(masks) == len(group):
        united["segmentation"] = {"size": union["size"], "counts": union["counts"].decode()}
    return united
