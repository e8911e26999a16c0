"""The options of a run given flat, as `fit` takes them: those of the update in `step=`, those of the run in `run=`."""

from dataclasses import fields

from surefoot import RunOptions, StepOptions


def fit_arguments(**flat):
    arguments = dict(flat)
    for name, options in (("step", StepOptions), ("run", RunOptions)):
        names = {field.name for field in fields(options)}
        arguments[name] = options(**{key: arguments.pop(key) for key in list(arguments) if key in names})
    return arguments
