"""Shared setup: the embedded pair in one direction, its activations and SAEs, kept on disk between runs."""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sae.types import Dictionary
from stitch.activations.paired import Paired
from stitch.config import CompleteSettings, Settings
from stitch.evaluation import scoring
from stitch.evaluation.scores import Logits, Scores, evaluate
from stitch.evaluation.stage import Stage
from stitch.features.saes import SAEs
from stitch.jobs.pair.features import train_pair
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.text import read_windows
from stitch.models.model import Model
from stitch.regression.moments import Variable, accumulate
from stitch.regression.ridge import ridge
from stitch.text.documents import Split
from stitch.translation.available import available
from stitch.translation.evidence import LEAST_SQUARES_TOKENS
from stitch.translation.groups import Sizes, needed
from stitch.translation.inputs import Input, Lift, Stream, reach, streams
from stitch.translation.least_squares import from_ridge
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

DIRECTIONS = {"gpt2-llama": ("demo:gpt2", "demo:llama", 3), "llama-gpt2": ("demo:llama", "demo:gpt2", 4)}


@dataclass(frozen=True)
class Pair:
    """Two models, paired tokens of each split, and the SAEs of both sites."""

    settings: CompleteSettings
    a: Model
    b: Model
    paired: dict[Split, Paired]
    saes: SAEs

    def stage(self, paired: Paired | None = None) -> Stage:
        return scoring.stage(self.settings, self.a, self.b, paired or self.paired["report"])

    @cached_property
    def inputs(self) -> dict[str, Input]:
        """The inputs that translations may read, by name."""
        fit, held_out = self.paired["fit"], self.paired["sweep"]
        tokens = token_tables(self.a, self.b, fit.a.windows, held_out.a.windows, fit.site_b)
        return available(self.a, self.b, fit, self.saes, self.settings.seed, tokens=tokens)

    def first(self) -> torch.Tensor:
        """B's residual stream at the BOS token."""
        fit = self.paired["fit"]
        return fit.b.read(0, fit.site_b)[0, 0].float()

    def scores(self, translations: dict[str, Translation], paired: Paired | None = None) -> dict[str, Scores]:
        """Scores of every translation and of both models on the same tokens, by default the report split."""
        stage, first = self.stage(paired), self.first()
        rows: dict[str, Logits] = {"a": stage.whole(self.a.net), "b": stage.whole(self.b.net)}
        rows |= {name: stage.translated(found.starting_with(first)) for name, found in translations.items()}
        return evaluate(rows, stage.windows, vocabulary=stage.vocabulary, reference=rows["b"])


def lifted(pair: Pair, name: str, dictionary: Dictionary, others: tuple[str, ...] = ("x",)) -> Translation:
    """Ridge on a dictionary's codes, with a λ of its own, and on the named other inputs of the main job."""
    fit, held_out = pair.paired["fit"], pair.paired["sweep"]
    read: dict[str, Input] = {"lift": Lift(fit.site_a, dictionary)}
    read |= {other: pair.inputs[other] for other in others if other in pair.inputs}

    def variables(paired: Paired) -> Iterator[dict[str, Variable]]:
        for tokens in paired.with_history(streams(read.values()), reach(read.values())):
            yield {**{one: found.columns(tokens) for one, found in read.items()}, "target": tokens.target}

    bounded = {one for one, found in read.items() if not isinstance(found, Stream)}
    sample = fit.sample(LEAST_SQUARES_TOKENS, pair.settings.seed)
    implicit = Sizes.of(read, next(variables(held_out)), pair.settings.memory // 2).implicit
    moments = accumulate(variables(sample), needed(tuple(read)), bounded, implicit=implicit)
    moments_held = accumulate(
        variables(held_out), needed(tuple(read)), bounded, implicit=implicit, sums_of_single=torch.float32
    )
    found = ridge(moments, moments_held, tuple(read), apart="lift")
    return from_ridge(f"lift:{name}", found, read)


def trained_saes(seed: int, work: Path) -> dict[str, Path]:
    """The SAEs of both models for one seed, by model. They are trained on a million tokens when first needed."""
    a_name, b_name, layer = DIRECTIONS["gpt2-llama"]
    place = work / f"saes-{seed}"
    folders = {a_name: place / "sae-a", b_name: place / "sae-b"}
    if not all(folder.exists() for folder in folders.values()):
        settings = Settings(model_a=a_name, model_b=b_name, layer=layer, tokens=1_000_000, held_out=16_384, seed=seed)
        a, b, sources = load_pair(settings)
        settings = complete(settings, a, b)
        paired = _harvest(settings, a, b, work / "for-saes")
        train_pair(settings, a, b, paired, place, sources)
    return folders


def prepare(direction: str, *, seed: int, tokens: int, held_out: int, work: Path) -> Pair:
    """Harvests activations and trains SAEs, unless `work` holds them already."""
    a_name, b_name, layer = DIRECTIONS[direction]
    folders = trained_saes(seed, work)
    settings = Settings(
        model_a=a_name, model_b=b_name, layer=layer, tokens=tokens, held_out=held_out, seed=seed,
        sae_a=str(folders[a_name]), sae_b=str(folders[b_name]),
    )  # fmt: skip
    a, b, sources = load_pair(settings)
    settings = complete(settings, a, b)
    paired = _harvest(settings, a, b, work / f"{direction}-{tokens}-{held_out}")
    saes = train_pair(settings, a, b, paired, work, sources)
    return Pair(settings, a, b, paired, saes)


def _harvest(settings: CompleteSettings, a: Model, b: Model, folder: Path) -> dict[Split, Paired]:
    windows = read_windows(settings, a, b)
    return {split: harvest_pair(settings, a, b, found, folder / split) for split, found in windows.items()}


def row(scores: dict[str, Scores], name: str, minus: str | None = None) -> dict:
    """CE with its interval, or a paired difference with its interval."""
    if minus is None:
        low, high = scores[name].interval()
        return {"name": name, "ce": scores[name].ce, "ce_low": low, "ce_high": high}
    return {"name": name, "minus": minus, **scores[name].difference(scores[minus])}


def print_lines(run: Callable[..., dict], tokens: int) -> None:
    """Prints a JSON line of `run(direction, seed, tokens, held_out, work)` for every seed and direction on the
    command line.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--direction", action="append", choices=DIRECTIONS)
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--held-out", type=int, default=32_768)  # of about a hundred documents
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    for seed in range(given.seeds):
        for direction in given.direction or DIRECTIONS:
            print(json.dumps(run(direction, seed, given.tokens, given.held_out, given.work)), flush=True)
