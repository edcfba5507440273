"""Colours for classes, easy to tell apart, the same for a class in every picture.

Colour ``i`` is the one farthest from colours 0 to ``i - 1`` among those that are neither pale nor
dark, so it does not depend on the number of classes. Distances were measured in OKLab (Björn
Ottosson, 2020). The smallest of three distances counts: for usual vision, and for eyes without red
or without green cones (Machado, Oliveira and Fernandes, 2009).
"""

from __future__ import annotations

Colour = tuple[int, int, int]  # RGB, 0-255

# fmt: off
_HEX = (
    "40a9ff d02e1e fad622 9b45c7 24f7e6 f7918b 098777 97a10b e55bba 6c75fe 5cc6bb d1b9ff a4e08f "
    "f7ab3b b7774b 3994b8 88629f 3cbd79 c55171 b67ada fda0d0 ca7d95 ce9d5d df7dfd 90f56a 3569e7 "
    "c29adb 8a6ed3 7bd05b a65e4a ac6a94 46fab4 5e9f6d 33dbaa d55516 f67a2c 75e0eb 88e2c0 d97a60 "
    "adaff6 e0bd74 089ce4 c2389a fca99b e684a4 36d3e1 d3ce18 628d38 975bb9 36a190 d9a311 ac8cce "
    "cbd672 1585e8 4ab6ab da365e ee4e3b bf61aa 735dd3 9582fc 5cca99 c92970 69b0e0 e372cb 97f197 "
    "f65485 e45764 ea9cbb f9c1fd d368a3 d8864c fbb3df c054cb cf8fbf e14383 b64e89 6ee9a3 63b68f "
    "e4a074 65c83a b877be e7aae1 428824 7af2c8 abdb4e 89d188 526ff3 b7575d f77d78 ce7ae8 faa7b8 "
    "d4bc56 f69841 7ab466 60a1e8 c9e852 ad93fb c97974 d69bd0 5377c3 0a84d1 ab7008 3fd6c8 1b93a4 "
    "8672ea 61a746 726aac 31977f 30a5a9 eb99f3 49c883 f1cd84 b04aa9 3b865b cc4051 37aa7b b05bde "
    "4b9f25 ce5856 b549c0 5091d7 55eaf8 16a0ce 617bdd 489d5f a84d95 63edd5 fb734e "
)
# fmt: on
PALETTE: list[Colour] = [(int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16)) for h in _HEX.split()]


def class_colour(index: int) -> Colour:
    """The colour of the class at this position; after 128 classes the colours repeat."""
    return PALETTE[index % len(PALETTE)]
