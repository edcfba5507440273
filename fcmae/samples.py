"""Common base of labelled and unlabelled image samples: reading, and handling of bad images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import torch

from images.files import ImageError, Picture, Reading, open_picture
from images.readers import Reader

Value = TypeVar("Value")


@contextmanager
def opened_picture(reader: Reader, index: int, reading: Reading) -> Iterator[Picture]:
    """A picture that can become one of the wanted channels; closed afterwards.

    Raises:
        ImageError: if it cannot; the message says why and leaves the name to the caller.
    """
    try:
        file = reader.open(index)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be opened ({error})") from error
    with file:
        picture = open_picture(file)
        reading.check(picture)
        yield picture


@dataclass(kw_only=True)
class ImageSamples:
    """Map-style samples; a *place* is that of a sample, an *index* that of a file in the reader."""

    CANDIDATES: ClassVar[str] = "all images behind it"  # in words

    reader: Reader
    reading: Reading  # how files become arrays; its channels are given
    skip_bad_images: bool = False  # replace images that cannot be used; otherwise they are errors
    # index and reason of bad images that are known beforehand
    bad: dict[int, str] = field(default_factory=dict)

    @property
    def in_chans(self) -> int:
        """Channels of a sample."""
        assert self.reading.channels is not None
        return self.reading.channels

    def __len__(self) -> int:
        return len(self.reader)

    def index_of(self, place: int) -> int:
        """The file's index in the reader."""
        return place

    def candidates(self, place: int) -> Iterable[int]:
        """The places that may stand for one, itself first: the next ones, then from the start."""
        return ((place + step) % len(self) for step in range(len(self)))

    def describe(self, place: int) -> str:
        """The file that a sample comes from."""
        return self.reader.name(self.index_of(place))

    def opened(self, place: int) -> AbstractContextManager[Picture]:
        """See :func:`opened_picture`."""
        return opened_picture(self.reader, self.index_of(place), self.reading)

    def first_usable(
        self, place: int, make: Callable[[int], Value]
    ) -> tuple[int, Value, dict[int, str]]:
        """The first usable candidate: its place, the result of ``make``, the bad ones before it.

        The state of the random generators is restored after a bad image.

        Raises:
            ImageError: for a bad image where they are not skipped, or if there is no other.
        """
        state = torch.get_rng_state()
        met: dict[int, str] = {}
        for candidate in self.candidates(place):
            try:
                return candidate, make(candidate), met
            except ImageError as error:
                if not self.skip_bad_images:
                    raise ImageError(f"{self.describe(candidate)} {error}") from error
                met[self.index_of(candidate)] = str(error)
                torch.set_rng_state(state)
        raise ImageError(f"{self.describe(place)} and {self.CANDIDATES} cannot be used")

    def whole_image(self, place: int) -> np.ndarray:
        """An image without augmentation, ``[h, w, C]``: uint8, or float32 in 0..1.

        Raises:
            ImageError: if it cannot be used; the message names it.
        """
        try:
            with self.opened(place) as picture:
                return self.reading.read(picture)
        except ImageError as error:
            raise ImageError(f"{self.describe(place)} {error}") from error

    def eight_bit(self) -> bool:
        """Whether the first usable image has values of 8 bits, and keeps them.

        Raises:
            ImageError: for a bad image before it, where they are not skipped.
        """

        def looked_at(place: int) -> bool:
            with self.opened(place) as picture:
                return self.reading.is_eight_bit(picture)

        return self.first_usable(0, looked_at)[1]
