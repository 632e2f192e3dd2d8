"""Commands whose disk refuses one step of writing, every step in turn: how many end in one line with the old output intact?

One JSON line per command: how many steps it has (opening, writing, flushing, renaming, linking, making folders), and how often a
refused step ended the command or was something that it does without. Anything else stops this script with what was found.
Errors are ENOSPC, EIO and EACCES in turn; models are the pico models of the tests.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.append(
    str(Path(__file__).resolve().parent.parent / "tests")
)  # pico models and commands are those of the tests

from small_commands import COMMANDS, make_inputs
from test_disk_faults_commands import check_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder))
        for name in options.only or COMMANDS:
            (place := Path(folder) / f"of-{name}").mkdir()
            found = check_command(name, inputs, place, lambda steps: range(1, steps + 1))
            print(json.dumps({"benchmark": "disk_faults", "command": name, **found}), flush=True)


if __name__ == "__main__":
    main()
