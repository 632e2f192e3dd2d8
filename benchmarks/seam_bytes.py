"""Cross-entropy of a composite against the bytes of its seam, beside both models with n-gram tables in as many bytes.

    python benchmarks/seam_bytes.py > build/seam_bytes.jsonl
    python benchmarks/seam_bytes.py --percent 10 --tokens 5000 --context 64 > build/regimes.jsonl

For the embedded pair in both directions a JSON line per limit, in percent of the bytes of both halves. Everything is
fitted once and then cut to each limit. The translation is chosen on the sweep split among those that read no SAE. Every
row is scored on the same report windows; differences are paired.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stitch.activations.paired import Paired
from stitch.composite.compose import compose
from stitch.composite.costs import Cost, Costs
from stitch.config import CompleteSettings, Settings
from stitch.evaluation.scores import Logits, Scores, evaluate, whole_model
from stitch.evaluation.scoring import choose, stage
from stitch.frontier.alternative import Means
from stitch.frontier.own_tables import first_site_within, fitted_tables, within_bytes
from stitch.jobs.pair.models import load_pair
from stitch.jobs.pair.settings import complete
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.text import read_windows
from stitch.jobs.pair.translations import pack_pair
from stitch.models.model import Model
from stitch.text.documents import Split
from stitch.translation import rows as registry
from stitch.translation.available import free_inputs
from stitch.translation.evidence import Evidence, Options
from stitch.translation.fit import Fitted, translate
from stitch.translation.token_tables import token_tables
from stitch.translation.types import Translation

DIRECTIONS = (("demo:gpt2", "demo:llama", 3), ("demo:llama", "demo:gpt2", 4))
PERCENT = (0, 1, 3, 10, 30, 100, 400)
LIFTS = {row.name for row in registry.ROWS if set(row.reads) & set(registry.LIFTS)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--context", type=int, help="Tokens of a window. Default: as for `stitch join`.")
    parser.add_argument("--percent", type=float, action="append", help=f"May be repeated. Default: {PERCENT}.")
    given = parser.parse_args()
    for a_name, b_name, layer in DIRECTIONS:
        settings = Settings(model_a=a_name, model_b=b_name, layer=layer, tokens=given.tokens, context=given.context)
        a, b, _ = load_pair(settings)
        with tempfile.TemporaryDirectory() as folder:
            for line in curve(complete(settings, a, b), a, b, given.percent or PERCENT, Path(folder)):
                print(json.dumps(line), flush=True)


def curve(settings: CompleteSettings, a: Model, b: Model, limits: Sequence[float], folder: Path) -> Iterator[dict]:
    """A line per limit."""
    windows = read_windows(settings, a, b)
    paired: dict[Split, Paired] = {
        split: harvest_pair(settings, a, b, found, folder / split) for split, found in windows.items()
    }
    fitted, costs = translations(settings, a, b, paired), Costs(a, b, settings.context)
    tables: dict[tuple[str, int], Translation | None] = {}
    for percent in limits:
        asked = dataclasses.replace(settings, seam_bytes=percent)
        packed = pack_pair(asked, costs, fitted, paired["fit"])
        chosen = choose(asked, fitted, packed, stage(settings, a, b, paired["sweep"]), None)
        cost = costs.composite(*settings.sites, packed[chosen])
        means = Means(
            limit=cost, windows=windows, context=settings.context, ngrams=settings.ngrams, routes=0, seed=0,
            memory=settings.memory, scratch=folder / "alternatives",
        )  # fmt: skip
        rows: dict[str, Logits] = {"a": whole_model(a.net), "b": whole_model(b.net)}
        rows["composite"] = whole_model(compose(a, b, *settings.sites, packed[chosen]))
        sizes = {"a": costs.whole_source, "b": costs.whole_target, "composite": cost}
        for name, model in (("own-tables", b), ("a-own-tables", a)):
            site = first_site_within(model, means)
            if site is None:
                continue
            if (name, site) not in tables:
                tables[name, site] = fitted_tables(model, site, means)
            if (known := tables[name, site]) is not None:
                found = within_bytes(model, site, known, means)
                rows[name], sizes[name] = found.logits, found.cost
        scores = evaluate(rows, windows["report"], vocabulary=b.config.vocab_size, memory=settings.memory)
        yield {
            "benchmark": "seam_bytes", "source": a.name, "target": b.name, "percent": percent,
            "chosen": registry.row(chosen).short, "context": settings.context,
            "tokens": windows["report"].tokens, "documents": scores["b"].documents, "fitted": windows["fit"].tokens,
            **{name: {**described(scores, name), **millions(sizes[name])} for name in rows},
        }  # fmt: skip


def translations(settings: CompleteSettings, a: Model, b: Model, paired: dict[Split, Paired]) -> Fitted:
    """Every translation that reads no SAE, unpacked."""
    fit, held_out = paired["fit"], paired["sweep"]
    tokens = token_tables(a, b, fit.a.windows, held_out.a.windows, fit.site_b)
    evidence = Evidence(
        fit=fit, held_out=held_out, inputs=free_inputs(a, b, fit, tokens),
        first=fit.b.read(0, fit.site_b)[0, 0].float(), vocabulary=b.config.vocab_size,
    )  # fmt: skip
    options = Options(ngrams=settings.ngrams, routes=settings.routes, seed=0, chunk=2048, memory=settings.memory)
    return translate(evidence, options, lambda name: name.startswith("translation:") and name not in LIFTS)


def millions(cost: Cost) -> dict:
    return {**cost.to_dict(), "flops_m": cost.flops / 1e6, "bytes_m": cost.bytes / 1e6}


def described(scores: dict[str, Scores], name: str) -> dict:
    low, high = scores[name].interval()
    found = {"ce": scores[name].ce, "ce_low": low, "ce_high": high}
    if name != "composite":
        low, high = scores["composite"].interval(minus=scores[name])
        found |= {"behind": scores["composite"].ce - scores[name].ce, "behind_low": low, "behind_high": high}
    return found


if __name__ == "__main__":
    main()
