"""All cases, from the files beside this one."""

from __future__ import annotations


def collect() -> None:
    """Fill `harness.CASES`."""
    from . import kills

    for part in (kills,):
        part.catalogue()
