"""Machines: devices and processes: how arrays lie on them, how batches reach them, how a run is told to stop.

May import core and data.
"""
