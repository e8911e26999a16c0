"""A finding: one likely mistake that the lint of a first batch, or of a schedule, tells."""

from __future__ import annotations

from dataclasses import dataclass

from .text import typed


@dataclass(frozen=True)
class Finding:
    """One likely mistake, by `name`: what was seen and why it is wrong (`message`), and what to do (`fix`).

    `severity` is ``"error"`` where training cannot go on or is undefined, else ``"warning"``.
    """

    name: str
    severity: str
    message: str
    fix: str

    def __post_init__(self) -> None:
        assert self.severity in ("error", "warning"), self.severity

    @property
    def code(self) -> str:
        """Its name, which `surefoot explain` takes."""
        return self.name

    @property
    def doc(self) -> str:
        """The command that explains it."""
        return typed("surefoot", "explain", self.name)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}. Fix: {self.fix} (`{self.doc}` tells more)"
