"""The public names of the package."""

import subprocess
import sys

import matching


def test_every_public_name_can_be_imported():
    for name in matching.__all__:
        found = getattr(matching, name)
        assert found.__name__ == name
        assert found.__module__.startswith("matching.")


def test_its_errors_import_neither_torch_nor_scipy_and_nothing_imports_pot():
    code = (
        "import sys; import matching.errors; assert not {'torch', 'scipy', 'numpy'} & set(sys.modules);"
        "import matching; [getattr(matching, name) for name in matching.__all__]; assert 'ot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
