"""Linear probes: what they predict, how often they are right, and one trained on labels."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.evaluation.intervals import ratio_interval

PENALTY = 1e-4  # of the squared weights of a trained probe, on standardised inputs
STEPS = 100  # of L-BFGS

Probe = tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]


def predicted(probe: Probe, streams: Float[Tensor, "tokens d"]) -> Int64[Tensor, " tokens"]:
    """The class with the highest score; of a probe with one row, 1 where the score is above zero."""
    weight, bias = probe
    scores = streams.float() @ weight.T + bias
    return (scores[:, 0] > 0).long() if len(weight) == 1 else scores.argmax(1)


def accuracy(
    found: Int64[Tensor, " tokens"], truth: Int64[Tensor, " tokens"], document: Int64[Tensor, " tokens"], classes: int
) -> dict[str, float]:
    """Balanced accuracy, the mean over classes of the share of right answers, with its 95 % interval over documents.

    Every class weighs as much, however rare it is, so that always giving the most frequent one scores 1 / classes. Classes
    that do not occur are left out.
    """
    counts = torch.bincount(truth, minlength=classes).double()
    there = counts > 0
    weight = (len(truth) / (counts * there.sum()))[truth]
    documents = int(document.max()) + 1
    right, of = torch.zeros(documents, dtype=torch.float64), torch.zeros(documents, dtype=torch.float64)
    right.index_add_(0, document, weight * (found == truth))
    of.index_add_(0, document, weight)
    low, high = ratio_interval(right, of)
    return {"accuracy": float(right.sum() / of.sum()), "accuracy_low": low, "accuracy_high": high}


def trained(streams: Float[Tensor, "tokens d"], truth: Int64[Tensor, " tokens"], classes: int) -> Probe:
    """A logistic regression in which every class weighs as much, with a penalty on the weights of standardised inputs.

    The probe reads the streams as they are: standardisation is folded into its weights.
    """
    x = streams.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    counts = torch.bincount(truth, minlength=classes).double()
    of_class = torch.where(counts > 0, len(truth) / (counts.clamp_min(1) * (counts > 0).sum()), 0.0)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = torch.nn.functional.cross_entropy(x @ weight.T + bias, truth, weight=of_class)
        total = nats + PENALTY * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    folded = weight.detach() / scale
    return folded.float(), (bias.detach() - folded @ mean).float()
