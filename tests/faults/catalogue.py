"""All cases, from the files beside this one."""

from __future__ import annotations


def collect() -> None:
    """Fill `harness.CASES`."""
    from . import command, damage, disks, hostile, kills, outside, power, processes, ranks, records, writers

    for part in (kills, power, damage, disks, processes, hostile, command, records, writers, outside, ranks):
        part.catalogue()


def warm_up() -> None:
    """Import and set up in this process all that a forked one will need."""
    from . import command, harness

    harness.warm_up()
    command.warm_up()
