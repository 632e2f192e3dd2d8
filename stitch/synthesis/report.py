"""Tables and footnotes of certificates and of tools, for the terminal."""

from stitch.report.notes import text_notes

Table = tuple[list[str], list[list[str]], str]  # heads, rows, title


def title(report: dict) -> str:
    """One line that says what was compiled."""
    description = report["description"]
    what = {
        "automaton": _automaton,
        "turing": _turing,
        "subleq": _subleq,
        "pattern": _pattern,
        "induction": _induction,
    }[description["kind"]](description)
    return (
        f"{what}: {description['arch']}, {report['blocks']} block{'s' if report['blocks'] > 1 else ''}, "
        f"{report['parameters']:,} parameters, context {report['context']:,}"
    )


def _automaton(description: dict) -> str:
    states, symbols = len(description["automaton"]["states"]), len(description["automaton"]["symbols"])
    mode = description["mode"]
    if mode == "vsa":
        mode += f" in {description['dimension']} dimensions with coherence {description['coherence']:.2f}"
    return f"{description['source']} ({states} states, {symbols} symbols), {mode}, length {description['length']:,}"


def _turing(description: dict) -> str:
    return f"universal Turing machine, window of {description['window']} cells"


def _subleq(description: dict) -> str:
    return f"SUBLEQ machine, {description['cells']} cells"


def _pattern(description: dict) -> str:
    return f"attention {description['source']}" + (f" at rank {description['rank']}" if "rank" in description else "")


def _induction(description: dict) -> str:
    return (
        f"induction over the tokens of {description['tokenizer']}"
        if description["tokenizer"]
        else "induction over letters"
    )


def tables(report: dict) -> list[Table]:
    """The trials, and the errors of a soft pattern by rank."""
    return [*([_tried(report)] if report["results"] else []), *([_rank_curve(report)] if "apart" in report else [])]


def _rank_curve(report: dict) -> Table:
    """The largest error of an attention weight (max), and the share of attention on wrong tokens (moved)."""
    rows = []
    for row in report["description"]["rank_curve"]:
        cells = [row["naive"], row["completed"], row]
        rows.append(
            [str(row["rank"]), *(text for cell in cells for text in (f"{cell['max']:.4f}", f"{cell['mean']:.2%}"))]
        )
    for name, found in report["apart"].items():
        rows.append([f"{name} weights", "", "", "", "", f"{found['max']:.4f}", f"{found['mean']:.2%}"])
    ways = ["SVD", "causal SVD", "fitted"]
    return ["rank", *(f"{way}: {what}" for way in ways for what in ("max", "moved"))], rows, title(report)


def _tried(report: dict) -> Table:
    """A row per trial: numbers of prompts, answers and wrong answers, and the smallest margin for every dtype and attention."""
    settings = list(dict.fromkeys((row["dtype"], row["attention"]) for row in report["results"]))
    trials = list(dict.fromkeys(row["trial"] for row in report["results"]))
    found = {(row["trial"], row["dtype"], row["attention"]): row for row in report["results"]}
    rows = []
    for trial in trials:
        of = [found[(trial, *setting)] for setting in settings]
        counts = [of[0]["prompts"], of[0]["asked"], sum(row["wrong"] for row in of)]
        rows.append([trial, *(f"{count:,}" for count in counts), *(f"{row['margin']:.3f}" for row in of)])
    return ["", "prompts", "answers", "wrong", *(" ".join(setting) for setting in settings)], rows, title(report)


def notes(report: dict) -> list[str]:
    took = [f"Compiled in {report['seconds']:.2f} s."] if "seconds" in report else []
    if "apart" in report:
        return [
            *took,
            f"{_verdict(report)}: attention differs from that of the factors by no more than rounding errors."
            if report["certified"]
            else f"{_verdict(report)}: attention differs from that of the factors by more than rounding errors.",
        ]
    off = ", ".join(
        f"{name} {value:.1e} (score gap {report['logit_gap'][name]:.1f})" for name, value in report["off_mass"].items()
    )
    crosstalk = f" (crosstalk {report['crosstalk']:.2f} before scaling)" if report["crosstalk"] > 0 else ""
    return [
        *took,
        f"Largest attention of positional heads to tokens other than their target: {off}. They work up to "
        f"{report['safe_context']:,} tokens.",
        "The margin is the answer's logit minus the highest other logit; the ideal, without rounding errors, is "
        f"{report['ideal']:g}{crosstalk}.",
        f"{_verdict(report)}: the smallest margin is {report['margin']:.3f}, {report['margin'] / report['ideal']:.1%} of the "
        "ideal.",
    ]


def _verdict(report: dict) -> str:
    return "Certified" if report["certified"] else "NOT certified"


def tool_table(report: dict) -> Table:
    """Accuracy of the state, of the tool and of the baselines."""
    rows = [
        [row["name"], f"{row['right']:.2%}", _ends(row), f"{row['mean_over_states']:.2%}"] for row in report["right"]
    ]
    title = f"{report['automaton']} in {report['host']}: {len(report['states'])} states, {report['tokens']:,} held-out tokens"
    return ["", "correct", "95 % interval", "mean over states"], rows, title


def _ends(row: dict) -> str:
    """The interval of a row; empty where there is none, as for a single document."""
    return "" if row["low"] is None else f"{row['low']:.2%} – {row['high']:.2%}"


def tool_notes(report: dict) -> list[str]:
    before, after = report["text"]
    price, size = report["price"], report["parameters"]
    return [
        f"Cross-entropy of the host {before['ce']:.5f}, with the tool {after['ce']:.5f} "
        f"(difference {price['nats']:+.1e} nats, 95 % interval {price['low']:+.1e} to {price['high']:+.1e}, paired).",
        f"{report['blocks']} blocks compose {report['windows_per_block']} windows each. Parameters: {size['before']:,} "
        f"before, {size['after']:,} with the tool.",
        *text_notes(report),
    ]
