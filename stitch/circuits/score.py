"""Scores of a model on a behaviour: its answers to clean prompts, to corrupt prompts, and chance."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stitch.circuits.behaviours.named import make_prompts
from stitch.circuits.behaviours.prompts import Prompts, require_room
from stitch.circuits.behaviours.sampler import LONGEST
from stitch.errors import StitchError
from stitch.evaluation.intervals import ratio_interval
from stitch.models.device import torch_device, torch_dtype
from stitch.models.loading import load_any
from stitch.models.sources import resolve
from stitch.models.writer import Writer
from stitch.progress import Progress

PROMPTS_AT_ONCE = 16  # per forward pass that keeps the outputs of all components, or gradients
TOKENS_AT_ONCE = 2_048  # per forward pass that keeps only logits
KEPT = 2**28  # bytes of a reference's answers that are kept
DISTANCES = (8, 16, 32, 64, 128, 201)  # bounds of the distances that are scored together, the upper ones excluded

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
    """Scores a causal language model of any family on `count` prompts of a behaviour, given by its name or by a file of prompts.

    Raises: UsageError as `make_prompts`, or when the prompts are longer than the model's context; StitchError when the model does
    not know all ids of its tokenizer, or gives logits that are not finite.
    """
    source = resolve(model, trust_remote_code=trust_remote_code, progress=progress)
    loaded = load_any(source, torch_dtype(dtype), torch_device(device), trust_remote_code, progress)
    writer = Writer(source.name, loaded.net, loaded.tokenizer, source.folder, seed)
    longest = LONGEST if loaded.longest is None else loaded.longest
    prompts = make_prompts(
        behaviour,
        loaded.tokenizer,
        count=count,
        seed=seed,
        longest=longest,
        text=text,
        writer=writer,
        progress=progress,
    )
    require_room(prompts, behaviour, model, loaded.longest)
    if int(prompts.clean.max()) >= loaded.vocabulary:
        raise StitchError(
            f"{model} must know all ids of its tokenizer; it has {loaded.vocabulary:,} rows: choose another model."
        )
    options = len(prompts.among) or loaded.vocabulary
    return {
        "model": model,
        "behaviour": behaviour,
        "prompts": len(prompts.clean),
        "places": int(prompts.asked.sum()),
        "chance": 1 / options,
        "order_one": prompts.order_one,
        "results": score(logits_of(loaded.net), prompts, progress),
    }


def logits_of(net: nn.Module) -> Logits:
    """The logits of a causal language model for token ids, on the CPU."""
    device = next(net.parameters()).device
    return lambda ids: net(input_ids=ids.to(device), use_cache=False).logits.cpu()


def score(
    logits: Logits, prompts: Prompts, progress: Progress | None = None, reference: "Reference | None" = None
) -> list[dict]:
    """`answered` for the clean and for the corrupt prompts.

    `beyond` of the clean row is by how much its share of right answers is higher, with the paired 95 % interval over prompts.
    Beside a `reference`, `kl` of the clean row is KL(reference ‖ model) in nats per answer, over the tokens that compete.
    """
    clean = sums_of(logits, prompts.clean, prompts, progress, reference)
    corrupt = sums_of(logits, prompts.corrupt, prompts, progress)
    more, places = clean[:, 0] - corrupt[:, 0], clean[:, 3]
    low, high = ratio_interval(more, places)
    beyond = {
        "beyond": float(more.sum() / places.sum()),
        "beyond_low": max(-1.0, low),
        "beyond_high": min(1.0, high),
    }
    apart = {} if reference is None else {"kl": float(clean[:, 4].sum() / places.sum())}
    return [
        {"name": "clean", **_summary(clean, prompts), **beyond, **apart},
        {"name": "corrupt", **_summary(corrupt, prompts)},
    ]


def answered(
    logits: Logits, ids: Int64[Tensor, "prompts length"], prompts: Prompts, progress: Progress | None = None
) -> dict[str, Any]:
    """How a model that reads `ids` answers what the `prompts` ask: the share of right answers (those with the largest logit) with
    its 95 % interval over prompts, the answers' mean probability, and their mean negative log probability in nats.

    Where prompts have a distance, `distances` has the same share and interval by distance, from `least` to below `most`.
    """
    return _summary(sums_of(logits, ids, prompts, progress), prompts)


@torch.no_grad()
def sums_of(
    logits: Logits,
    ids: Int64[Tensor, "prompts length"],
    prompts: Prompts,
    progress: Progress | None,
    reference: "Reference | None" = None,
) -> Float[Tensor, "prompts 5"]:
    """Per prompt: the number of right answers, the sum of the answers' probabilities and of their nats, how many are asked, and
    the sum of KL(reference ‖ model), 0 without a reference."""
    sums = []
    for part in _parts(ids):
        expected = None if reference is None else reference.options(part)
        sums.append(_sums(logits(ids[part]), prompts, part, expected))
        if progress:
            progress("behaviour (prompts)", min(part.stop, len(ids)), len(ids))
    return torch.cat(sums)


def _parts(ids: Int64[Tensor, "prompts length"]) -> list[slice]:
    """Prompts that are read together."""
    at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
    return [slice(start, start + at_once) for start in range(0, len(ids), at_once)]


class Reference:
    """A model whose answers to the clean prompts others are compared with. It reads once what takes at most KEPT bytes, and the
    rest again for each of the others."""

    def __init__(self, logits: Logits, prompts: Prompts) -> None:
        self._logits, self._prompts = logits, prompts
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def options(self, part: slice) -> Float[Tensor, "places options"]:
        """Log probabilities at the asked places of a part of the prompts, over the tokens that compete."""
        if part.start in self._kept:
            return self._kept[part.start]
        asked, ids, answers = (each[part] for each in (self._prompts.asked, self._prompts.clean, self._prompts.answers))
        found, _ = log_probabilities(self._logits(ids)[asked], answers[asked], self._prompts.among)
        if found.nbytes + sum(one.nbytes for one in self._kept.values()) <= KEPT:
            self._kept[part.start] = found
        return found


def _summary(sums: Float[Tensor, "prompts 5"], prompts: Prompts) -> dict[str, Any]:
    """What `answered` says of these sums."""
    _, probability, nats, places, _ = sums.T
    total = places.sum()
    found = {
        **share_right(sums),
        "probability": float(probability.sum() / total),
        "nats": float(nats.sum() / total),
    }
    if prompts.distance is None:
        return found
    distances = [
        {"least": least, "most": most, "prompts": int(within.sum()), **share_right(sums[within])}
        for least, most in itertools.pairwise(DISTANCES)
        if (within := (prompts.distance >= least) & (prompts.distance < most)).any()
    ]
    return {**found, "distances": distances}


def share_right(sums: Float[Tensor, "prompts 5"]) -> dict[str, float]:
    """The share of right answers and its 95 % interval over prompts, of the rows of `sums_of`."""
    right, _, _, places, _ = sums.T
    low, high = ratio_interval(right, places)
    return {
        "right": float(right.sum() / places.sum()),
        "right_low": max(0.0, low),  # a t interval may leave the range of a share
        "right_high": min(1.0, high),
    }


def log_probabilities(
    logits: Float[Tensor, "places vocabulary"], answers: Int64[Tensor, " places"], among: tuple[int, ...]
) -> tuple[Float[Tensor, "places options"], Int64[Tensor, " places"]]:
    """Log probabilities among all tokens, or only those in `among`, in float64; and the answers' columns in them."""
    if among:
        options = torch.tensor(among, device=logits.device)
        logits, answers = logits[:, options], (answers[:, None] == options).long().argmax(1)
    return logits.double().log_softmax(1), answers


def _sums(logits: Tensor, prompts: Prompts, part: slice, expected: Tensor | None) -> Float[Tensor, "prompts 5"]:
    """`sums_of` for a part of the prompts."""
    asked = prompts.asked[part]
    if not torch.isfinite(logits[asked]).all():
        raise StitchError("logits must be finite; the model gives NaN or infinity: try `dtype=fp32`.")
    options, answers = log_probabilities(logits[asked], prompts.answers[part][asked], prompts.among)
    chosen = options.gather(1, answers[:, None])[:, 0]
    apart = torch.zeros_like(chosen) if expected is None else (expected.exp() * (expected - options)).sum(1)
    columns = [(options.argmax(1) == answers).double(), chosen.exp(), -chosen, torch.ones_like(chosen), apart]
    return chosen.new_zeros(len(asked), len(columns)).index_add_(0, asked.nonzero()[:, 0], torch.stack(columns, 1))
