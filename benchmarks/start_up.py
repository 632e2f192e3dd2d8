"""Time of `stitch --help` as a whole process, beside Python itself and `import torch`. Medians of 7, one JSON line."""

import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "stitch --help": [sys.executable, "-m", "cli", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    found = {
        name: round(statistics.median(seconds(command) for _ in range(7)), 3) for name, command in COMMANDS.items()
    }
    print(json.dumps({"benchmark": "start_up", "seconds": found}))


if __name__ == "__main__":
    main()
