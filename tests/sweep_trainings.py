"""Sweeps for tests: their files, stand-ins for the trainings' processes, and processes that die before a write."""

from __future__ import annotations

import json
from pathlib import Path

from run_directories import make_run

GRID = """
recipe: quickstart
overrides: [epochs=2]
sampler: grid
search:
  optimizer.lr: [0.01, 0.1]
  data.batch_size: {low: 16, high: 32, step: 16}
"""
RANDOM = "recipe: quickstart\nsampler: random\ntrials: 5\nsearch: {optimizer.lr: {low: 0.001, high: 0.1, log: true}}\n"


class Trainings:
    """Stands in for the processes: each training takes two looks, and its accuracy is its learning rate."""

    def __init__(self, curve=None, code=0):
        self.begun: list[tuple[Path, list[str]]] = []
        self.ended: list[Path] = []
        self.curve = curve or (lambda settings: [settings["optimizer.lr"] / 2, settings["optimizer.lr"]])
        self.code = code

    def __call__(self, arguments, log, directory):
        self.begun.append((directory, arguments))
        return Training(self, arguments, directory)


class Training:
    def __init__(self, all_of_them: Trainings, arguments, directory: Path):
        self.all, self.directory, self.looks = all_of_them, directory, 0
        self.settings = {k: json.loads(v) for k, v in (a.split("=") for a in arguments[1:]) if k != "model"}
        self.stopped = False

    def poll(self):
        self.looks += 1
        values = self.all.curve(self.settings)
        if self.looks == 1:
            make_run(self.directory, values[:1], status="interrupted", settings=self.settings)
            return None
        if self.stopped:
            return 143
        if self.all.code == 0:
            make_run(self.directory, values, settings=self.settings)
            self.all.ended.append(self.directory)
        return self.all.code

    def terminate(self):
        self.stopped = True

    def wait(self, timeout=None):
        return 143


class Killed(BaseException):
    """What a kill is to code that may not answer it."""


def lives(monkeypatch, budgets):
    """Let the process die before one of its writes to the storage, life after life."""
    from optuna.storages import RDBStorage

    left = [0]

    def dying(method):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return method(*args, **kwargs)

        return call

    for name in (
        "create_new_trial",
        "set_trial_param",
        "set_trial_state_values",
        "set_trial_intermediate_value",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "set_study_user_attr",
    ):
        monkeypatch.setattr(RDBStorage, name, dying(getattr(RDBStorage, name)))
    for budget in budgets:
        left[0] = budget
        yield budget
