"""SAEs of one width or of several widths together, as features for regression. One JSON line per seed and direction.

SAEs of A's stream at 2, 4, 8 and 16 times its width are trained on the same tokens, and their codes are concatenated.
The controls are one SAE of the greatest width, and as many untrained features: random ReLU, Gaussian bumps, exemplars.
Each is measured together with A's stream, some also with all inputs that cost almost nothing (`free`).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _pair import Pair, lifted, prepare, print_lines, row
from torch import Tensor

from sae.config import SAEConfig
from sae.convert import to_dictionary
from sae.schedule import steps_for
from sae.trainer import train_sites
from sae.types import Dictionary
from stitch.translation import lifts
from stitch.translation.rows import FREE

TIMES = (2, 4, 8, 16)  # multiples of the stream's width
BATCH = 1024
MOST = sum(TIMES)
ALL = "sae " + "+".join(f"x{n}" for n in TIMES)
WITH_FREE = ("sae x8", "sae x16", ALL, f"random-relu x{MOST}", f"rbf x{MOST}")


def trained(pair: Pair, seed: int) -> dict[int, Dictionary]:
    """SAEs of A's stream by width, all trained in one pass over the same batches."""
    fit = pair.paired["fit"]
    steps = steps_for(fit.tokens, 2.0, BATCH)
    configs = {str(n): SAEConfig(features=n * fit.width_a, steps=steps, batch_size=BATCH, seed=seed) for n in TIMES}

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for x, _ in fit.batches(BATCH, seed=seed, group=4, start=start):
            yield dict.fromkeys(configs, x)

    found = train_sites(configs, dict.fromkeys(configs, fit.width_a), batches)
    return {int(name): to_dictionary(sae) for name, sae in found.items()}


def together(parts: list[Dictionary]) -> Dictionary:
    """One dictionary with the features of several, each with its own threshold."""

    def joined(name: str, axis: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], axis)

    assert all(part.activation == "jumprelu" for part in parts)
    return replace(
        parts[0], encoder=joined("encoder", 1), encoder_bias=joined("encoder_bias"), threshold=joined("threshold"),
        decoder=joined("decoder"),
    )  # fmt: skip


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    fit = pair.paired["fit"]
    saes = trained(pair, seed)
    sample = fit.shard(0)[0].float()[:16_384]
    dictionaries = {f"sae x{n}": sae for n, sae in saes.items()}
    dictionaries["sae x2+x4"] = together([saes[2], saes[4]])
    dictionaries[ALL] = together(list(saes.values()))
    generator = torch.Generator().manual_seed(seed)
    dictionaries |= {
        f"random-relu x{MOST}": lifts.random_relu(sample, MOST * fit.width_a, generator),
        f"rbf x{MOST}": lifts.rbf(sample, MOST * fit.width_a, generator),
        f"exemplars x{MOST}": lifts.exemplars(sample, MOST * fit.width_a, 32, generator),
    }
    rows = {name: lifted(pair, name, dictionary) for name, dictionary in dictionaries.items()}
    rows |= {f"{name}, free": lifted(pair, name, dictionaries[name], ("x", *FREE)) for name in WITH_FREE}
    rows = {name: translation.starting_with(pair.first()) for name, translation in rows.items()}
    scores = pair.scores(rows)
    against = [(ALL, name) for name in dictionaries if name != ALL] + [("sae x2+x4", "sae x8")]
    against += [(f"{ALL}, free", f"{name}, free") for name in WITH_FREE if name != ALL]
    return {
        "benchmark": "lifts", "direction": direction, "seed": seed, "tokens": fit.tokens,
        "results": [row(scores, name) for name in scores],
        "multiply_adds": {name: translation.multiply_adds for name, translation in rows.items()},
        "differences": [row(scores, name, other) for name, other in against],
    }  # fmt: skip


if __name__ == "__main__":
    print_lines(run, tokens=200_000)
