"""Adaptation: exact statistics of the last BatchNorm, embeddings, and the classifier on those, in one pass.

May import training, evaluation and what they may import.
"""
