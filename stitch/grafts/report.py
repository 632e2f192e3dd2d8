"""What a terminal shows of a graft: its plan, and the host beside donor and controls."""

import math
from collections.abc import Iterator

from stitch.circuits.report import COLUMNS, cells, inner_name

Table = tuple[list[str], list[list[str]], str]


def plan_tables(report: dict) -> Iterator[Table]:
    """Per graft: every head at its place, then the neurons by block."""
    for graft in report["grafts"]:
        plan = graft["plan"]
        title = f"{graft['donor']}: {graft['behaviour']}"
        rows = [
            [_dotted(one["donor"]), _dotted(one["host"]), one["kind"], f"{one['moved']:.1%}", f"{one['lost']:.1%}"]
            for one in plan["heads"]
        ]
        yield ["head", "in the host", "made as", "attention moved", "output lost"], rows, title
        if plan["neurons"]:
            rows = [
                [
                    f"{one['donor']}",
                    f"{one['count']:,}",
                    f"{one['host']}",
                    f"{one['as']:,}",
                    one["kind"],
                    f"{one['lost']:.1%}",
                ]
                for one in plan["neurons"]
            ]
            yield ["block", "neurons", "in the host's", "as many", "made as", "output lost"], rows, title


def plan_notes(report: dict) -> list[str]:
    free = report["free"]
    lines = []
    for graft in report["grafts"]:
        plan = graft["plan"]
        kept = "all of its stream" if plan["stream_kept"] == 1 else f"{plan['stream_kept']:.1%} of what it reads"
        if plan["arrangement"] is not None:
            lines.append(_arranged(graft["donor"], plan["arrangement"]))
        lines.append(f"{graft['donor']} takes {plan['channels']} channels of the host, for {kept}.")
    return [*lines, f"{free['channels']} of {free['of']} channels are left."]


def result_tables(report: dict) -> Iterator[Table]:
    """Per graft, with the divergence from the donor's circuit alone."""
    for graft in report["grafts"]:
        size = f"{graft['prompts']:,} prompts, {graft['places']:,} tokens asked for"
        header = [*COLUMNS, "KL"]
        rows = [_cells(row) for row in graft["results"]]
        if graft["order_one"] is not None:
            rows.append(["order 1", f"{graft['order_one']:.1%}", "", "", "", ""])
        yield header, rows, f"{graft['donor']}: {graft['behaviour']}, {size}"


def result_notes(report: dict) -> list[str]:
    """How the circuit was written, in a line per graft."""
    lines = []
    for graft in report["grafts"]:
        plan, missing = graft["plan"], max(read["missing"] for read in graft["reads"])
        kinds: dict[str, int] = {}
        for head in plan["heads"]:
            kinds[head["kind"]] = kinds.get(head["kind"], 0) + 1
        heads = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        neurons = sum(of["count"] for of in plan["neurons"])
        if plan["arrangement"] is not None:
            lines.append(_arranged(graft["donor"], plan["arrangement"]))
        lines.append(
            f"{graft['donor']}: heads: {heads}; {neurons:,} {inner_name(graft)}. Of what any norm reads in the donor, the host "
            f"lacks at most {missing:.1%}."
        )
    if report["trained"]:
        before, after = report["text"]["results"]
        lines.append(
            f"Perplexity of the host on {report['text']['tokens']:,} tokens of held-out text: {math.exp(before['ce']):.2f}, with "
            f"the graft {math.exp(after['ce']):.2f} ({after['ce'] - before['ce']:+.4f} nats)."
        )
    return lines


def _arranged(donor: str, arrangement: dict) -> str:
    groups = ", ".join("+".join(str(block) for block in group) for group in arrangement["blocks"])
    first, beside = arrangement["table"], ", ".join(str(block) for block in arrangement["beside"])
    table = f"blocks before {first} are in the embedding, " if first else ""
    heads = f"heads of {beside} beside the first of the others, " if beside else ""
    return f"{donor} has too many blocks: {table}{heads}the others read side by side: {groups}."


def _dotted(place: list[int]) -> str:
    return ".".join(str(number) for number in place)


def _cells(row: dict) -> list[str]:
    return [*cells(row), f"{row['kl']:.3f}" if "kl" in row else ""]
