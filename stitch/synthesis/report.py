"""What a terminal shows of a certificate."""

Table = tuple[list[str], list[list[str]], str]


def title(report: dict) -> str:
    """What was compiled, in a line."""
    said = report["description"]
    what = {
        "automaton": _automaton,
        "turing": _turing,
        "subleq": _subleq,
        "pattern": _pattern,
        "induction": _induction,
    }[said["kind"]](said)
    return (
        f"{what}: {said['arch']}, {report['blocks']} block{'s' if report['blocks'] > 1 else ''}, "
        f"{report['parameters']:,} parameters, context {report['context']:,}"
    )


def _automaton(said: dict) -> str:
    states, symbols = len(said["automaton"]["states"]), len(said["automaton"]["symbols"])
    coded = f" in {said['dimension']} dimensions of coherence {said['coherence']:.2f}" if said["mode"] == "vsa" else ""
    return f"{said['source']} ({states} states, {symbols} symbols), {said['mode']}{coded} to length {said['length']:,}"


def _turing(said: dict) -> str:
    return f"universal Turing machine, window of {said['window']} cells"


def _subleq(said: dict) -> str:
    return f"SUBLEQ machine, {said['cells']} cells"


def _pattern(said: dict) -> str:
    return f"attention {said['source']}" + (f" at rank {said['rank']}" if "rank" in said else "")


def _induction(said: dict) -> str:
    return f"induction over the tokens of {said['tokenizer']}" if said["tokenizer"] else "induction over letters"


def tables(report: dict) -> list[Table]:
    """What was tried; of a soft pattern, its errors by rank."""
    return [*([_tried(report)] if report["results"] else []), *([_rank_curve(report)] if "apart" in report else [])]


def _rank_curve(report: dict) -> Table:
    """Largest error of any attention, and share of attention that is elsewhere."""
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
    """A row per trial: prompts, answers asked for and wrong ones, and the smallest margin in each way of running it."""
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
            f"{'Certified' if report['certified'] else 'NOT certified'}: weights hold the factors, up to rounding.",
        ]
    off = ", ".join(
        f"{name} {value:.1e} (logits {report['logit_gap'][name]:.1f} apart)"
        for name, value in report["off_mass"].items()
    )
    alike = f", {report['crosstalk']:.2f} of the answer's before" if report["crosstalk"] > 0 else ""
    return [
        *took,
        f"Attention of heads by position beside their token, at most: {off}; they hold to {report['safe_context']:,} tokens.",
        f"Logits are scaled so that the best of others is {report['ideal']:g} below the answer's{alike}.",
        f"{'Certified' if report['certified'] else 'NOT certified'}: smallest margin {report['margin']:.3f}, "
        f"{report['margin'] / report['ideal']:.1%} of what it is without any error.",
    ]


def tool_table(report: dict) -> Table:
    """How often the state is right, of the tool and of what else could tell it."""
    rows = [
        [row["name"], f"{row['right']:.2%}", f"{row['low']:.2%} – {row['high']:.2%}", f"{row['mean_over_states']:.2%}"]
        for row in report["right"]
    ]
    title = f"{report['automaton']} in {report['host']}: {len(report['states'])} states, {report['tokens']:,} held-out tokens"
    return ["", "right", "95 % interval", "mean over states"], rows, title


def tool_notes(report: dict) -> list[str]:
    before, after = report["text"]
    price, size = report["price"], report["parameters"]
    return [
        f"Cross-entropy of the host as it was {before['ce']:.5f}, with the tool {after['ce']:.5f} ({price['nats']:+.1e} nats, "
        f"{price['low']:+.1e} to {price['high']:+.1e}, paired).",
        f"{report['blocks']} blocks compose {report['windows_per_block']} windows each; {size['before']:,} parameters became "
        f"{size['after']:,}.",
    ]
