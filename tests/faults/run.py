"""Runs the fault catalogue and prints a table: case, outcome, seconds. Exit code 1 if any outcome is wrong.

python tests/faults/run.py [--fast] [--tests] [--only WORDS] [--part N/M] [--list] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

# A shell starts what runs in its background, and nohup what it runs, with these ignored; the cases would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
TESTS_FOLDER = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS_FOLDER), str(TESTS_FOLDER.parent / "src")]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a selection of more than half of the cases")
    parser.add_argument("--tests", action="store_true", help="the selection that runs in the project's tests")
    parser.add_argument("--only", metavar="WORDS", help="only cases whose group and name hold these words")
    parser.add_argument("--part", metavar="N/M", default="1/1", help="only the Nth of M parts, each as long")
    parser.add_argument("--list", action="store_true", help="print the cases and run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON as well")
    options = parser.parse_args(arguments)

    from faults import catalogue, harness

    catalogue.warm_up()
    catalogue.collect()
    tier = harness.TESTS if options.tests else harness.FAST if options.fast else harness.ALL
    words = (options.only or "").lower().split()
    cases = [case for case in harness.CASES if case.tier <= tier]
    cases = [case for case in cases if all(word in f"{case.group} {case.name}".lower() for word in words)]
    part, parts = map(int, options.part.split("/"))
    cases = cases[part - 1 :: parts]
    if options.list:
        for case in cases:
            print(f"{case.group}: {case.name}")
        print(f"{len(cases)} cases")
        return 0

    rows = []
    start = time.monotonic()
    for case in cases:
        rows.append(_run(case))
        print(_line(rows[-1]), flush=True)
    wrong = [row for row in rows if row["verdict"] == "WRONG"]
    absent = [row for row in rows if row["verdict"] == "did not run"]
    print(
        f"\n{len(rows)} cases in {time.monotonic() - start:.0f} s: {len(rows) - len(wrong) - len(absent)} as they "
        f"should be, {len(wrong)} wrong, {len(absent)} did not run"
    )
    for reason in sorted({row["outcome"] for row in absent}):
        print(f"did not run: {reason}")
    if options.json:
        options.json.write_text(
            json.dumps({"listed": [f"{c.group}: {c.name}" for c in harness.CASES], "rows": rows}, indent=1)
        )
    return 1 if wrong or not rows else 0


def _run(case) -> dict:
    from faults.harness import NotHere

    folder = Path(tempfile.mkdtemp(prefix="surefoot-fault-"))
    start = time.monotonic()
    try:
        verdict, outcome = "ok", case.check(folder)
    except NotHere as error:
        verdict, outcome = "did not run", str(error)
    except AssertionError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict, outcome = "WRONG", f"{error} ({Path(place.filename).name}:{place.lineno})"
    except Exception as error:
        verdict, outcome = "WRONG", "".join(traceback.format_exception(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - start
    return {"group": case.group, "name": case.name, "verdict": verdict, "outcome": outcome, "seconds": seconds}


def _line(row: dict) -> str:
    outcome = row["outcome"] if row["verdict"] == "WRONG" else row["outcome"][:90]
    return f"{row['verdict']:<11} {row['group']}: {row['name']:<58} {outcome:<60} {row['seconds']:6.2f}"


if __name__ == "__main__":
    sys.exit(main())
