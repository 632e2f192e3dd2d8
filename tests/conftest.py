"""The suite's surroundings, set before any library reads them: one thread, no network, caches of its own, shapes checked.

Nothing of ours may be imported here: modules are checked that are imported after the hook below is in place.
"""

import os
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

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

# Shapes and types of every module that names shapes. Others have nothing to say about them, and models' own code is called
# thousands of times a test.
_ROOT = Path(__file__).parents[1]
_SHAPED = [
    ".".join(file.relative_to(_ROOT).with_suffix("").parts)
    for package in ("stitch", "sae", "matching")
    for file in sorted((_ROOT / package).rglob("*.py"))
    if "from jaxtyping import" in file.read_text()
]
install_import_hook(_SHAPED, "shapes.beartype")
