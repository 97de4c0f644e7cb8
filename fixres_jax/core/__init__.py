"""Core: what knows nothing of images or networks: errors, files, trees, losses, sections of the config, figures.

Imports no other room.
"""
