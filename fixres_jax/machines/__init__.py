"""Machines: devices and processes: how arrays lie on them, how batches reach them, how a run is told to stop.

May import core and data.
"""

from fixres_jax.machines import libtpu

libtpu.leave_out()  # Here, as everything that uses devices comes by, and nothing has used them yet.
