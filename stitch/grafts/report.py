"""Tables, notes and model card of a graft: its plan, and the scores of the host, the donor and the controls."""

import math
from collections.abc import Iterator

from stitch.circuits.report import COLUMNS, Table, beyond, cells, distance_tables, inner_name
from stitch.files.markdown import loading_example
from stitch.pages.graft import graft_title
from stitch.report.notes import text_notes
from stitch.report.readme import ModelCard

SHOWN = ("donor", "host, grafted", "host on corrupt prompts", "noise of the same norm")  # rows with scores by distance
COPYING = ("donor", "its circuit alone", "host, grafted", "host without the graft", "noise of the same norm")


def plan_tables(report: dict) -> Iterator[Table]:
    """A table of the heads of every graft, and one of its neurons by block if it has some."""
    for graft in report["grafts"]:
        plan = graft["plan"]
        title = f"{graft['donor']}: {graft['behaviour']}"
        rows = [
            [_dotted(each["donor"]), _dotted(each["host"]), each["kind"], f"{each['moved']:.1%}", f"{each['lost']:.1%}"]
            for each in plan["heads"]
        ]
        yield ["head", "in the host", "made as", "attention moved", "output lost"], rows, title
        if plan["neurons"]:
            rows = [
                [
                    f"{each['donor']}",
                    f"{each['count']:,}",
                    f"{each['host']}",
                    f"{each['as']:,}",
                    each["kind"],
                    f"{each['lost']:.1%}",
                ]
                for each in plan["neurons"]
            ]
            yield ["block", "neurons", "in the host's", "as many", "made as", "output lost"], rows, title


def plan_notes(report: dict) -> list[str]:
    """Lines under the tables of a plan: channels taken, and channels left."""
    free = report["free"]
    lines = []
    for graft in report["grafts"]:
        plan = graft["plan"]
        kept = "all of its stream" if plan["stream_kept"] == 1 else f"{plan['stream_kept']:.1%} of what it reads"
        if plan["arrangement"] is not None:
            lines.append(_arranged(graft["donor"], plan["arrangement"]))
        lines.append(f"{graft['donor']} takes {plan['channels']} channels of the host, which hold {kept}.")
        lines += _positions(graft["donor"], plan["positions"])
    return [*lines, f"{free['channels']} of {free['of']} channels are left."]


def result_tables(report: dict) -> Iterator[Table]:
    """A table of scores for every graft, with the KL divergence from the donor's circuit alone; then one by distance where its
    prompts have distances."""
    for graft in report["grafts"]:
        size = f"{graft['prompts']:,} prompts, {graft['places']:,} tokens asked for"
        header = [*COLUMNS, "KL"]
        rows = [_cells(row) for row in graft["results"]]
        if graft["order_one"] is not None:
            rows.append(["order 1", f"{graft['order_one']:.1%}", "", "", "", ""])
        title = f"{graft['donor']}: {graft['behaviour']}"
        yield header, rows, f"{title}, {size}"
        yield from distance_tables(graft["results"], SHOWN, title)


def result_notes(report: dict) -> list[str]:
    """Lines under the tables of scores: how each circuit was written, and what it did to the text of a trained host."""
    lines = []
    for graft in report["grafts"]:
        plan, missing = graft["plan"], max(read["missing"] for read in graft["reads"])
        kinds: dict[str, int] = {}
        for head in plan["heads"]:
            kinds[head["kind"]] = kinds.get(head["kind"], 0) + 1
        heads = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        neurons = sum(each["count"] for each in plan["neurons"])
        if plan["arrangement"] is not None:
            lines.append(_arranged(graft["donor"], plan["arrangement"]))
        lines.append(
            f"{graft['donor']}: heads: {heads}; {neurons:,} {inner_name(graft)}. The host lacks at most {missing:.1%} of what "
            "the donor's norms read."
        )
        lines += _positions(graft["donor"], plan["positions"])
        lines += beyond(graft["results"], COPYING)
    if report["trained"]:
        before, after = report["text"]["results"]
        lines.append(
            f"Perplexity of the host on {report['text']['tokens']:,} tokens of held-out text: {_perplexity(before)}, with "
            f"the graft {_perplexity(after)} ({after['ce'] - before['ce']:+.4f} nats)."
        )
        lines += text_notes(report)
    return lines


def graft_card(report: dict) -> ModelCard:
    """The card of the grafted model."""
    rest = "All that the host had was kept." if report["trained"] else "All of its other parts write nothing."
    what = "The circuits were" if len(report["grafts"]) > 1 else "The circuit was"
    return ModelCard(
        name=graft_title(report),
        made=[f"{what} written into it without training. {rest}"],
        tags=["graft", "merge"],
        models=[*report["provenance"]["models"].values()],
        relation="merge",
        example=loading_example(remote_code=False),
        tables=result_tables(report),
        notes=result_notes(report),
        report="graft.json",
        recipe=report["recipe"],
    )


def _perplexity(scores: dict) -> str:
    found = math.exp(min(scores["ce"], 700.0))  # a spoilt host may have more nats than a float has room for
    return f"{found:.2f}" if found < 1e5 else f"{found:.1e}"


def _arranged(donor: str, arrangement: dict) -> str:
    groups = ", ".join("+".join(str(block) for block in group) for group in arrangement["blocks"])
    first, beside = arrangement["table"], ", ".join(str(block) for block in arrangement["beside"])
    table = f"blocks before {first} are in the embedding; " if first else ""
    heads = f"heads of blocks {beside} are in the first block; " if beside else ""
    return f"{donor} has more blocks than the host: {table}{heads}the other blocks are merged as {groups}."


def _positions(donor: str, positions: dict | None) -> list[str]:
    """What became of the donor's learned positions, if the host has rotary ones."""
    if positions is None:
        return []
    if not positions["heads"]:
        return [f"The learned positions of {donor} are not written: tokens but BOS get the mean, and heads distances."]
    count, lost = positions["heads"], positions["lost"]
    heads = "1 head in block 0 writes" if count == 1 else f"{count} heads in block 0 write"
    return [f"{heads} the learned positions of {donor}; {lost:.0%} of their variance is lost."]


def _dotted(place: list[int]) -> str:
    """A head as block.number."""
    return ".".join(str(number) for number in place)


def _cells(row: dict) -> list[str]:
    return [*cells(row), f"{row['kl']:.3f}" if "kl" in row else ""]
