"""Freeze crops drawn by TensorFlow: `python tests/goldens/make_tensorflow_crops.py`.

Needs TensorFlow; the tests that read tensorflow_crops.json do not.
"""

import json
import pathlib

import numpy as np
from make_transforms import NUM_BOXES, SIZES, histograms


def main() -> None:
    import tensorflow as tf

    golden = {}
    for shape in ('4:3', 'square', '3:4'):
        width, height = SIZES[shape]

        def draw(seed, width=width, height=height):
            begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
                (height, width, 3),
                tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
                seed=tf.stack([seed, 0]),
                min_object_covered=0.1,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                max_attempts=10,
            )
            return tf.stack([begin[1], begin[0], size[1], size[0]])

        boxes = tf.function(lambda: tf.map_fn(draw, tf.range(NUM_BOXES)))().numpy()  # noqa: B023
        # The whole image says that ten tries failed; pipelines then take the central square.
        boxes = boxes[(boxes[:, 2] < width) | (boxes[:, 3] < height)]
        golden[shape] = histograms(np.array(boxes), width, height)
    target = pathlib.Path(__file__).with_name('tensorflow_crops.json')
    target.write_text(json.dumps(golden) + '\n')


if __name__ == '__main__':
    main()
