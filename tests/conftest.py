"""Test environment, set up before any library reads it: one thread, no network, separate caches, shape checks.

Modules of this project must not be imported here: only modules imported after the hook below are checked.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import shapes
import turns

_START = time.monotonic()
_CACHE = tempfile.TemporaryDirectory(prefix="stitch-tests-")

os.environ.update(
    OMP_NUM_THREADS="1",  # the order of a sum, and so its last bits, depends on the number of threads
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",  # tests of the Hub start their own server
    HF_HOME=os.path.join(_CACHE.name, "huggingface"),
    STITCH_CACHE=os.path.join(_CACHE.name, "stitch"),
    # torch would use headers again that an environment compiled which may be gone.
    TORCHINDUCTOR_CACHE_DIR=os.path.join(_CACHE.name, "inductor"),
)

# Compiled code is kept, also where the user's environment says otherwise: each worker and each process that a test starts
# would compile hundreds of files again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Checks shapes and types in modules that name shapes. Other modules have no shapes to check, and the models' own code
# is called thousands of times per test.
_ROOT = Path(__file__).parents[1]
_SHAPED = [
    ".".join(file.relative_to(_ROOT).with_suffix("").parts)
    for package in ("stitch", "sae", "matching")
    for file in sorted((_ROOT / package).rglob("*.py"))
    if "from jaxtyping import" in file.read_text()
]
install_import_hook(_SHAPED, "shapes.checked")


def pytest_addoption(parser):
    parser.addoption(
        "--within", type=float, metavar="SECONDS", help="Skip the tests that have not begun after so long."
    )


@pytest.hookimpl(trylast=True)  # once the tests without the asked-for mark are gone
def pytest_collection_modifyitems(config, items):
    """With `--within` another file is the first one after every change of the code, so that none is always left out."""
    if config.getoption("within") is not None:
        items[:] = turns.begun_elsewhere(items, turns.of_this_state())


def pytest_runtest_setup(item):
    shapes.calls.clear()
    within = item.config.getoption("within")
    if within is not None and time.monotonic() - _START > within:
        pytest.skip(f"not begun within {within:.0f} s")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imports leave hundreds of thousands of objects and hardly any garbage: looking for it took a third of the time, and what
    is there to stay need not be looked at again during the tests."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found
