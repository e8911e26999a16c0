"""Text for a terminal: what comes from a file or a name is made harmless, and words are quoted for a shell.

`printable` is for one value (a name, a path, a field of a file) in a message or a table; `say` prints our messages.
No other module calls `print` (tests/test_architecture.py): a name with an escape sequence in it, or with a
byte that is no text, must never reach a terminal as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path


def printable(value: object, *, lines: bool = False) -> str:
    r"""`value` as text without control characters, directional marks or halves of characters.

    They are shown as Python writes them in a string. With `lines`, line ends stay: for a message of several lines.

    >>> print(printable("run\x1b[2J\n\udcff"), printable("a\nb", lines=True))
    run\x1b[2J\n\udcff a
    b
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else _escape(c) for c in text)


def visible(name: str) -> str:
    """A name that can be seen: in quotes, as Python writes it, where it is empty, or has blanks at an end.

    >>> print(visible(" "), visible("cat"))
    ' ' cat
    """
    return printable(name) if name and name == name.strip() else repr(name)


def _escape(character: str) -> str:
    # isprintable() is also false for spaces that are not ASCII's (U+00A0, U+3000): ordinary in names.
    if character.isspace() and ord(character) > 0x9F and character not in "\u2028\u2029":
        return character
    return character.encode("unicode_escape").decode("ascii")


def say(message: object = "", *, error: bool = False) -> None:
    """Print `message`, which may have several lines, on standard output, or on standard error; at once.

    Commands in it, in backquotes, stand as this user types them. Raises OSError where standard output cannot take it;
    errors of standard error are ignored.
    """
    text = as_typed(printable(message, lines=True))
    if not error:
        print(text, flush=True)
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # full, or closed
        return


def note(message: object) -> None:
    """Print `message` on standard error; of several ranks of a run the first does."""
    if os.environ.get("RANK", "0") == "0":
        say(message, error=True)


def redraw(line: str = "") -> None:
    """Show `line` in place of the last one on standard error, where that is a terminal; "" takes it away."""
    with contextlib.suppress(OSError, ValueError):  # full, or closed
        if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            print(f"\r\x1b[2K{printable(line)}", end="", file=sys.stderr, flush=True)


def draw(render: Callable[[int, bool, bool], str]) -> None:
    """Print a chart, whose colours are ours and whose names were made printable. Raises OSError as `say` does.

    `render` takes the width in columns (at most 120), and whether there is Unicode and colour.
    """
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render(min(shutil.get_terminal_size((100, 24)).columns, 120), unicode, colour), flush=True)


def typed(*words: object) -> str:
    r"""A command of these words as this user types it, each quoted for the shell (POSIX, and ``$'...'`` where needed).

    dev.py, which hides the environment, sets SUREFOOT_COMMAND to what stands in place of ``surefoot``.

    >>> print(typed("surefoot", "resume", "my run"), typed("surefoot", "eval", Path("-run")), typed("ls", "a\nb"))
    surefoot resume 'my run' surefoot eval ./-run ls $'a\nb'
    """
    program, *rest = words
    return " ".join([_program(str(program)), *map(_quoted, rest)])


def as_typed(text: str) -> str:
    """A message with its commands, in backquotes, as this user types them: see `typed`.

    >>> as_typed("no run is there yet; `surefoot train` begins one")
    'no run is there yet; `surefoot train` begins one'
    """
    return re.sub(r"`surefoot(?= [a-zA-Z])", lambda _: f"`{_program('surefoot')}", text)


# The programs that we print, and the modules that they are.
_MODULES = {"surefoot": "surefoot", "tensorboard": "tensorboard.main"}


def _program(name: str) -> str:
    """How this user calls a program: by its name where the shell finds it, else as a module of this Python."""
    if prefix := os.environ.get("SUREFOOT_COMMAND"):
        return prefix if name == "surefoot" else f"{prefix} run {name}"
    if name not in _MODULES or shutil.which(name):
        return name
    return f"{_quoted(Path(sys.executable))} -m {_MODULES[name]}"


def _quoted(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"  # a file, not an option
    if text.isprintable():
        return shlex.quote(text)
    # No terminal shows these bytes as they are, so they are written as escapes that bash, zsh and ksh read.
    return "$'" + "".join(_shell_escape(c) for c in text) + "'"


def _shell_escape(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character == "\n":
        return "\\n"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def shortened(text: str, most: int = 60) -> str:
    """`text` with its middle left out where it has more than `most` characters.

    >>> shortened("abcdefghijklmnop", 10)
    'abcde...op'
    """
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most // 2 - 3) :]}"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "step"), counted(60_000, "epoch"), counted(2, "class"), counted(0, "entry")
    ('1 step', '60,000 epochs', '2 classes', '0 entries')
    """
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('s', 'tch')) else 's'}"


def figure(name: str, value: float) -> str:
    """A metric's value for people: accuracies in percent, other numbers so that four of their digits are seen.

    >>> figure("val/accuracy", 0.9123), figure("loss", 0.5), figure("loss", 3.217e-06)
    ('91.23 %', '0.5000', '3.217e-06')
    """
    if name.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1e12 or not value else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time for people.

    >>> [duration(s) for s in (0.04, 9.26, 75, 7265, 400_000)]
    ['0.04 s', '9.3 s', '1 min 15 s', '2 h 01 min', '4.6 days']
    """
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole / 86400:.1f} days"
