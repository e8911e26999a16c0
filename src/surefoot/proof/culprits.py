"""Why two runs differ, where it can be found: more runs, some under a watch, each with one thing held."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import RunFailed, first_line
from . import watch
from .job import KILLED, Job

_MOST = 6
_RESIZED = (
    "two untouched runs in as many processes are equal, so their number decides. A script has to fix micro_batches "
    "(RunOptions(micro_batches=4)); else look for what draws from Python's or NumPy's generators in a forward pass, "
    "or reads RANK or WORLD_SIZE"
)
# What is held, its name, and what it means when two runs are then equal.
_PROBES = (
    (
        {"PYTHONHASHSEED": "0"},
        "the order of sets",
        "under PYTHONHASHSEED=0 two runs are equal: the order of a set, or hash(), decides something; sort what comes "
        "out of a set: sorted(...)",
    ),
    (
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        "one thread",
        "with one thread (OMP_NUM_THREADS=1) two runs are equal: with more, sums are added in another order each time; "
        "see torch.use_deterministic_algorithms(True)",
    ),
)


def find_culprits(
    job: Job,
    folder: Path,
    difference: Callable[[Path, Path], str | None],
    say: Callable[[str], None],
    *,
    resized: bool = False,
) -> list[str]:
    """What is behind a difference between an untouched and a killed run, in lines; runs are made in `folder`.

    First two untouched runs: where they differ, no kill is to blame, and what is drawn without a seed is named. Else
    variables of the user's code that have another value after a resume than they had at that step; or, with `resized`,
    where the difference is one between numbers of processes, what usually depends on them.
    """
    say("looking for the reason: two more runs, untouched")
    logs = {name: folder / f"{name}.jsonl" for name in ("one", "other", "killed")}
    try:
        for name in ("one", "other"):
            _watched(job, logs[name], 0).finish(folder / name, "a run that looks for the reason")
        if difference(folder / "one", folder / "other") is not None:
            return _of_chance(job, folder, logs["one"], difference, say)
        if resized:
            return [_RESIZED]
        say("untouched runs are equal: one more, killed after its first checkpoint")
        if not _killed_once(job, logs["killed"], folder / "killed"):
            return ["no reason was found: untouched runs are equal, and it saves only once, or is no Python program"]
    except RunFailed as error:
        return [f"no reason was found: {first_line(error)}"]
    lost = _lost_variables(*(_read(log) for log in logs.values()))
    return lost or [
        "untouched runs are equal, so a part of the run is in no checkpoint; it was not found by its name. Usual ones: "
        "a counter, a list or an iterator that the loop changes, a generator of its own. Give it to the Checkpointer"
    ]


def _watched(job: Job, log: Path, end_at_save: int) -> Job:
    """The job under the watch, where it is a Python program; else as it is."""
    if not job.is_python:
        return job
    return job.under(python=(watch.__file__, str(log), str(end_at_save)))


def _of_chance(
    job: Job, folder: Path, log: Path, difference: Callable[[Path, Path], str | None], say: Callable[[str], None]
) -> list[str]:
    lines = ["it gives another result each time, without any kill"]
    for number, (environment, name, meaning) in enumerate(_PROBES):
        say(f"untouched runs differ: twice more, with {name} held")
        pair = [folder / f"probe-{number}-{turn}" for turn in (0, 1)]
        for home in pair:
            job.under(**environment).finish(home, f"a run with {name} held")
        if difference(*pair) is None:
            return [*lines, meaning]
    sources = [record for record in _read(log) if "source" in record]
    sources.sort(key=lambda record: record["source"].startswith("time."))
    lines += [f"{record['at']}: {record['source']}".removeprefix(": ") for record in sources[:_MOST]]
    if not sources:
        lines.append("no line was found that draws without a seed; see the generators, clocks and threads that it uses")
    return lines


def _killed_once(job: Job, log: Path, home: Path) -> bool:
    """A new run, ended by SIGKILL at its second save, so that the first is complete, and resumed to its end.

    False where it had no second save, or is no Python program.
    """
    with _watched(job, log, 2).start(home) as running:
        running.wait()
        # Of several processes the others end as well, and torchrun with an error.
        if running.code != KILLED and (running.code == 0 or job.processes == 1):
            running.require_success("a run that looks for the reason")
            return False
    _watched(job, log, 0).finish(home, "a run that looks for the reason")
    return True


def _read(log: Path) -> list[dict[str, Any]]:
    """The records of a watch; a last line that a kill cut off is left out."""
    records = []
    if log.exists():
        for line in log.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def _lost_variables(one: list[dict[str, Any]], other: list[dict[str, Any]], killed: list[dict[str, Any]]) -> list[str]:
    """Variables that a resume has not put back: another value than at that save, and still so at the next one."""
    resumes = [number for number, record in enumerate(killed) if record.get("event") == "resume"]
    if not resumes:
        return []
    resumed = killed[resumes[-1]]
    after = [record for record in killed[resumes[-1] :] if record.get("event") == "save"]
    saves: list[dict[int, dict[str, Any]]] = [
        {record["step"]: record["values"] for record in records if record.get("event") == "save"}
        for records in (one, other)
    ]
    names = {}
    for name, (digest, shown) in resumed["values"].items():
        before = [values.get(resumed["step"], {}).get(name) for values in saves]
        if before[0] is None or before[0] != before[1] or before[0][0] == digest:
            continue  # not there, different by itself (a clock), or as it was
        later = [record for record in after if name in record["values"]]
        if any(record["values"][name] != saves[0].get(record["step"], {}).get(name) for record in later) or not after:
            names[name] = (before[0][1], shown)
    return [
        f"{name}: {then} at step {resumed['step']:,}, {now} after a resume there: it is in no checkpoint; give it to "
        "the Checkpointer, or compute it from what is saved"
        for name, (then, now) in sorted(names.items())[:_MOST]
    ]
