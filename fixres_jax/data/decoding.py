"""From the bytes of an image file to RGB pixels, all of them or those of a crop.

Pillow decodes, or `jpeg` what it can, with the same pixels.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fixres_jax.core.errors import RunError
from fixres_jax.data import jpeg, pixels

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
        self._pixels = None
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

    def load(self) -> None:
        """Decode the whole image, for all crops to come."""
        self._pixels = self.crop((0, 0, *self.size))

    def crop(self, box: Box) -> np.ndarray:
        """Return the pixels of a crop, bit for bit those of the whole image: uint32[H, W], as in `pixels`.

        Args:
          box: (left, top, right, bottom) in pixels.
        """
        left, top, right, bottom = box
        if self._pixels is not None:
            return self._pixels[top:bottom, left:right]
        cropped = None
        if self._layout and self.size[0] * self.size[1] < Image.MAX_IMAGE_PIXELS:
            cropped = jpeg.crop(self._encoded, self._layout, box)
        return pixels.of_image(self.decode().crop(box)) if cropped is None else cropped

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
