"""Train, adapt and test image classifiers at the resolutions that suit them (FixRes) in JAX."""

__version__ = '0.2.0'
