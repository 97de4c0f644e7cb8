"""From the bytes of an image file to RGB pixels, all of them or those of a crop."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fixres_jax.core.errors import RunError
from fixres_jax.data import jpeg

MIN_SIDE = 4  # pixels; what is thinner is a spacer or a broken file, and would grow a thousandfold

Box = tuple[int, int, int, int]


def decode(encoded: bytes, name: str, index: int) -> Image.Image:
    """Decode an image of any format and mode into RGB.

    Greyscale is repeated, CMYK and palettes are converted, alpha is dropped, and 16-bit values keep their
    high byte. The orientation tag is ignored, as in torchvision.

    Args:
      encoded: the file's bytes.
      name: path or name, for the message.
      index: number of the record, for the message.

    Raises:
      RunError: when the bytes are no image, or a broken, truncated, absurdly large or absurdly thin one.
    """
    return EncodedImage(encoded, name, index).decode()


class EncodedImage:
    """An image that decodes no more than is asked for.

    Attributes:
      size: (width, height) in pixels.
    """

    def __init__(self, encoded: bytes, name: str, index: int):
        """Read the header; the arguments and errors are those of `decode`."""
        self._encoded, self._name, self._index = encoded, name, index
        self._layout = jpeg.layout(encoded)
        with self._named_errors():
            if self._layout:
                self.size = self._layout.width, self._layout.height
            else:
                self.size = Image.open(io.BytesIO(encoded)).size
            if min(self.size) < MIN_SIDE:
                shape = 'x'.join(map(str, self.size))
                raise ValueError(f'it has {shape} pixels, at least {MIN_SIDE} a side are expected')

    def decode(self) -> Image.Image:
        """Return the whole image in RGB."""
        with self._named_errors():
            image = Image.open(io.BytesIO(self._encoded))
            image.load()
            return _to_rgb(image)

    def crop(self, box: Box, at_least: int | None = None) -> Image.Image:
        """Return the pixels of a crop in RGB.

        Args:
          box: (left, top, right, bottom) in pixels.
          at_least: None for the pixels of the whole image's crop, bit for bit; or a side in pixels: a JPEG may
            then be decoded at a half, a quarter or an eighth of its size, as long as the crop keeps that side.
        """
        left, top, right, bottom = box
        encoded, first = self._encoded, 0
        if self._layout and self.size[0] * self.size[1] < Image.MAX_IMAGE_PIXELS:
            encoded, first = jpeg.keep_rows(encoded, self._layout, top, bottom)
        with self._named_errors():
            image = Image.open(io.BytesIO(encoded))
            divisor = 1
            if at_least and image.format == 'JPEG':
                shrink = min(right - left, bottom - top) / at_least
                divisor = next(divisor for divisor in (8, 4, 2, 1) if divisor <= shrink or divisor == 1)
                image.draft(None, (image.width // divisor, image.height // divisor))
            image.load()
            edges = (left, top - first, right, bottom - first)
            return _to_rgb(image.crop(tuple(round(edge / divisor) for edge in edges)))

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Pillow's plugins raise some ten kinds of exception on bad bytes
            reason = ' '.join(str(error).split()).rstrip('.')
            if not self._encoded:
                reason = 'the file is empty'
            elif isinstance(error, Image.UnidentifiedImageError):
                reason = 'it is in no image format that Pillow knows'
            raise RunError(
                f'Image {self._index}, {self._name}, cannot be decoded: {reason}. '
                'Repair the file or take it out of the data set.'
            ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'RGB':
        return image
    if image.mode.startswith('I'):  # Pillow would clip 16-bit values at 255
        high = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert('RGB')
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')  # Pillow warns on the direct way
    return image.convert('RGB')
