"""What tests give `fit`: options given flat, settings that nothing is measured for, a progress that is listened to."""

from dataclasses import fields

from surefoot import RunOptions, StepOptions
from surefoot.tracking import Progress

FIXED = {"threads": 1, "compile": "none", "onednn": True, "memory_format": "contiguous", "optimizer_impl": "default"}


class Heard(Progress):
    """Remembers its messages."""

    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def fit_arguments(**flat):
    """Those of the update in `step=`, those of the run in `run=`, the rest as they are."""
    arguments = dict(flat)
    for name, options in (("step", StepOptions), ("run", RunOptions)):
        names = {field.name for field in fields(options)}
        arguments[name] = options(**{key: arguments.pop(key) for key in list(arguments) if key in names})
    return arguments
