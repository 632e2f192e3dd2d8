"""The frame of `benchmarks/real_models.py`: what a process costs, and pairs that are not repeated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import real_models
from _processes import measured

BENCHMARKS = Path(real_models.__file__).parent

# In a parent of its own: a process starts with the peak of its parent, and pytest may be large.
TWO_PROCESSES = """
import json, sys
from _processes import measured
for work in "import time; held = b'x' * 300_000_000; time.sleep(0.3)", "pass":
    print(json.dumps(measured([sys.executable, "-c", work])))
"""


def test_the_cost_of_a_process_is_its_own_and_not_that_of_an_earlier_one():
    done = subprocess.run([sys.executable, "-c", TWO_PROCESSES], cwd=BENCHMARKS, check=True, capture_output=True)
    large, small = map(json.loads, done.stdout.splitlines())
    assert large["peak_bytes"] > 300_000_000 > small["peak_bytes"] + 100_000_000
    assert large["wall_seconds"] >= 0.3 and 0 < large["cpu_seconds"] < 60


def test_a_failed_process_is_an_error():
    with pytest.raises(subprocess.CalledProcessError):
        measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_pairs_that_are_in_the_file_are_not_measured_again(tmp_path, monkeypatch, capsys):
    lines, done = tmp_path / "lines.jsonl", []

    def measure(pair: str, tokens: int, options: str) -> dict:
        done.append((pair, tokens, options))
        return {"joined": pair, "asked_tokens": tokens, "options": options}

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["real_models.py", "--lines", str(lines), *words])
        real_models.main()

    monkeypatch.setattr(real_models, "measure", measure)
    run("--only", "gemma3:5:8")
    run()
    run()
    rest = [pair for pair in real_models.PAIRS if pair != "gemma3:5:8"]
    assert done == [(pair, 100_000, "") for pair in ("gemma3:5:8", *rest)]
    run("--only", "gemma3:5:8", "--tokens", "200000", "--options=--brief")
    assert done[-1] == ("gemma3:5:8", 200_000, "--brief")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [json.loads(line) for line in lines.read_text().splitlines()] and len(printed) == 7
