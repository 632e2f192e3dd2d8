"""The page of a tool in a trained model: how often its state is right beside a probe's, and what it costs the model."""

from stitch.pages.curves import curves
from stitch.pages.intervals import intervals
from stitch.pages.page import Page
from stitch.pages.rows import CE
from stitch.pages.section import Section, Table, ungrouped

NAMES = {"a": "host", "composite": "with the tool", "baseline": "probe on the host", "null": "most frequent state"}
RIGHT = "share of right states"
READ = "tokens read, with the start token"


def tool_page(report: dict, table: Table, notes: list[str]) -> Page:
    """The page of a tool, with the table and sentences that the terminal shows."""
    sections = [_states_section(report, table), _steps_section(report), _price_section(report)]
    return Page(title=f"{report['automaton']} in {report['host']}", lead=_lead(report), facts=notes, sections=sections)


def _lead(report: dict) -> str:
    """The shares of right states in one sentence."""
    shares = [f"{row['name']} {row['right']:.2%}" for row in report["right"]]
    return f"Right states on held-out text: {'; '.join(shares)}."


def _states_section(report: dict, table: Table) -> Section:
    rows = report["right"]
    words = [
        "The tool reads the characters of every token and starts again at a special token. Its state is the row of "
        "readout.safetensors with the largest product with the last hidden state, and is right where the automaton, run on the "
        "same characters, is in it."
    ]
    shown = [{"label": row["name"], "role": _role(row["name"]), **_within(row)} for row in rows]
    read = [
        {"label": row["name"], "role": _role(row["name"]), "at": part["part"], **_within(part)}
        for row in rows
        for part in row["by_tokens_read"]
    ]
    charts = [
        intervals("right", "Right states, with 95 % intervals", shown, RIGHT, domain=(0, 1), names=NAMES),
        curves("read", "Right states by how many tokens were read", read, READ, RIGHT, names=NAMES),
    ]
    parts = [_parts(rows, "by_tokens_read", READ), _parts(rows, "by_state", "state")]
    return Section(name="states", heading="The state at every token", words=words, charts=charts,
                   tables=[ungrouped(one) for one in (table, *parts)])  # fmt: skip


def _role(row: str) -> str:
    if row.startswith("tool"):
        return "composite"
    return "baseline" if row.startswith("probe") else "null"


def _within(part: dict) -> dict:
    """A share and its interval, whose ends a chart shows within 0 and 1."""
    low, high = part["low"], part["high"]
    return {
        "value": part["right"],
        "low": None if low is None else max(low, 0),
        "high": None if high is None else min(high, 1),
    }


def _parts(rows: list[dict], key: str, what: str) -> Table:
    cells = [
        [parts[0]["part"], f"{parts[0]['tokens']:,}", *(f"{part['right']:.2%}" for part in parts)]
        for parts in zip(*(row[key] for row in rows), strict=True)
    ]
    return [what, "tokens", *(row["name"] for row in rows)], cells, f"Right states by {what}"


def _steps_section(report: dict) -> Section:
    """What the automaton does: the next state for every symbol, from every state. Symbols that do the same share a row."""
    states = report["states"]
    alike: dict[tuple[int, ...], list[str]] = {}
    for symbol, after in zip(report["symbols"], zip(*report["steps"], strict=True), strict=True):
        alike.setdefault(after, []).append(symbol)
    cells = [[" ".join(symbols), *(states[state] for state in after)] for after, symbols in alike.items()]
    words = [f"It starts in state {states[report['start']]}. Characters without a row leave the state as it is."]
    header = ["character", *(f"from {state}" for state in states)]
    return Section(
        name="automaton", heading="The automaton", words=words, tables=[ungrouped((header, cells, "The state after a character"))]
    )  # fmt: skip


def _price_section(report: dict) -> Section:
    """The model's cross-entropy and size before and after."""
    roles, sizes = ("a", "composite"), report["parameters"]
    rows = [
        {"label": row["name"], "role": role, "value": row["ce"], "low": row["ce_low"], "high": row["ce_high"]}
        for row, role in zip(report["text"], roles, strict=True)
    ]
    cells = [
        [row["name"], f"{row['ce']:.5f}", f"{row['ce_low']:.3f} – {row['ce_high']:.3f}", f"{sizes[size]:,}"]
        for row, size in zip(report["text"], ("before", "after"), strict=True)
    ]
    price = report["price"]
    cells.append(["difference, paired", f"{price['nats']:+.1e}", f"{price['low']:+.1e} to {price['high']:+.1e}",
                  f"{sizes['after'] - sizes['before']:+,}"])  # fmt: skip
    chart = intervals("text", "Cross-entropy on text, with 95 % intervals", rows, CE, names=NAMES)
    header = ["", "nats per token", "95 % interval", "parameters"]
    return Section(name="price", heading="What it costs the model", charts=[chart],
                   tables=[ungrouped((header, cells, "With and without the tool"))])  # fmt: skip
