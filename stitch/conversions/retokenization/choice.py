"""Every row scored on held-out documents, and the one that is written."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stitch.conversions.retokenization.loud import Loud, loud
from stitch.conversions.retokenization.passages import Passage
from stitch.conversions.retokenization.request import Given
from stitch.conversions.retokenization.rows import Rows
from stitch.conversions.retokenization.scoring import Head, head_of, score
from stitch.conversions.retokenization.streams import embedding, final
from stitch.evaluation.scores import Scores
from stitch.progress import Progress


@dataclass(frozen=True)
class Best:
    """The row that is written, its embedding and head, how many rows of every embedding and head were clipped, and which made
    rows of this head are said far more often than the text has their tokens."""

    name: str
    rows: tuple[Rows, Head]
    clipped: dict[str, int]
    loud: list[Loud]


def scored(given: Given, progress: Progress | None) -> tuple[dict[str, Scores], Best]:
    """The scores of all rows on the report split, and the row with the fewest bits per byte on the sweep split.

    Nulls are scored on the report split alone, as they are never chosen.
    """
    shop = given.shop
    documents = [(passage.own.ids, passage.bytes) for passage in given.held_out["report"]]
    scores = score(
        shop.model, shop.own_rows, {"model": head_of(shop.model)}, documents, shop.own.bos,
        stage="evaluation of the model", progress=progress,
    )  # fmt: skip
    clipped = {f"head {name}": count for name, (_, count) in shop.heads.items()}
    best, least = None, float("inf")
    for behind in shop.variants():
        clipped[f"embedding {behind.name}"] = behind.clipped
        found = {
            split: score(
                shop.model,
                behind.rows,
                behind.heads,
                _new(part),
                shop.new.bos,
                stage=f"evaluation behind {behind.name}, {split} split",
                progress=progress,
            )
            for split, part in given.held_out.items()
            if split == "report" or not behind.is_null
        }
        scores |= found["report"]
        for name, swept in found.get("sweep", {}).items():
            if swept.ce < least:
                best, least = (name, (behind.rows, behind.heads[name])), swept.ce
    assert best is not None
    return scores, Best(*best, clipped, _loud(given, *best[1]))


def _loud(given: Given, rows: Rows, head: Head) -> list[Loud]:
    """On the text that statistics are taken on."""
    shop = given.shop
    with embedding(shop.model, rows):
        read = torch.cat([final(shop.model, passage.new.ids, shop.new.bos)[:-1] for passage in shop.fit])
    return loud(read, torch.cat([passage.new.ids for passage in shop.fit]), head, shop.found, shop.said.cap)


def _new(passages: Sequence[Passage]) -> list:
    return [(passage.new.ids, passage.bytes) for passage in passages]
