"""Decode a crop of a JPEG file with simplejpeg: Pillow's pixels, bit for bit, without Python's lock.

Half of the work of decoding is in the bytes, so the file is first cut down to the rows that the crop needs: rows below
are dropped by writing a smaller height into the header, and rows above by leaving out their bytes where restart markers
separate the rows, as in prepared records.
"""

import dataclasses
import re

import numpy as np
import simplejpeg

BEGIN, END = b'\xff\xd8', b'\xff\xd9'
BASELINE, RESTART_INTERVAL, SCAN = 0xC0, 0xDD, 0xDA
# Progressive and other frames, and what does not belong in a header.
OTHERS = {0x00, 0x01, 0xFF, *range(0xC1, 0xDA)} - {0xC4, 0xCC}
_RESTART = re.compile(rb'\xff[\xd0-\xd7]')
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a baseline JPEG file keeps what `keep_rows` changes."""

    width: int
    height: int
    height_at: int  # offset of the height's two bytes
    row: int  # pixel rows of a row of blocks
    restarts: bool  # whether a restart marker ends every row of blocks
    data_at: int  # offset of the coded pixels


def layout(encoded: bytes) -> Layout | None:
    """Read the layout of a baseline JPEG file with one scan, grey or in three colours; None for any other bytes."""
    if encoded[:2] != BEGIN or encoded[-2:] != END:
        return None
    place, interval, frame = 2, 0, None
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker, body = encoded[place + 1], place + 4
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
        if marker in OTHERS:
            return None
        if marker == BASELINE:
            frame = encoded[body:place]
            height_at = body + 1
        elif marker == RESTART_INTERVAL:
            interval = int.from_bytes(encoded[body : body + 2])
        elif marker == SCAN:
            if frame is None or encoded[body : body + 1] != frame[5:6]:  # a scan of some components only
                return None
            return _layout(frame, height_at, interval, place)
    return None


def _layout(frame: bytes, height_at: int, interval: int, data_at: int) -> Layout | None:
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    sampling = frame[7::3]
    if len(sampling) not in (1, 3) or frame[5] != len(sampling):  # simplejpeg turns CMYK into other colours
        return None
    if len(sampling) == 1:
        sampling = b'\x11'  # a single component is stored block by block, whatever its sampling says
    across, down = 8 * max(byte >> 4 for byte in sampling), 8 * max(byte & 15 for byte in sampling)
    if not height or not across or not down:
        return None
    restarts = interval == -(-width // across)
    return Layout(width, height, height_at, down, restarts, data_at)


def crop(encoded: bytes, found: Layout, box: Box) -> np.ndarray | None:
    """Decode a crop.

    Args:
      encoded: the file.
      found: its layout.
      box: (left, top, right, bottom) in pixels, within the image.

    Returns:
      uint32[H, W], as in `pixels`; None when simplejpeg finds the file damaged or cannot decode its kind.
    """
    left, top, right, bottom = box
    encoded, first = keep_rows(encoded, found, top, bottom)
    # Without restart markers the bytes of the rows below stay in the file, which libjpeg would take for damage.
    strict = found.restarts or bottom == found.height
    try:
        rows = simplejpeg.decode_jpeg(encoded, 'RGBX', strict=strict)
    except ValueError:
        return None
    return rows.view(np.uint32)[top - first : bottom - first, left:right, 0]


def keep_rows(encoded: bytes, found: Layout, top: int, bottom: int) -> tuple[bytes, int]:
    """Return a JPEG file that holds at least the pixel rows [top, bottom) of another one.

    Args:
      encoded: the file.
      found: its layout.
      top: first row needed.
      bottom: end of the rows needed.

    Returns:
      (encoded, first): the smaller file, and which row of the original its first row is.
    """
    # One pixel row more at either side, because the upsampling of colour looks at neighbouring rows.
    first = max(0, top - 1) // found.row if found.restarts else 0
    last = min(-(-found.height // found.row), bottom // found.row + 1)
    data = encoded[found.data_at :]
    if first or (found.restarts and last * found.row < found.height):
        ends = [match.start() for match in _RESTART.finditer(data)]
        if len(ends) != -(-found.height // found.row) - 1:
            first = 0  # markers are missing: keep all bytes
        else:
            data = _join_rows(data, [0, *(end + 2 for end in ends)], [*ends, len(data) - 2], range(first, last))
    height = min(found.height, last * found.row) - first * found.row
    at = found.height_at
    return encoded[:at] + height.to_bytes(2) + encoded[at + 2 : found.data_at] + data, first * found.row


def _join_rows(data: bytes, starts: list[int], ends: list[int], rows: range) -> bytes:
    """Return the coded rows of blocks, with restart markers that count from 0 again."""
    pieces = []
    for number, row in enumerate(rows):
        pieces += (data[starts[row] : ends[row]], _RESTARTS[number % 8])
    pieces[-1] = END
    return b''.join(pieces)
