"""Resolution: the size of test images, a whole number for squares."""

import math
import numbers
import re
from typing import Any


class Resolution(str):
    """A resolution that is no square, such as '352x640': height and width in pixels.

    Squares are whole numbers; among those it has its place by the number of pixels. It is text, so that it is what it
    was when it comes back from a file.
    """

    EXPECTED = 'a whole number of pixels, or height and width'

    @classmethod
    def parse(cls, value: Any) -> 'int | Resolution':
        """Return 288, '288', '352x640' or (352, 640) as a resolution.

        Raises:
          TypeError: for what is none.

        >>> Resolution.parse((352, 640)), Resolution.parse('288'), Resolution.parse('288x288')
        ('352x640', 288, 288)
        """
        match = re.fullmatch(r'(\d+)(?:x(\d+))?', value) if isinstance(value, str) else None
        sides = tuple(int(one or match[1]) for one in match.groups()) if match else value
        if not isinstance(sides, (list, tuple)):
            sides = (sides, sides)
        if len(sides) != 2 or any(isinstance(one, bool) or not isinstance(one, numbers.Integral) for one in sides):
            raise TypeError(f'{value!r} is no resolution: expected {cls.EXPECTED}, such as (352, 640).')
        height, width = map(int, sides)
        return height if height == width else cls(f'{height}x{width}')

    def __lt__(self, other: 'int | str') -> bool:
        return side(self) < side(other)

    def __le__(self, other: 'int | str') -> bool:
        return side(self) <= side(other)

    def __gt__(self, other: 'int | str') -> bool:
        return side(self) > side(other)

    def __ge__(self, other: 'int | str') -> bool:
        return side(self) >= side(other)


def shape(resolution: int | str) -> tuple[int, int]:
    """Return (height, width) in pixels.

    >>> shape(288), shape('352x640')
    ((288, 288), (352, 640))
    """
    if isinstance(resolution, str):
        height, width = map(int, resolution.split('x'))
        return height, width
    return resolution, resolution


def side(resolution: int | str) -> float:
    """Return the side, in pixels, of the square with as many pixels.

    >>> side(288), side('400x900')
    (288, 600.0)
    """
    return math.sqrt(math.prod(shape(resolution))) if isinstance(resolution, str) else resolution
