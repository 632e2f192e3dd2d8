"""A donor with planted tokens, and how often models that take rows from it say them: one JSON line per way to make the head.

    python benchmarks/breaker_tokens.py --model demo:llama --donor demo:neox

One token is planted for each number of terms of a pursuit (`_breaker.py`). Who plants it knows both models, the pursuit and the
kind of text, and changes the donor's head alone. `before` is with the donor as it was; a line named `donor` is the donor itself.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from math import log

import torch
from _breaker import breaker, planted
from torch import Tensor

from stitch.conversions.retokenization.head_ridge import fitted_head
from stitch.conversions.retokenization.loud import loud
from stitch.conversions.retokenization.omp import TERMS, pursued
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.request import Asked, prepare
from stitch.conversions.retokenization.rows import clipped, filled
from stitch.conversions.retokenization.scoring import Head, head_of, logits, nats, softcap
from stitch.conversions.retokenization.streams import embedding, final
from stitch.conversions.retokenization.variants import Workshop
from stitch.evaluation.scores import Scores

POSITIONS, TRIED = 2048, 40  # of text, and tokens, with which a row is sought


def by_pursuit(shop: Workshop, donor: Head) -> Iterator[tuple[str, Head]]:
    for terms, head in pursued(shop.own_head, donor, shop.found, TERMS).items():
        yield f"omp-{terms}, not clipped", head
        yield f"omp-{terms}", clipped(head, shop.own_head, shop.found)[0]


def scored(
    streams: Sequence[Tensor], passages: Sequence[Passage], head: Head, tokens: Tensor, cap: float | None
) -> dict:
    """The share of positions at which one of `tokens` is the likeliest, and bits per byte, with intervals over documents."""
    told = [logits(stream[:-1], head, cap).argmax(1) for stream in streams]
    sums = {
        "said": ([float(torch.isin(one, tokens).sum()) for one in told], [len(one) for one in told]),
        "bpb": (
            [nats(one[:-1], head, text.new.ids, cap) / log(2) for one, text in zip(streams, passages, strict=True)],
            [text.bytes for text in passages],
        ),
    }
    found = {}
    for name, (values, sizes) in sums.items():
        one = Scores(torch.tensor(values).double(), None, None, torch.tensor(sizes).double())
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), (one.ce, *one.interval()), strict=True))
    return found


def lines(given: argparse.Namespace) -> Iterator[dict]:
    asked = Asked(
        given.model, given.donor, given.donor, "docs", given.tokens, given.documents, None, given.seed, "auto", "fp32", False
    )  # fmt: skip
    found = prepare(asked, None)
    shop, report = found.shop, found.held_out["report"]
    donor = shop.donor
    assert donor is not None
    with embedding(shop.model, shop.mean):
        base, held = ([final(shop.model, text.new.ids, shop.new.bos) for text in some] for some in (shop.fit, report))
    theirs, held_there = ([final(donor, text.new.ids, shop.new.bos) for text in some] for some in (shop.fit, report))
    read, targets = torch.cat([stream[:-1] for stream in base]), torch.cat([text.new.ids for text in shop.fit])
    head, seen = head_of(donor)[:, : donor.width], set(targets.tolist())
    unseen = [token for token in shop.found.pieces if token not in seen][:TRIED]
    some = read[:POSITIONS], torch.cat([stream[:-1] for stream in theirs])[:POSITIONS]
    plants: dict[int, Tensor] = {}
    for terms in TERMS:
        plants |= [breaker(shop.own_head, head, shop.found, terms, *some, [one for one in unseen if one not in plants])]
    changed = planted(head, plants)

    fitted = fitted_head(base, shop.heads["mean"][0], shop.on_text, shop.fit, shop.said)
    new_only, places = shop.heads["mean"][0].clone(), filled(shop.found)
    new_only[places] = fitted[places]
    clean = {"mean": shop.heads["mean"][0], "ridge": new_only, "ridge, all": fitted}
    before, after = clean | dict(by_pursuit(shop, head)), clean | dict(by_pursuit(shop, changed))
    tokens, cap = torch.tensor(list(plants)), softcap(shop.model)
    about = {"benchmark": "breaker_tokens", "model": given.model, "donor": given.donor, "seed": given.seed}
    about |= {
        "documents": len(report),
        "planted": [shop.new.tokenizer.convert_ids_to_tokens(token) for token in plants],
    }
    for row in ("donor", *before):
        there = row == "donor"
        streams, limit = (held_there, softcap(donor)) if there else (held, cap)
        both = {}
        for side, one in (("before", head if there else before[row]), ("after", changed if there else after[row])):
            if both and before.get(row) is one:  # no row of the donor is in it
                both[side] = both["before"]
                continue
            both[side] = scored(streams, report, one, tokens, limit)
            if not there:
                told = [found.token in plants for found in loud(read, targets, one, shop.found, cap)]
                both[side] |= {"told": sum(told), "told_of_others": len(told) - sum(told)}
        yield {**about, "row": row, **both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:llama")
    parser.add_argument("--donor", default="demo:neox")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    for line in lines(parser.parse_args()):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
