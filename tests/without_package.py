"""Programs in a Python process that has nothing of this package, as `python -I -c PROGRAM` would run them.

To import transformers takes longer than what such a program does. One process imports it and forks for each program, which
finds no module, file or environment of an earlier one.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Which instructions products are computed with. Results of both processes are compared bit by bit.
CPU_SETTINGS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HF_MODULES_CACHE": "modules",  # in the folder that the program runs in
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
FORKS = """
import gc
gc.disable()  # looking for garbage takes a fifth of the time of the imports
import json, os, sys, traceback
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationMixin, LlamaForCausalLM, pipeline
gc.freeze()
for line in sys.stdin:
    program, arguments, place, written = json.loads(line)
    if not (child := os.fork()):
        status = 1
        try:
            for stream, path in zip((0, 1, 2), (os.devnull, *written)):
                os.dup2(os.open(path, os.O_RDWR), stream)
            gc.enable()
            os.chdir(place)
            sys.argv = ["-c", *arguments]
            exec(program, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _forking() -> subprocess.Popen:
    kept = {name: os.environ[name] for name in CPU_SETTINGS if name in os.environ}
    home = tempfile.gettempdir()
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", FORKS],
        env={**ENVIRONMENT, **kept, "HOME": home}, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(process.communicate)  # closes its input, which ends it
    return process


def run_without_package(program: str, *arguments: str, cwd: Path) -> str:
    """What the program prints. It ends without an error, or else the test fails."""
    process = _forking()
    assert process.stdin and process.stdout
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in ("stdout", "stderr")]
        for path in written:
            path.touch()
        print(json.dumps([program, arguments, str(cwd), [*map(str, written)]]), file=process.stdin, flush=True)
        status = process.stdout.readline().strip()
        assert status == "0", written[1].read_text()[-3000:]
        return written[0].read_text()
