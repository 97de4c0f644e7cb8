"""Evaluation: what networks get right, what they say of every image, and how sure one may be of it.

May import weights and what weights may import.
"""
