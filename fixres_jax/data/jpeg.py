"""Decode a crop of a JPEG file: Pillow's pixels, bit for bit, in less time and without Python's lock.

Baseline files with one scan, grey or YCbCr with the usual subsamplings, are decoded here. That is what photographs and
prepared records are. Every other file, and every damaged one, is left to Pillow.
"""

import dataclasses

import numpy as np

from fixres_jax.data import jpeg_scan

BEGIN, END = b'\xff\xd8', b'\xff\xd9'
BASELINE, OTHER_FRAMES = 0xC0, {*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC}
HUFFMAN, SCAN, QUANTIZERS, RESTART_INTERVAL, JFIF, ADOBE = 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE
SIGNED = {JFIF: b'JFIF\0', ADOBE: b'Adobe'}
SUBSAMPLINGS = (0x11, 0x21, 0x22)  # 4:4:4, 4:2:2 and 4:2:0: blocks of luminance across and down for one of colour
WHOLE_SCAN = bytes((0, 63, 0))  # all coefficients, all bits

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What the header of a file says, as `crop` needs it.

    Attributes:
      width, height: in pixels.
      across, down: blocks of luminance in a unit of the scan (8x8 pixels each).
      interval: units between two restart markers; 0 for none.
      quantizers: int64[components, 64], in the order of the file.
      codes: uint8[2 * components, 272], for DC and AC of each component how many Huffman codes have 1 to 16 bits,
        and their symbols.
      data_at: offset of the coded pixels.
    """

    width: int
    height: int
    across: int
    down: int
    interval: int
    quantizers: np.ndarray
    codes: np.ndarray
    data_at: int

    @property
    def restarts(self) -> bool:
        """Whether a restart marker ends every row of units."""
        return self.interval == -(-self.width // (8 * self.across))


def layout(encoded: bytes) -> Layout | None:
    """Read the header of a file that `crop` can decode; None for every other file, or one without its end."""
    if encoded[:2] != BEGIN or encoded[-2:] != END:
        return None
    place, quantizers, codes, other = 2, {}, {}, {}
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker, length = encoded[place + 1], int.from_bytes(encoded[place + 2 : place + 4])
        body = encoded[place + 4 : place + 2 + length]
        place += 2 + length
        if marker in OTHER_FRAMES:
            return None
        if marker == QUANTIZERS:
            for at in range(0, len(body), 65):
                if body[at] > 3:  # 16 bits each
                    return None
                quantizers[body[at]] = body[at + 1 : at + 65]
        elif marker == HUFFMAN:
            while body:
                end = 17 + sum(body[1:17])
                codes[body[0]] = body[1:end]
                body = body[end:]
        elif marker == SCAN:
            return _layout(quantizers, codes, other, body, place)
        elif marker not in SIGNED or body.startswith(SIGNED[marker]):
            other[marker] = body
    return None


def _layout(
    quantizers: dict[int, bytes], codes: dict[int, bytes], other: dict[int, bytes], scan: bytes, data_at: int
) -> Layout | None:
    frame = other.get(BASELINE, b'')
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    height, width, count = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5]), frame[5]
    names, samplings, numbers = frame[6::3], frame[7::3], frame[8::3]
    if scan[:1] != frame[5:6] or scan[1:-3:2] != names or scan[-3:] != WHOLE_SCAN:  # not all in one scan
        return None
    if count == 1:
        samplings = b'\x11'  # a single component is stored block by block, whatever its sampling says
    across, down = samplings[0] >> 4, samplings[0] & 15
    odd = samplings[0] not in SUBSAMPLINGS or samplings[1:] != b'\x11' * (count - 1)
    if odd or not height or width <= 2 * across or (count == 3 and _is_rgb(other, names)):
        return None
    quantizers = [quantizers.get(number, b'') for number in numbers]
    codes = [codes.get(key, b'') for tables in scan[2:-3:2] for key in (tables >> 4, 16 | (tables & 15))]
    if any(len(table) != 64 for table in quantizers) or any(not 17 <= len(table) <= 272 for table in codes):
        return None
    return Layout(
        width,
        height,
        across,
        down,
        int.from_bytes(other.get(RESTART_INTERVAL, b'')[:2]),
        np.frombuffer(b''.join(quantizers), np.uint8).reshape(count, 64).astype(np.int64),
        np.frombuffer(b''.join(table.ljust(272, b'\0') for table in codes), np.uint8).reshape(-1, 272),
        data_at,
    )


def _is_rgb(other: dict[int, bytes], names: bytes) -> bool:
    """Say whether libjpeg takes three components for red, green and blue."""
    if JFIF in other:
        return False
    return other[ADOBE][11:12] == b'\0' if ADOBE in other else names == b'RGB'


def crop(encoded: bytes, found: Layout, box: Box) -> np.ndarray | None:
    """Decode a crop.

    Args:
      encoded: the file.
      found: its layout.
      box: (left, top, right, bottom) in pixels, within the image.

    Returns:
      uint32[H, W], as in `pixels`; None when the file is damaged.
    """
    left, top, right, bottom = box
    width, height = 8 * found.across, 8 * found.down  # of a unit
    units = -(-found.width // width), -(-found.height // height)
    # One pixel more at every side, because the upsampling of colour looks at neighbours.
    columns = max(0, left - 1) // width, min(units[0], right // width + 1)
    rows = max(0, top - 1) // height, min(units[1], bottom // height + 1)
    padded = encoded + bytes(7)
    planes = jpeg_scan.decode(
        np.frombuffer(padded, np.uint8),
        np.ndarray(len(encoded), np.uint64, padded, 0, (1,)),
        found.data_at,
        found.interval,
        units[0],
        columns,
        rows,
        (found.across, found.down),
        found.quantizers,
        found.codes,
    )
    if not len(planes):
        return None
    x, y = columns[0] * width, rows[0] * height
    colored = -(-(found.width - x) // found.across), -(-(found.height - y) // found.down)
    inside = left - x, top - y, right - x, bottom - y
    is_grey = len(found.quantizers) == 1
    return jpeg_scan.to_pixels(planes, is_grey, (found.across, found.down), colored, inside)
