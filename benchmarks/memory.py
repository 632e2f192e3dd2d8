"""Peak memory of the main job by amount of text: `--tokens 4000000` beside `--tokens 1000000`. One JSON line.

Each run is a process of its own; peak memory is the operating system's figure for the resident set. SAEs train for the
same number of steps in both runs so that the comparison takes minutes: memory does not depend on the number of steps.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (1_000_000, 4_000_000)
CODE = """
import sys, resource
from pathlib import Path
from stitch.config import Settings
from stitch.pipeline import stitch
tokens = int(sys.argv[1])
settings = Settings(model_a="demo:gpt2", model_b="demo:llama", layer=3, tokens=tokens, sae_passes=200_000 / tokens)
stitch(settings, Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def main() -> None:
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for tokens in SIZES:
            command = [sys.executable, "-c", CODE, str(tokens), str(Path(folder) / str(tokens))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[tokens] = int(done.stdout.split()[-1])
    ratio = peaks[SIZES[1]] / peaks[SIZES[0]]
    print(json.dumps({"benchmark": "memory", "peak_bytes": peaks, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
