"""Compiled code is cached on disk, and works without a cache as well."""

import os
import subprocess
import sys
from pathlib import Path

LOOPS = "from matching.jit import jit\n\n\n@jit(nogil=True)\ndef double(x):\n    return 2 * x\n"


def used(folder: Path, **environment: str) -> list[str]:
    """The output of a new process: twice 21, and the number of cache hits."""
    code = f"import sys; sys.path.append({str(folder)!r}); import loops; print(loops.double(21), "
    code += "sum(loops.double.stats.cache_hits.values()))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_code_is_compiled_once_or_each_time_without_a_cache(tmp_path: Path):
    (tmp_path / "loops.py").write_text(LOOPS)
    assert [used(tmp_path), used(tmp_path)] == [["42", "0"], ["42", "1"]]
    assert used(tmp_path, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator") == ["42", "0"]  # this locator finds no file
