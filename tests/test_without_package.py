"""Programs that run without this package: each by itself, and one that fails is a failure."""

import os

import pytest

from without_package import run_without_package


def test_a_program_finds_nothing_of_an_earlier_one(tmp_path):
    first = "import os, sys; sys.modules['left'] = sys; os.environ['LEFT'] = 'yes'; print(os.getcwd(), *sys.argv[1:])"
    assert run_without_package(first, "one", "two", cwd=tmp_path).split() == [str(tmp_path), "one", "two"]
    second = "import os, sys; print('left' in sys.modules, 'LEFT' in os.environ, 'stitch' in sys.modules)"
    assert run_without_package(second, cwd=tmp_path).split() == ["False"] * 3
    assert "PYTHONPATH" not in run_without_package("import os; print(*os.environ)", cwd=tmp_path)


@pytest.mark.parametrize("program", ["assert False, 'as told'", "raise SystemExit('as told')", "import os; os.abort()"])
def test_a_program_that_fails_fails_its_test(program, tmp_path):
    with pytest.raises(AssertionError, match=None if "abort" in program else "as told"):
        run_without_package(program, cwd=tmp_path)


def test_modules_of_checkpoints_are_kept_where_the_program_runs(tmp_path):
    program = "import os; from transformers.utils import HF_MODULES_CACHE; print(os.path.abspath(HF_MODULES_CACHE))"
    assert run_without_package(program, cwd=tmp_path).strip() == os.path.join(tmp_path, "modules")
