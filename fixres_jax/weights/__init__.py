"""Weights: networks as values, on disk and in files of torch.

May import core, models, data and machines.
"""
