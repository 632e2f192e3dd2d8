"""How much of a behaviour a model has: its answers to clean prompts beside those to corrupt ones and to chance."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stitch.activations import Progress
from stitch.circuits.spec import Prompts, prompts
from stitch.compare import load_any
from stitch.config import torch_device, torch_dtype
from stitch.errors import StitchError, UsageError
from stitch.evaluate import bootstrap
from stitch.sources import resolve

PROMPTS_AT_ONCE = 16
COLUMNS = ["", "right", "95 % interval", "probability", "nats"]

Logits = Callable[[Int64[Tensor, "prompts length"]], Float[Tensor, "prompts length vocabulary"]]


def score_model(
    model: str,
    behaviour: str,
    *,
    count: int = 256,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Scores a causal language model of any family on `count` prompts of a behaviour (its name, or a file of prompts).

    Raises: UsageError as `prompts`, or when the model is too short for them; StitchError when its weights fail.
    """
    source = resolve(model, progress=progress)
    found = load_any(source, torch_dtype(dtype), torch_device(device), trust_remote_code)
    asked = prompts(behaviour, found.tokenizer, count=count, seed=seed)
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
        "results": score(logits, asked, progress),
    }


@torch.no_grad()
def score(logits: Logits, of: Prompts, progress: Progress | None = None) -> list[dict]:
    """Of the clean and of the corrupt prompts: the share of answers that are the likeliest, with a 95 % interval by prompt; their
    mean probability; and their mean −log probability in nats."""
    rows = []
    for number, (name, ids) in enumerate((("clean", of.clean), ("corrupt", of.corrupt))):
        sums = []
        for start in range(0, len(ids), PROMPTS_AT_ONCE):
            part = slice(start, start + PROMPTS_AT_ONCE)
            sums.append(_sums(logits(ids[part]), of, part))
            if progress:
                progress("behaviour (prompts)", number * len(ids) + min(part.stop, len(ids)), 2 * len(ids))
        right, probability, nats, places = torch.cat(sums).T
        low, high = bootstrap(right, places)
        total = places.sum()
        rows.append(
            {
                "name": name,
                "right": float(right.sum() / total),
                "right_low": low,
                "right_high": high,
                "probability": float(probability.sum() / total),
                "nats": float(nats.sum() / total),
            }
        )
    return rows


def _sums(logits: Tensor, of: Prompts, part: slice) -> Float[Tensor, "prompts 4"]:
    """Per prompt: right answers, their probabilities, their nats, and how many are asked for."""
    asked, answers = of.asked[part], of.answers[part]
    if not torch.isfinite(logits[asked]).all():
        raise StitchError("logits must be finite; the model gives NaN or infinity: try --dtype fp32.")
    if of.among:
        among = torch.tensor(of.among)
        logits, answers = logits[..., among], (answers[..., None] == among).long().argmax(-1)
    log_probability = logits.double().log_softmax(-1)
    nats = -log_probability.gather(2, answers[..., None])[..., 0]
    right = log_probability.argmax(-1) == answers
    columns = [right.double(), (-nats).exp(), nats, torch.ones_like(nats)]
    return torch.stack([(column * asked).sum(1) for column in columns], 1)


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title."""
    rows = [
        [
            row["name"],
            f"{row['right']:.1%}",
            f"{row['right_low']:.1%} – {row['right_high']:.1%}",
            f"{row['probability']:.3f}",
            f"{row['nats']:.3f}",
        ]
        for row in report["results"]
    ]
    rows.append(["chance", f"{report['chance']:.1%}", "", f"{report['chance']:.3f}", ""])
    title = f"{report['model']}: {report['behaviour']}, {report['prompts']:,} prompts, {report['places']:,} tokens asked for"
    return COLUMNS, rows, title
