"""The suite's surroundings, set before any library reads them: one thread, no network, caches of its own.

Nothing of ours may be imported here: pytest installs the shape-checking import hook after this file has run.
"""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="stitch-tests-")

os.environ.update(
    OMP_NUM_THREADS="1",  # the order of a sum, and with it its last bits, depends on the number of threads
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",  # a test of the Hub starts its own process
    HF_HOME=os.path.join(_CACHE.name, "huggingface"),
    STITCH_CACHE=os.path.join(_CACHE.name, "stitch"),
)
