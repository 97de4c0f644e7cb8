"""Cut a JPEG file down to the rows that a crop needs, without decoding it.

Half of the work of decoding is in the bytes, so rows below a crop are dropped by writing a smaller height into the
header, and rows above it by leaving out their bytes where restart markers separate the rows, as in prepared records.
The pixels that remain are those of the whole file, bit for bit.
"""

import dataclasses
import re

BASELINE, PROGRESSIVE_AND_OTHERS = 0xC0, {*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC}
RESTART_INTERVAL, SCAN = 0xDD, 0xDA
END = b'\xff\xd9'
_RESTART = re.compile(rb'\xff[\xd0-\xd7]')
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]


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
    """Read the layout of a JPEG file with one baseline scan; None for every other file, or one without its end."""
    if encoded[:2] != b'\xff\xd8' or encoded[-2:] != END:
        return None
    place, interval, frame = 2, 0, None
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker, body = encoded[place + 1], place + 4
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
        if marker in PROGRESSIVE_AND_OTHERS:
            return None
        if marker == BASELINE:
            frame = body
        elif marker == RESTART_INTERVAL:
            interval = int.from_bytes(encoded[body : body + 2])
        elif marker == SCAN:
            if frame is None or encoded[body] != encoded[frame + 5]:  # a scan of some components only
                return None
            return _layout(encoded, frame, interval, place)
    return None


def _layout(encoded: bytes, frame: int, interval: int, data_at: int) -> Layout | None:
    height, width = (int.from_bytes(encoded[at : at + 2]) for at in (frame + 1, frame + 3))
    components = encoded[frame + 5]
    sampling = [encoded[frame + 7 + 3 * number] for number in range(components)]
    if components == 1:
        sampling = [0x11]  # a single component is stored block by block, whatever its sampling says
    across, down = 8 * max(byte >> 4 for byte in sampling), 8 * max(byte & 15 for byte in sampling)
    if not height or not across or not down:
        return None
    restarts = interval == -(-width // across)
    return Layout(width, height, frame + 1, down, restarts, data_at)


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
