"""The report of `stitch retokenize`: its dict, its table and footnotes, the page and the model card.

    {"conversion": "retokenize", "model": "smollm2", "tokenizer": "gemma3", "title": …, "made": …, "chosen": "mean / ridge, all",
     "vocabulary": {"size", "shared", "special", "pieces", "unknown"}, "tied": false, "clipped": {rows by embedding and head},
     "loud": [{"token", "said", "share"}, …], rows of the head that are said far more often than the text has their tokens,
     "lost": share of bytes, "coinciding": share of token ends, "context": 256, "tokens": {by split},
     "bytes": of the report split, "documents": {…},
     "results": [{"name", "bpb", "bpb_low", "bpb_high", "nats_per_token", "tokens"}, …],
     "differences": [{"name", "minus", "bpb", "bpb_low", "bpb_high"}, …], "provenance": {…}, "recipe": {…}}

The rows are called `model`, `converted`, `EMBEDDING / HEAD`, `null:…`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from math import log

from stitch.conversions.retokenization.choice import Best
from stitch.conversions.retokenization.loud import TIMES
from stitch.conversions.retokenization.omp import AFFORDABLE, TERMS
from stitch.conversions.retokenization.request import Given
from stitch.conversions.retokenization.variants import Workshop
from stitch.evaluation.documents import counted, phrase, warning
from stitch.evaluation.scores import Scores
from stitch.files.folders import to_json
from stitch.files.markdown import loading_example
from stitch.files.recipe import recipe
from stitch.models.provenance import described, hash_of, surroundings
from stitch.pages.card import page_and_card
from stitch.pages.conversion import BITS, conversion_page
from stitch.report.notes import text_notes
from stitch.report.readme import ModelCard

COLUMNS = ["", "bits/byte", "95 % interval", "nats/token"]
SHOWN = 5  # tokens that a note names
COMPARED = ("mean / first", "mean / mean", "omp-8", "omp-64")  # rows as others make them; nulls are compared with too


def assemble(given: Given, scores: dict[str, Scores], best: Best, *, tied: bool) -> dict:
    """report.json."""
    asked, shop = given.asked, given.shop
    scores = {"model": scores["model"], "converted": scores[best.name], **scores}
    read = {"model": sum(len(passage.own.ids) for passage in given.held_out["report"])}
    new = {split: sum(len(passage.new.ids) for passage in part) for split, part in given.held_out.items()}
    compared = [name for name in scores if name == "model" or name in COMPARED or name.startswith("null:")]
    models = {"model": (shop.model, given.sources["model"])}
    if shop.donor is not None:
        models["donor_model"] = (shop.donor, given.sources["donor_model"])
    provenance = {**surroundings({**asdict(asked), "context": given.context}, models), "text": given.text.to_dict()}
    provenance["models"]["tokenizer"] = described(given.sources["tokenizer"])
    provenance["tokenizer_sha256"] = hash_of(shop.new.tokenizer)
    report = {
        "conversion": "retokenize",
        "model": asked.model,
        "tokenizer": asked.tokenizer,
        "title": f"{asked.model} with the tokenizer of {asked.tokenizer}",
        "chosen": best.name,
        "vocabulary": {
            "size": shop.found.size, "shared": shop.found.shared, "special": len(shop.found.new) - shop.found.shared,
            "pieces": len(shop.found.pieces), "unknown": shop.found.unknown,
        },
        "tied": tied,
        "was_tied": bool(shop.model.config.tie_word_embeddings),
        "clipped": best.clipped,
        "loud": [
            {"token": shop.new.tokenizer.convert_ids_to_tokens(one.token), "said": one.said, "share": one.share}
            for one in best.loud
        ],
        "lost": given.lost,
        "coinciding": given.coinciding,
        "context": given.context,
        "tokens": {"fit": sum(len(passage.own.ids) for passage in shop.fit), **new},
        "bytes": sum(passage.bytes for passage in given.held_out["report"]),
        "documents": counted(scores["model"]),
        "results": [_row(name, found, read.get(name, new["report"])) for name, found in scores.items()],
        "differences": [_difference(scores, "converted", name) for name in compared],
        "provenance": provenance,
        "recipe": recipe("retokenize", provenance),
    }  # fmt: skip
    return {**report, "made": _made(report), "notes": [*_notes(report), *left_out(given.shop)]}


def _row(name: str, found: Scores, tokens: int) -> dict:
    low, high = found.interval()
    nats = float(found.nats.sum()) * log(2) / tokens
    return {"name": name, "bpb": found.ce, "bpb_low": low, "bpb_high": high, "nats_per_token": nats, "tokens": tokens}


def _difference(scores: dict[str, Scores], name: str, minus: str) -> dict:
    return {"name": name, "minus": minus, **scores[name].difference(scores[minus], "bpb")}


def _made(report: dict) -> str:
    found = report["vocabulary"]
    return (
        f"{report['model']} reading the {found['size']:,} tokens of {report['tokenizer']}. Of its embedding, rows of "
        f"{found['shared']:,} tokens with the same bytes and {found['special']:,} special ones are copied, those of "
        f"{found['pieces']:,} are made, and its head is made for it ({report['chosen']}). Nothing was trained by gradients."
    )


def left_out(shop: Workshop) -> list[str]:
    """The sentence on pursuits that are too dear, if any."""
    if shop.donor is None or not (left := [f"omp-{terms}" for terms in TERMS if terms not in shop.terms]):
        return []
    return [
        f"{' and '.join(left)} {'is' if len(left) == 1 else 'are'} left out: a pursuit of {len(shop.found.pieces):,} tokens "
        f"among {shop.found.shared:,} takes more than {AFFORDABLE:.0e} FLOPs."
    ]


def _notes(report: dict) -> list[str]:
    found, tied = report["vocabulary"], report["tied"]
    notes = [
        f"converted: {report['chosen']} (embedding / head), the row with the fewest bits per byte on the sweep split.",
        f"Of {found['size']:,} tokens {found['shared']:,} have the bytes of one of {report['model']}'s, {found['special']:,} its "
        f"role; {found['pieces']:,} are several of its tokens; {found['unknown']:,} are unknown to it and get the mean row.",
        f"{report['coinciding']:.1%} of the new tokens end where one of {report['model']}'s own does. "
        f"The new tokenizer loses {report['lost']:.2%} of the bytes of the text.",
    ]
    if "bias" in report["chosen"]:
        notes.append("The bias is folded into the rows of the head where the head has none of its own.")
    if report["was_tied"]:
        notes.append(
            "Embedding and head stay one matrix." if tied else
            f"The embedding is no longer tied to the head, as their rows differ: {report['model']} has one matrix for both."
        )  # fmt: skip
    if clipped := {name: count for name, count in report["clipped"].items() if count}:
        told = ", ".join(f"{count:,} of {name}" for name, count in clipped.items())
        notes.append(f"Rows shortened to the length of the longest shared one: {told}.")
    return [*notes, *loud_note(report["loud"])]


def loud_note(found: Sequence[dict]) -> list[str]:
    """The warning about rows of the head that are said far too often, if any; the loudest come first."""
    if not found:
        return []
    told = ", ".join(f"{one['token']!r} ({one['said']:.1%}, text {one['share']:.2%})" for one in found[:SHOWN])
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return [
        f"Warning: rows of the head that were made are said more than {TIMES} times as often as the text has their tokens: "
        f"{told}{more}. They are bad, or the donor was made so that they are: see what the model writes before you use it, or "
        "leave `donor_model` out."
    ]


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the result table."""
    rows = [
        [
            row["name"], f"{row['bpb']:.4f}", f"{row['bpb_low']:.3f} – {row['bpb_high']:.3f}", f"{row['nats_per_token']:.4f}",
        ]
        for row in report["results"]
    ]  # fmt: skip
    scored = f"{report['bytes']:,} held-out bytes{phrase(report)}, each at most {report['context']} tokens"
    return COLUMNS, rows, f"{report['title']}; {scored}, bits per byte"


def footnotes(report: dict) -> list[str]:
    """The sentences below the table."""
    return [*report["notes"], *text_notes(report), *warning(report), *map(_sentence, report["differences"])]


def _sentence(one: dict) -> str:
    found = f"{one['bpb']:+.4f} bits per byte ({one['bpb_low']:+.4f} to {one['bpb_high']:+.4f}, paired)"
    return f"{one['name']} − {one['minus']}: {found}."


def files_of(report: dict, *, remote_code: bool) -> dict[str, bytes]:
    """report.json, the page, and the model card with its picture."""
    card = ModelCard(
        name=report["title"],
        made=[report["made"]],
        tags=["retokenize"],
        models=report["provenance"]["models"].values(),
        relation="finetune",
        example=loading_example(remote_code=remote_code),
        tables=[table(report)],
        notes=footnotes(report),
        report="report.json",
        recipe=report["recipe"],
    )
    page = conversion_page(report, table(report), footnotes(report), BITS)
    return {"report.json": to_json(report), **page_and_card(page, card)}
