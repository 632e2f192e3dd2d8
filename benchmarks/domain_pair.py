"""Two small models of disjoint domains, code and prose: does their composite have what neither has?

    python benchmarks/domain_pair.py

Trains both models (`_domain_models.py`), joins them in both directions at several pairs of layers on a mixture of both
domains, and writes own tables of each model (`stitch convert ngram`) on the same text, at the composite's FLOPs or
fewer. One JSON line per composite and text (code, prose, mixture) has the cross-entropy, FLOPs, parameters and bytes
of every row, and paired differences by document:

    a, b                 the donors
    composite            early blocks of A, seam, late blocks of B
    own tables of a, b   the donor with so many first blocks as tables that it costs no more than the composite
    average              the mean of both donors' probabilities, at the cost of both
    router               by document the donor with the lower loss on its first 32 tokens; up to there the average
    oracle               by document the donor with the lower loss on all of it: no model, a bound for routers
    line                 the donors' losses mixed in the shares that cost as much as the composite

With --swapped the architectures change sides. Finished parts are in --work and are not repeated.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from _domain_models import make
from _domains import texts
from torch import Tensor

from stitch.composite.costs import Cost, late, whole
from stitch.config import Settings
from stitch.conversions.ngrams.convert import convert_ngram
from stitch.evaluation.scores import Batch, Logits, Scores, evaluate, whole_model
from stitch.jobs.join import stitch
from stitch.models.loading import load
from stitch.text.documents import read, select
from stitch.text.windows import Windows, sample

CONTEXT = 256
ROUTED_AFTER = 32  # tokens of a document that the router reads before it decides
SITES = (("gpt2", 3, "llama", 4), ("llama", 4, "gpt2", 3), ("gpt2", 2, "llama", 2), ("llama", 2, "gpt2", 2))
AGAINST = ("a", "b", "own tables of a", "own tables of b", "average", "router", "oracle", "line")
FAMILIES = {"code": "gpt2", "prose": "llama"}
KEPT = ("results", "verdict", "alternatives", "chosen")  # of the composite's own report


@dataclass(frozen=True)
class Joined:
    """A composite of `early`'s first blocks and `late`'s last ones; both are names of a family and a domain."""

    early: str
    late: str
    layer: int
    layer_b: int

    @property
    def name(self) -> str:
        return f"{self.early}-{self.layer}-{self.late}-{self.layer_b}"


def own_tables(name: str, limit: Cost, tokens: int, work: Path) -> Path:
    """The model with as few first blocks as tables as the FLOPs of `limit` allow, fitted on the mixture. Returns its folder."""
    donor = load(work / name)
    sites = range(1, donor.depth)
    dropped = next((site for site in sites if late(donor, site, CONTEXT).flops <= limit.flops), donor.depth - 1)
    out = work / f"{name}-tables-{dropped}"
    if not out.exists():
        mixture = str(texts(work)["mixture"])
        convert_ngram(str(work / name), out, drop=dropped, tokens=tokens, held_out=16_384, text=mixture)
    return out


def composite(joined: Joined, tokens: int, held_out: int, work: Path) -> Path:
    """Joins the models on the mixture unless that is done. Returns the composite's folder."""
    out = work / joined.name
    if not out.exists():
        settings = Settings(
            model_a=str(work / joined.early), model_b=str(work / joined.late), layer=joined.layer,
            layer_b=joined.layer_b, tokens=tokens, held_out=held_out, text=str(texts(work)["mixture"]), brief=True,
        )  # fmt: skip
        stitch(settings, out)
    return out


def average(a: Logits, b: Logits) -> Logits:
    """Log-probabilities of the mean of both models' probabilities."""
    half = torch.tensor(0.5).log()
    return lambda batch: torch.logaddexp(a(batch).log_softmax(-1), b(batch).log_softmax(-1)) + half


def router(a: Logits, b: Logits, windows: Windows) -> Logits:
    """By document of a window, the model with the lower loss on its first ROUTED_AFTER tokens; up to there the average."""

    def logits(batch: Batch) -> Tensor:
        both = torch.stack([model(batch).log_softmax(-1) for model in (a, b)])
        mixed = both.logsumexp(0) - torch.tensor(2.0).log()
        ahead = batch.ids[:, 1:, None].expand(2, -1, -1, -1)
        losses = -both[:, :, :-1].gather(-1, ahead)[..., 0]
        for row, owner in enumerate(windows.document[batch.rows][:, 1:]):
            for document in owner.unique():
                places = (owner == document).nonzero()[:, 0]
                known, rest = places[:ROUTED_AFTER], places[ROUTED_AFTER:]
                chosen = int(losses[:, row, known].sum(1).argmin())
                mixed[row, rest] = both[chosen, row, rest]
        return mixed

    return logits


def oracle(a: Scores, b: Scores) -> Scores:
    return Scores(torch.minimum(a.nats, b.nats), None, None, a.tokens)


def line(a: Scores, b: Scores, costs: dict[str, Cost]) -> Scores:
    """A share of the tokens read by B and the others by A, so that the mean cost is the composite's."""
    a_flops, b_flops = costs["a"].flops, costs["b"].flops
    share = min(1.0, max(0.0, (costs["composite"].flops - a_flops) / (b_flops - a_flops)))
    return Scores(a.nats + share * (b.nats - a.nats), None, None, a.tokens)


def lines(joined: Joined, tokens: int, held_out: int, work: Path) -> Iterator[dict]:
    """One line per text."""
    folder = composite(joined, tokens, held_out, work)
    limit = whole(load(folder), CONTEXT)
    folders = {"a": work / joined.early, "b": work / joined.late, "composite": folder} | {
        f"own tables of {side}": own_tables(name, limit, tokens, work)
        for side, name in (("a", joined.early), ("b", joined.late))
    }
    models = {name: load(path, dtype=torch.float32) for name, path in folders.items()}
    costs = {name: whole(load(path), CONTEXT) for name, path in folders.items()}
    costs["average"] = costs["a"] + costs["b"]
    kept = {name: cost.to_dict() for name, cost in costs.items()}
    kept["router"] = {name: kept["average"][name] for name in ("parameters", "bytes")}  # FLOPs depend on the documents
    report = json.loads((folder / "report.json").read_text().replace(f"{work}/", ""))  # names, without their folder
    for text, file in texts(work).items():
        documents = select(read(str(file)), "report")
        windows = sample(documents, models["b"].tokenizer, CONTEXT, held_out)
        rows: dict[str, Logits] = {name: whole_model(model.net) for name, model in models.items()}
        a, b = rows["a"], rows["b"]
        rows |= {"average": average(a, b), "router": router(a, b, windows)}
        scores = evaluate(rows, windows, vocabulary=models["b"].config.vocab_size)
        scores["oracle"] = oracle(scores["a"], scores["b"])
        scores["line"] = line(scores["a"], scores["b"], costs)
        yield {
            "benchmark": "domain_pair",
            "a": joined.early,
            "b": joined.late,
            "site": {"a": joined.layer, "b": joined.layer_b},
            "text": text,
            "fit": tokens,
            "tokens": windows.tokens,
            "documents": scores["a"].documents,
            "effective_documents": scores["a"].effective_documents,
            "results": [found.row(name) | kept.get(name, {}) for name, found in scores.items()],
            "differences": [difference(scores, "composite", other) for other in AGAINST],
            "report": {name: report[name] for name in KEPT if name in report} if text == "mixture" else None,
        }


def difference(scores: dict[str, Scores], name: str, minus: str) -> dict:
    return {"name": name, "minus": minus, **scores[name].difference(scores[minus])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000, help="Tokens of the mixture to fit on.")
    parser.add_argument("--held-out", type=int, default=65_536, help="Tokens of each text to report on.")
    parser.add_argument("--swapped", action="store_true", help="A Llama of code and a GPT-2 of prose.")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/domain_pair"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    families = dict(zip(FAMILIES, reversed(FAMILIES.values()), strict=True)) if given.swapped else FAMILIES
    names = {family: make(family, domain, given.work).name for domain, family in families.items()}
    for first, layer, last, layer_b in SITES:
        joined = Joined(names[first], names[last], layer, layer_b)
        for line in lines(joined, given.tokens, given.held_out, given.work):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
