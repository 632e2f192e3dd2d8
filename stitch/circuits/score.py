"""How much of a behaviour a model has: its answers to clean prompts beside those to corrupt ones and to chance."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.circuits.behaviours import Prompts, make_prompts
from stitch.errors import StitchError, UsageError
from stitch.evaluation.scores import bootstrap
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load_any
from stitch.models.sources import resolve
from stitch.progress import Progress

PROMPTS_AT_ONCE = 16  # where outputs of all components, or gradients, are kept
TOKENS_AT_ONCE = 2_048  # where logits alone are

Logits = Callable[[Int64[Tensor, "prompts length"]], Float[Tensor, "prompts length vocabulary"]]


def score_model(
    model: str,
    behaviour: str,
    *,
    count: int = 256,
    seed: int = 0,
    text: str = "docs",
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores a causal language model of any family on `count` prompts of a behaviour (its name, or a file of prompts).

    Raises: UsageError as `make_prompts`, or when the model is too short for them; StitchError when its weights fail.
    """
    source = resolve(model, progress=progress)
    found = load_any(source, torch_dtype(dtype), torch_device(device), trust_remote_code)
    asked = make_prompts(behaviour, found.tokenizer, count=count, seed=seed, text=text)
    length = asked.clean.shape[1]
    if found.longest is not None and length > found.longest:
        raise UsageError(f"{behaviour} needs a context of {length} tokens; {model} takes {found.longest}.")
    if int(asked.clean.max()) >= found.vocabulary:
        raise StitchError(f"{model} must know all ids of its tokenizer; it has {found.vocabulary:,} rows.")
    where = next(found.net.parameters()).device

    def logits(ids: Tensor) -> Tensor:
        return found.net(input_ids=ids.to(where), use_cache=False).logits.cpu()

    options = len(asked.among) or found.vocabulary
    return {
        "model": model,
        "behaviour": behaviour,
        "prompts": len(asked.clean),
        "places": int(asked.asked.sum()),
        "chance": 1 / options,
        "order_one": asked.order_one,
        "results": score(logits, asked, progress),
    }


def score(logits: Logits, of: Prompts, progress: Progress | None = None) -> list[dict]:
    """`answered` for the clean and for the corrupt prompts."""
    return [
        {"name": name, **answered(logits, ids, of, progress)}
        for name, ids in (("clean", of.clean), ("corrupt", of.corrupt))
    ]


@torch.no_grad()
def answered(
    logits: Logits, ids: Int64[Tensor, "prompts length"], of: Prompts, progress: Progress | None = None
) -> dict[str, float]:
    """The share of answers that are the likeliest, with a 95 % interval by prompt, their mean probability, and their mean −log
    probability in nats, when `ids` are read."""
    sums = []
    at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
    for start in range(0, len(ids), at_once):
        part = slice(start, start + at_once)
        sums.append(_sums(logits(ids[part]), of, part))
        if progress:
            progress("behaviour (prompts)", min(part.stop, len(ids)), len(ids))
    right, probability, nats, places = torch.cat(sums).T
    low, high = bootstrap(right, places)
    total = places.sum()
    return {
        "right": float(right.sum() / total),
        "right_low": low,
        "right_high": high,
        "probability": float(probability.sum() / total),
        "nats": float(nats.sum() / total),
    }


@torch.no_grad()
def divergence(reference: Logits, logits: Logits, of: Prompts) -> float:
    """KL(reference ‖ model) in nats per answer, over the tokens that compete."""
    total = 0.0
    at_once = max(1, TOKENS_AT_ONCE // of.clean.shape[1])
    for start in range(0, len(of.clean), at_once):
        part = slice(start, start + at_once)
        asked, ids, answers = of.asked[part], of.clean[part], of.answers[part]
        ours, theirs = (log_probabilities(one(ids)[asked], answers[asked], of.among)[0] for one in (reference, logits))
        total += float((ours.exp() * (ours - theirs)).sum())
    return total / int(of.asked.sum())


def log_probabilities(
    logits: Float[Tensor, "places vocabulary"], answers: Int64[Tensor, " places"], among: tuple[int, ...]
) -> tuple[Float[Tensor, "places options"], Int64[Tensor, " places"]]:
    """Of all tokens, or of those `among` alone, and the places of the answers in them."""
    if among:
        options = torch.tensor(among, device=logits.device)
        logits, answers = logits[:, options], (answers[:, None] == options).long().argmax(1)
    return logits.double().log_softmax(1), answers


def _sums(logits: Tensor, of: Prompts, part: slice) -> Float[Tensor, "prompts 4"]:
    """Per prompt: right answers, their probabilities, their nats, and how many are asked for."""
    asked = of.asked[part]
    if not torch.isfinite(logits[asked]).all():
        raise StitchError("logits must be finite; the model gives NaN or infinity: try --dtype fp32.")
    options, answers = log_probabilities(logits[asked], of.answers[part][asked], of.among)
    found = options.gather(1, answers[:, None])[:, 0]
    columns = [(options.argmax(1) == answers).double(), found.exp(), -found, torch.ones_like(found)]
    return found.new_zeros(len(asked), 4).index_add_(0, asked.nonzero()[:, 0], torch.stack(columns, 1))
