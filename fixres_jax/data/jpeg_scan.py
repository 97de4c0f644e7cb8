"""The compiled parts of `jpeg`: coded bits to coefficients, coefficients to samples, samples to pixels.

The arithmetic is that of libjpeg, which Pillow uses: the accurate integer transform, triangular ("fancy") upsampling of
colour, and its conversion in fixed point.
"""

import numpy as np

from fixres_jax.data.pixels import compiled

U64, I32 = np.uint64, np.int32  # numba would compute in 64 bits with a sign, or in floating point
_LOOK = 10  # bits that codes are looked up by
_TO_LOOK = U64(64 - _LOOK)
_MAX_BITS = (11, 10)  # of a DC and an AC coefficient
_LENGTH, _FORWARD, _SIZE = 63, 127, 15  # masks of the three parts of an entry: see `_entry`
_END_OF_BLOCK = 100  # coefficients that its code goes forward: more than there are
_ONES, _HIGHS = U64(0x0101010101010101), U64(0x8080808080808080)  # in each byte
_LANES = 16  # blocks transformed together: what a vector register holds


def _diagonal(place: int) -> tuple[int, int]:
    row, column = divmod(place, 8)
    return row + column, row if (row + column) % 2 else column


_ZIGZAG = np.array(sorted(range(64), key=_diagonal))  # where the coefficients of a file lie in their block


@compiled
def decode(data, words, place, interval, across, columns, rows, sampling, quantizers, codes):
    """Decode the units of a scan that lie in given rows and columns.

    Args:
      data: uint8[N], the file, which ends with a marker, and 7 bytes more.
      words: uint64[N - 7], the 8 bytes from each place on.
      place: where the scan begins.
      interval: units between two restart markers; 0 for none.
      across: units in a row.
      columns, rows: (first, end) of the units wanted.
      sampling: blocks of luminance (across, down) in a unit.
      quantizers, codes: see `jpeg.Layout`.

    Returns:
      uint8[3, H, W], the samples of luminance and of two colours, which fill a part where they are subsampled, or of
      luminance alone; of length 0 when the file is damaged.
    """
    nothing = np.empty((0, 0, 0), np.uint8)
    entries, limits, offsets, valid = _tables(codes)
    parts = _parts(sampling, len(quantizers))
    num_columns, num_rows, num_lines = columns[1] - columns[0], rows[1] - rows[0], parts[-1, 1] + 1
    planes = np.empty((3, 8 * sampling[1] * num_rows, 8 * sampling[0] * num_columns), np.uint8)
    blocks = np.zeros((num_lines, 64, sampling[0] * num_columns), np.int16)  # of a row of units
    last = np.zeros(3, np.int64)  # DC coefficient of each component
    bits, count, missing, until_restart, restarts = U64(0), 0, 0, interval, 0
    skipped = rows[0] if interval == across else 0  # restart markers separate the rows
    if skipped:
        place, until_restart, restarts = _find_restart(data, place, skipped), 0, skipped - 1
    # No calls with arrays in these loops: counting the references to them would take more time than all the rest.
    for row in range(skipped - rows[0], num_rows):
        for column in range(-columns[0], across - columns[0]):
            if interval and not until_restart:
                bits, count, place, missing = _refill(data, words, bits, count, place, missing)
                valid &= missing <= count and data[place] == 0xFF and data[place + 1] == 0xD0 + restarts % 8
                bits, count, place, missing = U64(0), 0, place + 2, 0
                until_restart, restarts = interval, restarts + 1
                last[:] = 0
            until_restart -= 1
            if not valid:
                return nothing
            wanted = row >= 0 and 0 <= column < num_columns
            for number in range(len(parts)):
                component, line, at = parts[number, 0], parts[number, 1], column * parts[number, 3] + parts[number, 2]
                bits, count, place, missing = _refill(data, words, bits, count, place, missing)
                table = 2 * component
                entry = np.int64(entries[table, bits >> _TO_LOOK])
                if not entry:
                    entry = _long_code(bits, table, limits, offsets, codes)
                    valid &= entry != 0
                last[component] += _value(bits, entry)
                if wanted:
                    blocks[line, 0, at] = last[component] * quantizers[component, 0]
                bits, count = bits << U64(entry & _LENGTH), count - (entry & _LENGTH)
                k, table, full = 1, table + 1, True
                while k < 64:
                    full = not full
                    if full:  # every other time: a branch that depended on the count would be mispredicted
                        bits, count, place, missing = _refill(data, words, bits, count, place, missing)
                    entry = np.int64(entries[table, bits >> _TO_LOOK])
                    if not entry:
                        entry = _long_code(bits, table, limits, offsets, codes)
                        valid &= entry != 0
                    k += (entry >> 6) & _FORWARD
                    if wanted and k < 64:
                        blocks[line, _ZIGZAG[k], at] = _value(bits, entry) * quantizers[component, k]
                    bits, count = bits << U64(entry & _LENGTH), count - (entry & _LENGTH)
                    k += 1
                valid &= k == 64 or k > _END_OF_BLOCK
        if row >= 0:
            for number in range(len(parts)):
                component, line = parts[number, 0], parts[number, 1]
                if not parts[number, 2]:  # the first block of its line
                    top = 8 * (row * sampling[1] + line if component == 0 else row)
                    _transform(blocks[line], num_columns * parts[number, 3], planes[component, top : top + 8])
            blocks[:] = 0
    return planes if valid and missing <= count else nothing


@compiled
def _parts(sampling, components):
    """Return int64[N, 4], of each block of a unit: component, line, place in the line, blocks in the line."""
    parts = np.zeros((sampling[0] * sampling[1] + components - 1, 4), np.int64)
    for number in range(len(parts)):
        color = number - sampling[0] * sampling[1] + 1
        if color > 0:
            parts[number] = color, sampling[1] + color - 1, 0, 1
        else:
            parts[number] = 0, number // sampling[0], number % sampling[0], sampling[0]
    return parts


@compiled
def _find_restart(data, place, number):
    """Return where the number-th restart marker stands; 0, where none is, for a file with fewer."""
    for at in range(place, len(data) - 1):
        if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7:
            number -= 1
            if not number:
                return at
    return 0


@compiled
def _tables(codes):
    """Make of Huffman codes what `decode` looks up, and say whether they are valid.

    Returns:
      (entries, limits, offsets): int32[C, 2**_LOOK], the entry of every code of up to _LOOK bits; int64[C, 17], the
      first 16 bits that no code of so many bits begins with; and what to add to a code to get its symbol's place.
    """
    entries = np.zeros((len(codes), 1 << _LOOK), np.int32)
    limits, offsets = np.zeros((len(codes), 17), np.int64), np.zeros((len(codes), 17), np.int64)
    for table in range(len(codes)):
        code = symbol = 0
        for length in range(1, 17):
            count = np.int64(codes[table, length - 1])
            if code + count > 1 << length or symbol + count > 256:
                return entries, limits, offsets, False
            offsets[table, length] = 16 + symbol - code
            for number in range(symbol, symbol + count):
                entry = _entry(length, np.int64(codes[table, 16 + number]), table % 2)
                if (entry >> 13) > _MAX_BITS[table % 2]:
                    return entries, limits, offsets, False
                if length <= _LOOK:
                    entries[table, code << (_LOOK - length) : (code + 1) << (_LOOK - length)] = entry
                code += 1
            symbol += count
            limits[table, length] = code << (16 - length)
            code <<= 1
    return entries, limits, offsets, True


@compiled
def _entry(length, symbol, is_ac):
    """Pack what a code means: its length with the bits of its value, the zeros before it, the bits of its value."""
    size = symbol & 15 if is_ac else symbol
    forward = (symbol >> 4 if size or symbol == 0xF0 else _END_OF_BLOCK) if is_ac else 0
    return (length + size) | (forward << 6) | (size << 13)


@compiled
def _refill(data, words, bits, count, place, missing):
    """Fill a reader: (the next bits of the scan, how many they are, place in the file, bits added after the end).

    It holds 56 bits or more then, enough for two coefficients.
    """
    word = words[place]
    if not word & ~(word + _ONES) & _HIGHS:  # no byte is 0xFF
        return bits | (_reversed(word) >> U64(count)), count | 56, place + ((63 - count) >> 3), missing
    while count <= 56:
        byte = data[place]
        if byte != 0xFF:
            place += 1
        elif data[place + 1] == 0:
            place += 2
        else:  # a marker: zeros follow
            byte = np.uint8(0)
            missing += 8
        bits |= U64(byte) << U64(56 - count)
        count += 8
    return bits, count, place, missing


@compiled
def _reversed(word):
    """Return a word with its bytes in reverse order."""
    word = ((word & U64(0x00FF00FF00FF00FF)) << U64(8)) | ((word >> U64(8)) & U64(0x00FF00FF00FF00FF))
    word = ((word & U64(0x0000FFFF0000FFFF)) << U64(16)) | ((word >> U64(16)) & U64(0x0000FFFF0000FFFF))
    return (word << U64(32)) | (word >> U64(32))


@compiled
def _long_code(bits, table, limits, offsets, codes):
    """Return the entry of a code of more than _LOOK bits; 0 when there is none."""
    bits = np.int64(bits >> U64(48))
    for length in range(_LOOK + 1, 17):
        if bits < limits[table, length]:
            place = offsets[table, length] + (bits >> (16 - length))
            return _entry(length, np.int64(codes[table, place]), table % 2)
    return 0


@compiled
def _value(bits, entry):
    """Return the value that follows a code."""
    size = (entry >> 13) & _SIZE
    value = np.int64(bits << U64((entry & _LENGTH) - size) >> U64(1) >> U64(63 - size))
    return value - ((1 << size) - 1 if value < (1 << size) >> 1 else 0)


@compiled
def _transform(blocks, number, samples):
    """Transform the coefficients int16[64, number] of blocks side by side to samples uint8[8, 8 * number]."""
    half = np.zeros((64, _LANES), np.int32)
    result = np.empty((8, 8, _LANES), np.uint8)
    for first in range(0, number, _LANES):
        count = min(_LANES, number - first)
        for x in range(8):
            for lane in range(count):
                at = first + lane
                (
                    half[x, lane], half[x + 8, lane], half[x + 16, lane], half[x + 24, lane],
                    half[x + 32, lane], half[x + 40, lane], half[x + 48, lane], half[x + 56, lane],
                ) = _transform_8(
                    blocks[x, at], blocks[x + 8, at], blocks[x + 16, at], blocks[x + 24, at],
                    blocks[x + 32, at], blocks[x + 40, at], blocks[x + 48, at], blocks[x + 56, at],
                    I32(11), I32(1 << 10),
                )  # fmt: skip
        for y in range(8):
            x = 8 * y
            for lane in range(_LANES):
                a, b, c, d, e, f, g, h = _transform_8(
                    half[x, lane], half[x + 1, lane], half[x + 2, lane], half[x + 3, lane],
                    half[x + 4, lane], half[x + 5, lane], half[x + 6, lane], half[x + 7, lane],
                    I32(18), I32((128 << 18) + (1 << 17)),
                )  # fmt: skip
                result[y, 0, lane], result[y, 1, lane], result[y, 2, lane] = _clip(a), _clip(b), _clip(c)
                result[y, 3, lane], result[y, 4, lane], result[y, 5, lane] = _clip(d), _clip(e), _clip(f)
                result[y, 6, lane], result[y, 7, lane] = _clip(g), _clip(h)
        for y in range(8):
            for lane in range(count):
                for x in range(8):
                    samples[y, 8 * (first + lane) + x] = result[y, x, lane]


@compiled
def _transform_8(x0, x1, x2, x3, x4, x5, x6, x7, shift, rounding):
    """Transform eight coefficients as libjpeg does: Loeffler's algorithm with weights of 13 bits."""
    x0, x1, x2, x3, x4, x5, x6, x7 = I32(x0), I32(x1), I32(x2), I32(x3), I32(x4), I32(x5), I32(x6), I32(x7)
    # Even: two rotations.
    turn = I32((x2 + x6) * I32(4433))  # 0.541196100
    a, b = I32(turn - x6 * I32(15137)), I32(turn + x2 * I32(6270))  # 1.847759065, 0.765366865
    c, d = I32(I32(x0 + x4) << I32(13)) + rounding, I32(I32(x0 - x4) << I32(13)) + rounding
    even_0, even_1, even_2, even_3 = I32(c + b), I32(d + a), I32(d - a), I32(c - b)
    # Odd.
    turn = I32(I32(x1 + x3 + x5 + x7) * I32(9633))  # 1.175875602
    a, b = I32(I32(x7 + x1) * I32(-7373)), I32(I32(x5 + x3) * I32(-20995))  # 0.899976223, 2.562915447
    c, d = I32(I32(x7 + x3) * I32(-16069) + turn), I32(I32(x5 + x1) * I32(-3196) + turn)  # 1.961570560, 0.390180644
    odd_3, odd_2 = I32(x7 * I32(2446) + a + c), I32(x5 * I32(16819) + b + d)  # 0.298631336, 2.053119869
    odd_1, odd_0 = I32(x3 * I32(25172) + b + c), I32(x1 * I32(12299) + a + d)  # 3.072711026, 1.501321110
    return (
        I32(even_0 + odd_0) >> shift, I32(even_1 + odd_1) >> shift,
        I32(even_2 + odd_2) >> shift, I32(even_3 + odd_3) >> shift,
        I32(even_3 - odd_3) >> shift, I32(even_2 - odd_2) >> shift,
        I32(even_1 - odd_1) >> shift, I32(even_0 - odd_0) >> shift,
    )  # fmt: skip


@compiled
def _clip(value):
    return min(max(value, I32(0)), I32(255))


@compiled
def to_pixels(planes, is_grey, sampling, colored, box):
    """Convert samples to pixels.

    Args:
      planes: from `decode`.
      is_grey: whether there is luminance only.
      sampling: samples of luminance (across, down) for one of colour.
      colored: (width, height) of the planes of colour as far as the image goes.
      box: (left, top, right, bottom) of the pixels wanted.

    Returns:
      uint32[H, W], as in `pixels`.
    """
    left, top, right, bottom = box
    pixels = np.empty((bottom - top, right - left), np.uint32)
    if is_grey:
        for y in range(len(pixels)):
            luminance = planes[0, top + y, left:right]
            for x in range(len(luminance)):
                pixels[y, x] = np.uint32(luminance[x]) * np.uint32(0x010101)
        return pixels
    if sampling[0] == 2:
        blue = _upsample(planes[1], sampling[1], colored, box)
        red = _upsample(planes[2], sampling[1], colored, box)
        shift = left % 2
    else:
        blue, red, shift = planes[1, top:], planes[2, top:], left
    for y in range(len(pixels)):
        _to_rgb(planes[0, top + y, left:right], blue[y, shift:], red[y, shift:], pixels[y])
    return pixels


@compiled
def _upsample(plane, down, size, box):
    """Upsample a colour: three quarters of the nearer sample, one of the other, across and, if subsampled so, down.

    Args:
      plane: uint8[H, W].
      down: 2 to upsample rows, too; otherwise 1.
      size: (width, height) of the plane as far as the image goes.
      box: what to upsample, in pixels.

    Returns:
      uint8[rows of the box, columns of the box from an even one on, to an even number].
    """
    left, top, right, bottom = box
    first, count = left // 2, (right + 1) // 2 - left // 2
    result = np.empty((bottom - top, 2 * count), np.uint8)
    begin, end = max(first - 1, 0), min(first + count + 1, size[0])
    sums = np.empty(count + 2, np.int32)  # of two rows, with a neighbour at either side
    inner = sums[1 - first + begin :]
    even, odd = (I32(8), I32(7)) if down == 2 else (I32(4), I32(8))  # libjpeg rounds up and down by turns
    for y in range(top, bottom):
        near = far = y
        if down == 2:
            near = y // 2
            far = min(max(near + (1 if y % 2 else -1), 0), size[1] - 1)
        for x in range(end - begin):
            inner[x] = I32(I32(3) * I32(plane[near, begin + x])) + I32(plane[far, begin + x])
        if begin == first:
            sums[0] = sums[1]
        if end == first + count:
            sums[count + 1] = sums[count]
        for x in range(count):
            result[y - top, 2 * x] = I32(I32(I32(3) * sums[x + 1]) + sums[x] + even) >> I32(4)
            result[y - top, 2 * x + 1] = I32(I32(I32(3) * sums[x + 1]) + sums[x + 2] + odd) >> I32(4)
    return result


@compiled
def _to_rgb(luminance, blue, red, pixels):
    half = I32(1 << 15)
    for x in range(len(pixels)):
        y, b, r = I32(luminance[x]), I32(I32(blue[x]) - I32(128)), I32(I32(red[x]) - I32(128))
        red_ = _clip(I32(y + (I32(I32(91881) * r + half) >> I32(16))))  # 1.40200
        green = _clip(I32(y + (I32(I32(-22554) * b - I32(46802) * r + half) >> I32(16))))  # 0.34414, 0.71414
        blue_ = _clip(I32(y + (I32(I32(116130) * b + half) >> I32(16))))  # 1.77200
        pixels[x] = np.uint32(red_) | (np.uint32(green) << np.uint32(8)) | (np.uint32(blue_) << np.uint32(16))
