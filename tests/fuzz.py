"""Looks for new counter-examples of the property tests for as long as it is told to: `python3 dev.py fuzz MINUTES`."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the property tests with new examples, again and again; stop at the first failure. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=10.0, metavar="MINUTES", help="default: 10")
    parser.add_argument("--seed", type=int, help="the first round's seed, to see a failure again")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    rounds = 0
    while not rounds or time.monotonic() < end:
        command = [sys.executable, "-m", "pytest", "--fuzz", "-x", f"--hypothesis-seed={seed + rounds}"]
        if subprocess.run(command, cwd=ROOT).returncode:
            print(
                f"fuzz: a counter-example. See it again: python3 dev.py fuzz 0 --seed {seed + rounds}\n"
                "Mend what it shows, and write it above the test as @example(...), so that it is tried each time."
            )
            return 1
        rounds += 1
        print(f"fuzz: round {rounds} (seed {seed + rounds - 1}): nothing found", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
