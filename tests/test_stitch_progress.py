"""Stages that may take longer than a few seconds say how far they are, from their start to their end."""

import itertools

from stitch.progress import counted
from stitch.text import docstrings


class Heard:
    """Records what a stage reports, for each stage in the order of its calls."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.stages.setdefault(stage, []).append((done, total))

    def require_whole(self, stage: str, least: int) -> None:
        """The stage began with nothing done, ended with all of it, went one way, and was heard of at least so often between."""
        assert stage in self.stages, f"nothing of {stage}; heard {list(self.stages)}"
        found = self.stages[stage]
        done, totals = [one for one, _ in found], {total for _, total in found}
        assert len(totals) == 1 and done[0] == 0 and done[-1] == totals.pop()
        assert all(one < other for one, other in itertools.pairwise(done))
        assert len(done) - 2 >= least


def test_a_counted_loop_is_heard_of_before_between_and_after():
    heard, met = Heard(), []
    for item in counted("abc", "letters", heard):
        met.append((item, heard.stages["letters"][-1]))
    assert met == [("a", (0, 3)), ("b", (1, 3)), ("c", (2, 3))]
    assert heard.stages["letters"][-1] == (3, 3)
    assert list(counted(iter("ab"), "letters", None, 2)) == ["a", "b"]


def test_the_corpus_counts_its_files(tmp_path, monkeypatch):
    package = tmp_path / "package_with_docstrings"
    package.mkdir()
    for number in range(150):
        (package / f"part{number}.py").write_text(f'"""{f"Sentence {number} of it. " * 20}"""\n')
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    heard = Heard()
    found = docstrings.documents((package.name,), heard)
    assert len(found) == 150 and found == docstrings.documents((package.name,))
    heard.require_whole("reading docstrings (files)", 149)
