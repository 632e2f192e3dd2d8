"""What a report says where both models read different tokens: bits per byte, and how the tokens lie beside each other."""

from math import log

IN_BITS = {"ce": "bpb", "side": "side_bpb"}  # cross-entropy, and how much it is above another


def across_tokenizers(report: dict, described: dict) -> dict:
    """The report with bits per byte in every row and difference, and with `across`, which is `described`.

    Cross-entropy is in nats per token of A. Bits per byte are that over ln 2 and the bytes of such a token, for all rows alike.
    """
    size = described["bytes_per_token"]
    return {
        **report,
        "across": described,
        "results": [bits_per_byte(row, size) for row in report["results"]],
        "differences": [bits_per_byte(row, size) for row in report["differences"]],
    }


def bits_per_byte(row: dict, bytes_per_token: float) -> dict:
    """The row with what it has in nats per token in bits per byte too, under the names that IN_BITS gives."""
    scale = 1 / (log(2) * bytes_per_token)
    names = {f"{old}{end}": f"{new}{end}" for old, new in IN_BITS.items() for end in ("", "_low", "_high")}
    return {**row, **{new: row[old] * scale for old, new in names.items() if row.get(old) is not None}}


def eval_notes(report: dict) -> list[str]:
    """Sentences for below the table of `eval --against`; none where both models read the same tokens."""
    if not (found := report.get("across")):
        return []
    model, against = report["models"]["a"], report["models"]["b"]
    return [
        f"{model} and {against} read different tokens. Row against is {against} in its own tokens, on the same bytes; CE is in "
        f"nats per token of {model} in both rows. Predictions of special tokens do not count.",
        f"{found['coinciding']:.1%} of the tokens of {model} end where one of {against} does: there KL compares what both say of "
        f"the next byte, and top-1 their likeliest tokens, as far as both reach. {against} reads "
        f"{found['own_tokens_per_token']:.2f} tokens for one of {model}, which has {found['bytes_per_token']:.2f} bytes. Its "
        f"tokenizer loses {found['lost']:.2%} of the bytes.",
    ]


def differences(report: dict) -> list[str]:
    """The paired differences, each as a sentence, in bits per byte too across tokenizers."""
    return [
        f"{one['name']} − {one['minus']}: {one['ce']:+.3f} nats ({one['ce_low']:+.3f} to {one['ce_high']:+.3f}, paired)"
        + (
            f"; {one['bpb']:+.3f} bits per byte ({one['bpb_low']:+.3f} to {one['bpb_high']:+.3f})"
            if "bpb" in one
            else ""
        )
        + "."
        for one in report.get("differences", [])
    ]


def notes(report: dict) -> list[str]:
    """Sentences for below the table; none where both models read the same tokens."""
    if not (found := report.get("across")):
        return []
    a, b, vocabulary = report["models"]["a"], report["models"]["b"], found["vocabulary"]
    heads = ", ".join(f"{name} {ce:.3f}" for name, ce in sorted(found["heads"].items(), key=lambda item: item[1]))
    own_head = f" A chain that ends in the head of {a} needs none of them." if "chain" not in report else ""
    return [
        f"{a} and {b} read different tokens. The composite reads those of {a}: {vocabulary['size']:,}, of which "
        f"{vocabulary['shared']:,} have the bytes of one of {b}'s, {vocabulary['pieces']:,} are several of its tokens, and "
        f"{vocabulary['unknown']:,} are unknown to it.",
        f"{found['coinciding']:.1%} of the tokens of {a} end where one of {b} does; the translation is fitted on these. {b} "
        f"reads {found['own_tokens_per_token']:.2f} tokens for one of {a}, which has {found['bytes_per_token']:.2f} bytes. The "
        f"tokenizers lose {found['lost']['a']:.2%} and {found['lost']['b']:.2%} of the bytes.",
        f"Row b is {b} in its own tokens, on the same bytes. CE is in nats per token of {a} in every row. Predictions of "
        "special tokens do not count. Where a token of both ends, KL compares what a row and b say of the next byte, and top-1 "
        "their likeliest tokens, as far as both reach.",
        f"Head: {found['head']}, chosen on the sweep split behind {b}'s own streams (CE by head: {heads}).{own_head}",
    ]
