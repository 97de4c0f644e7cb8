"""Data: images from where they lie to batches of uint8: sources, transforms, pixels, the pipeline, preparation.

Never imports jax, as worker processes import it. May import core.
"""
