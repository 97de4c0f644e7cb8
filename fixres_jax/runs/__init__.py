"""Runs: the config as settings, what a task does, the phases of a run and the folder that they leave.

May import every room; only the commands import this one.
"""
