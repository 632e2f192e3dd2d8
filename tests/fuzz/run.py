"""Tries many cases at every door and prints one table: `PYTHONPATH=tests python -m fuzz.run --cases 100000`.

What goes wrong is printed below it, with a case for each fault. The exit code is 1 if anything did.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from fuzz.all_doors import doors
from fuzz.outcome import BAD, GOOD
from fuzz.trying import Count, tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="in all, as many for every door")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--door", action="append", help="only doors whose name contains this")
    parser.add_argument("--seconds", type=float, default=10.0, help="after which a case has hung")
    parser.add_argument("--lines", type=Path, help="a file to which the counts are added as JSON lines")
    asked = parser.parse_args()
    chosen = [door for door in doors() if not asked.door or any(name in door.name for name in asked.door)]
    if not chosen:
        parser.error(f"there is no such door; there are {', '.join(door.name for door in doors())}")
    counts = []
    print(f"{'door':28}" + "".join(f"{name:>12}" for name in ("tried", *GOOD, *BAD, "seconds")), flush=True)
    for door in chosen:
        began = time.perf_counter()
        count = tried(door, asked.cases // len(chosen), start=asked.seed, seconds=asked.seconds)
        counts.append(count)
        print(line(count, time.perf_counter() - began), flush=True)
        if asked.lines:
            with asked.lines.open("a") as file:
                file.write(json.dumps(record(count, asked.seed)) + "\n")
    print(line(total(counts), None))
    for count in counts:
        print(*(f"\n{fault}" for fault in count.faults()), sep="", end="")
    print()
    return 1 if any(count.bad for count in counts) else 0


def line(count: Count, seconds: float | None) -> str:
    numbers = [count.of.total(), *(count.of[kind] for kind in (*GOOD, *BAD))]
    return (
        f"{count.door:28}"
        + "".join(f"{number:12,}" for number in numbers)
        + ("" if seconds is None else f"{seconds:12.1f}")
    )


def record(count: Count, seed: int) -> dict:
    return {"benchmark": "fuzz", "door": count.door, "seed": seed, "tried": count.of.total()} | {
        kind: count.of[kind] for kind in (*GOOD, *BAD)
    }


def total(counts: list[Count]) -> Count:
    both = Count("all")
    for count in counts:
        both.of += count.of
    return both


if __name__ == "__main__":
    sys.exit(main())
