"""The package's front door."""

import subprocess
import sys

import matching


def test_every_public_name_is_found_where_it_says():
    for name in matching.__all__:
        found = getattr(matching, name)
        assert found.__name__ == name
        assert found.__module__.startswith("matching.")


def test_its_errors_cost_no_import_of_torch_or_scipy_and_nothing_pulls_pot_in():
    code = (
        "import sys; import matching.errors; assert not {'torch', 'scipy', 'numpy'} & set(sys.modules);"
        "import matching; [getattr(matching, name) for name in matching.__all__]; assert 'ot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
