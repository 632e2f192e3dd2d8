"""Learning, unlearning and training against relearning, on a pico model that has learned text of a few tokens."""

from types import SimpleNamespace

import _unlearning
import pytest
import torch
from _unlearning import Weights, Workbench

import tiny
from recurrent import windows
from stitch.evaluation.relearning import area, learn, restored

DOCUMENT = torch.randint(2, tiny.VOCABULARY, (40,), generator=torch.Generator().manual_seed(1))


RATE = 1e-3  # of relearning


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def curve(bench: Workbench, weights: Weights) -> list[float]:
    bench.set(weights)
    with restored(bench.net):
        return learn(bench.net, bench.pieces(DOCUMENT), RATE).tolist()


@pytest.fixture(scope="module")
def weights():
    """The workbench, the weights that learned the document, and those that unlearned it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, rate in {"LEARN": 3e-3, "RELEARN": RATE, "UNLEARN": RATE, "AGAINST": RATE}.items():
            patch.setattr(_unlearning, f"{name}_RATE", rate)
        patch.setattr(_unlearning, "AGAINST", 40)
        setup = SimpleNamespace(
            model=tiny.model("gpt2"), windows={"fit": windows(8, 24), "report": windows(4, 24, seed=1)}
        )
        bench = Workbench(setup)
        bench.net.requires_grad_(True)
        learned = bench.learned(DOCUMENT)
        bench.set(bench.never)
        unlearned, _ = bench.unlearned(learned, DOCUMENT, bench.ce_on(DOCUMENT), draws())
        yield bench, learned, unlearned


def test_unlearning_ends_where_the_model_was_that_never_learned(weights):
    bench, learned, unlearned = weights
    never = curve(bench, bench.never)
    assert curve(bench, learned)[0] < never[0] / 4
    assert curve(bench, unlearned)[0] == pytest.approx(never[0], abs=1e-3)
    assert area(torch.tensor(never)) - area(torch.tensor(curve(bench, unlearned))) > 5  # it comes back faster


def test_training_against_relearning_gives_the_curve_of_a_model_that_never_learned(weights):
    bench, learned, unlearned = weights
    never = torch.tensor(curve(bench, bench.never))
    trained = bench.against_relearning(unlearned, learned, DOCUMENT, never.tolist(), draws())
    found, before = torch.tensor(curve(bench, trained)), torch.tensor(curve(bench, unlearned))
    assert (found - never).abs().max() < 0.5 < 1 < (before - never).abs().max()
    assert abs(area(never) - area(found)) < (area(never) - area(before)) / 4
    with torch.no_grad():
        costs = [float(bench.kl_on_other_text(some, learned, draws())) for some in (trained, bench.never)]
    assert costs[0] < 0.1 < costs[1]


def test_steps_of_relearning_inside_the_training_are_taken_back(weights, monkeypatch):
    bench, learned, unlearned = weights
    monkeypatch.setattr(_unlearning, "AGAINST_RATE", 0.0)
    monkeypatch.setattr(_unlearning, "AGAINST", 2)
    trained = bench.against_relearning(unlearned, learned, DOCUMENT, curve(bench, unlearned), draws())
    assert all(torch.equal(one, two) for one, two in zip(trained, unlearned, strict=True))
