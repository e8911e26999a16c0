"""All cases, from the files beside this one."""

from __future__ import annotations


def collect() -> None:
    """Fill `harness.CASES`."""
    from . import damage, disks, hostile, kills, power, processes

    for part in (kills, power, damage, disks, processes, hostile):
        part.catalogue()
