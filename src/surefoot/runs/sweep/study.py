"""The trials of a sweep in Optuna's storage: each is claimed by one process at a time, and told once.

A trial begins as running and with its directory's name, in one step of the storage: none is ever nobody's.
Within a directory, a running trial whose lock nobody holds was left by a killed process: the next one goes on with it.
The locks lie in the directory and end with their process. Machines with directories of their own share the storage
alone: it numbers the trials, and the first `trials` of them are the sweep, so that two that begin the last one at once
do not both train.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import files
from ...errors import RunFailed, UsageError
from ...registry import package
from ..listing import SWEEP, SWEPT
from .settings import Between, Plan, Values

if TYPE_CHECKING:
    import optuna

PRIVATE = SWEEP  # hidden, so that `surefoot runs` passes over it in silence
_HOME, _PLAN, _RECIPE = "surefoot:home", "surefoot:plan", "surefoot:recipe"
_MOST_TRIES, _PAUSE_S = 10, 0.3
INSTALL = "pip install 'surefoot[sweep]' (or: pip install optuna)"


class Study:
    """The trials of a sweep, kept below `directory` or at the storage that its plan names."""

    def __init__(self, plan: Plan, directory: Path):
        self.plan, self.directory = plan, directory
        optuna = _optuna()
        taken = [path for path in (directory / name for name in SWEPT) if os.path.lexists(path)]
        if taken and not (directory / PRIVATE).exists():
            raise UsageError(
                f"{taken[0]}: is there already, and a sweep writes its own under this name; give another --dir"
            )
        (directory / PRIVATE / "locks").mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._home = _kept(
                directory, "home", f"{os.urandom(16).hex()} {socket.gethostname()}:{directory.resolve()}"
            )
            # What the directory was called at first: once it is renamed, the same trials are in it.
            name = _kept(directory, "name", directory.resolve().name)
        url = plan.storage or f"sqlite:///{(directory / PRIVATE / 'sweep.db').resolve()}"
        if plan.storage is None and "?" in url:
            raise UsageError(f"{directory}: has a '?' in its path, which ends a database's address; give another --dir")
        direction = "minimize" if plan.mode == "min" else "maximize"
        try:
            with self._alone():
                self.study = _patiently(
                    lambda: optuna.create_study(
                        storage=_opened(url),
                        study_name=name,
                        direction=direction,
                        pruner=_pruner(plan),
                        load_if_exists=True,
                    )
                )
                self._settle()
        except UsageError:
            raise
        except Exception as error:  # whatever a database has to say
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(_without_password(f"storage {url}: cannot be used: {reason}")) from error
        self._storage: Any = self.study._storage

    def _settle(self) -> None:
        """Write what the sweep is, or refuse another one."""
        recipe = f" in {self.plan.recipe}: trials of both could not be compared"
        for key, mine, where, hint in (
            (_PLAN, self.plan.identity(), "", " (trials: may be raised)"),
            (_RECIPE, self.plan.settings, recipe, ""),
        ):
            if key not in self.study.user_attrs:
                self.study.set_user_attr(key, mine)
            kept = self.study.user_attrs[key]
            # As texts: true is another value than 1, and 1.0 to 2 another range than 1 to 2.
            if changed := sorted(k for k in {*kept, *mine} if json.dumps(kept.get(k)) != json.dumps(mine.get(k))):
                raise UsageError(
                    f"{self.directory}: this sweep was begun with another {', '.join(changed[:5])}{where}; bring it "
                    f"back, or begin a new sweep with --dir{hint}"
                )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = _try_lock(self.directory / PRIVATE / "locks" / "sweep", wait=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def claim(self) -> Claimed | None:
        """A trial that nobody works on: one that a killed process left, else a new one; None where none is left."""
        from optuna.trial import TrialState, create_trial

        with self._alone():
            trials = self.trials()
            for trial in trials:
                ours = trial.state == TrialState.RUNNING and trial.user_attrs.get(_HOME) == self._home
                if ours and (lock := self._lock(trial.number)) is not None:
                    return self._claimed(trial.number, lock)
            if len(trials) == self.plan.trials:
                return None
            begun = create_trial(state=TrialState.RUNNING, user_attrs={_HOME: self._home})
            identifier = self._storage.create_new_trial(self.study._study_id, template_trial=begun)
            number = self._storage.get_trial(identifier).number
            if number >= self.plan.trials:  # another machine began the last one meanwhile; kept for when there are more
                return None
            lock = self._lock(number)
            assert lock is not None, "a new trial cannot be held"
            return self._claimed(number, lock)

    def elsewhere(self) -> list[tuple[int, str]]:
        """Number and place (machine, directory) of the running trials that belong to other directories."""
        running = [trial for trial in self.trials() if trial.state.name == "RUNNING"]
        homes = [(trial.number, str(trial.user_attrs.get(_HOME))) for trial in running]
        return [(number, home.partition(" ")[2]) for number, home in homes if home != self._home]

    def take_over(self) -> None:
        """Make the running trials of other directories this one's own: they begin anew here."""
        for number, _ in self.elsewhere():
            self._storage.set_trial_user_attr(self._identifier(number), _HOME, self._home)

    def holds(self, number: int) -> bool:
        """Whether a trial is this directory's still."""
        kept: Any = self._storage.get_trial(self._identifier(number)).user_attrs
        return bool(kept.get(_HOME) == self._home)

    def _identifier(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number))

    def _lock(self, number: int) -> int | None:
        return _try_lock(self.directory / PRIVATE / "locks" / f"trial-{number:05d}")

    def _claimed(self, number: int, lock: int) -> Claimed:
        try:
            return self._with_values(number, lock)
        except BaseException:
            os.close(lock)
            raise

    def _with_values(self, number: int, lock: int) -> Claimed:
        import optuna

        # The choice depends on the trials before it and on the sweep's seed: killed here, it is made again.
        self.study.sampler = _sampler(self.plan, number)
        trial = optuna.trial.Trial(self.study, self._identifier(number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a range whose last step ends below `high`
            values = {name: _suggested(trial, name, each) for name, each in self.plan.sweep.search.items()}
        return Claimed(self, trial, values, lock)

    def finished(self) -> bool:
        """Whether every trial has been told."""
        trials = self.trials()
        return len(trials) == self.plan.trials and all(trial.state.is_finished() for trial in trials)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials, in the order in which they began."""
        found: list[optuna.trial.FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found[: self.plan.trials]

    def values_of(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """A trial's values by key, as the recipe has them."""
        return {
            name: _from_parameter(each, trial.params[name])
            for name, each in self.plan.sweep.search.items()
            if name in trial.params
        }

    def run_directories(self, number: int) -> list[Path]:
        """Where the trainings of a trial are kept: one, or one for each seed."""
        base = self.directory / f"trial-{number:05d}"
        return [base] if self.plan.sweep.seeds == 1 else [base / f"seed-{k}" for k in range(self.plan.sweep.seeds)]


class Claimed:
    """A trial that this process works on until it is told or let go; `values` are its settings by dotted key."""

    def __init__(self, study: Study, trial: optuna.Trial, values: dict[str, Any], lock: int):
        self._study, self._trial, self._lock = study, trial, lock
        self.values = values
        kept = next(t for t in study.trials() if t.number == trial.number)
        self._reported = set(kept.intermediate_values)

    @property
    def number(self) -> int:
        """Counted from 0, in the order in which trials began."""
        return int(self._trial.number)

    def report(self, step: int, value: float) -> bool:
        """Tell the value that was reached at `step`; True where the trial is to be ended, behind the others."""
        if step in self._reported:
            return False
        self._reported.add(step)
        self._trial.report(value, step)
        return bool(self._trial.should_prune())

    def tell(self, value: float | None, state: str) -> None:
        """The trial is over: ``"complete"`` with its value, ``"pruned"`` or ``"failed"``."""
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        if self._study.holds(self.number):  # else another machine was told to take it over
            self._study.study.tell(self.number, value, state=states[state], skip_if_finished=True)
        self.release()

    def release(self) -> None:
        """Let go of the trial; told or not."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextlib.contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Raise RunFailed for what a storage raises within the block: its disk is full, its server has gone."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("optuna", "sqlalchemy", "redis"):
            raise
        reason = str(error.__cause__ or error).partition("\n")[0] or type(error).__name__
        raise RunFailed(
            _without_password(
                f"{directory}: the storage of the trials fails: {reason}; mend it, then go on by the same command"
            ),
            code="sweep-failed",
        ) from error


def _without_password(text: str) -> str:
    """A message without the password of a database's URL.

    >>> _without_password("postgresql://me:secret@host/db")
    'postgresql://me:...@host/db'
    """
    return re.sub(r"(//[^/:@\s]*:)[^/@\s]*@", r"\1...@", text)


def _optuna() -> Any:
    optuna = package("optuna", f"a sweep needs Optuna, which is not installed: {INSTALL}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(plan: Plan, number: int) -> Any:
    optuna = _optuna()
    seed = (plan.sweep.seed * 1_000_003 + number) % 2**32
    random = optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are called experimental
        if plan.sweep.sampler == "grid":
            return optuna.samplers.PartialFixedSampler(plan.sweep.grid()[number], random)
        # `constant_liar`: what others are trying just now is not tried again beside them.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True) if plan.sweep.sampler == "tpe" else random


def _patiently(begin: Callable[[], Any]) -> Any:
    """What `begin` gives; another machine that begins at once may have made the same tables meanwhile."""
    for _ in range(_MOST_TRIES):
        try:
            return begin()
        except Exception as error:  # each database has a class of its own for it
            if not re.search("already exists|UNIQUE constraint|duplicate key", str(error)):
                raise
        time.sleep(_PAUSE_S)
    return begin()


def _opened(url: str) -> Any:
    """The storage: a URL of Optuna's, or the file of a journal of its own (no ``://``)."""
    storages = _optuna().storages
    if "://" not in url:
        return storages.JournalStorage(storages.journal.JournalFileBackend(url))
    if url.startswith("sqlite:"):  # others may hold it for longer than SQLite waits by itself
        return storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    return url


def _pruner(plan: Plan) -> Any:
    pruners = _optuna().pruners
    if plan.sweep.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if plan.sweep.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=max(plan.epochs * plan.sweep.seeds, 2))
    return pruners.NopPruner()


def _suggested(trial: Any, name: str, each: Values | Between) -> Any:
    """The trial's value of a key: the one that it has already, else one that the sampler chooses."""
    if isinstance(each, Values):
        return _from_parameter(each, trial.suggest_categorical(name, list(range(len(each.values)))))
    if each.whole:
        return trial.suggest_int(name, each.low, each.high, step=each.step or 1, log=each.log)
    return trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)


def _from_parameter(each: Values | Between, parameter: Any) -> Any:
    """Optuna keeps the place of a listed value: values may be lists, and equal as numbers."""
    return each.values[parameter] if isinstance(each, Values) else parameter


def _kept(directory: Path, name: str, text: str) -> str:
    """What a sweep's directory keeps under `name`: `text`, where it is the first."""
    path = directory / PRIVATE / "locks" / name
    if not path.exists():
        files.write_durably(path, text.encode())
    return path.read_text("utf-8")


def _try_lock(path: Path, *, wait: bool = False) -> int | None:
    """Hold the file `path` until the descriptor is closed; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # flock: two claims of one process exclude each other too.
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
