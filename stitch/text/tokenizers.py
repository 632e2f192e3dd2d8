"""The token that starts a text, and the check that two models use the same tokenizer."""

from stitch.errors import UsageError

PROBE = "The 3 quick_foxes' naïve plan:\n\tdef f(x): return x**2  # 漢字 🙂 1234567 don't\r\n\n  end."


def bos_of(tokenizer) -> int:
    """The id of the token that starts a text: BOS, or EOS for families without BOS (Qwen, GPT-NeoX).

    Raises: UsageError when the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UsageError("a tokenizer must have a BOS or an EOS token to start windows with; this one has neither.")


def require_same_ids(a, b, name_a: str, name_b: str) -> None:
    """Checks that tokenizers `a` and `b` give the same ids: equal vocabularies, and the same encoding of `PROBE`.

    Names and classes of tokenizers are not compared. Raises: UsageError with the number of tokens that differ.
    """
    if same_ids(a, b):
        return
    first, second = a.get_vocab(), b.get_vocab()
    tokens = first.keys() | second.keys()
    differing = sum(first.get(token) != second.get(token) for token in tokens)
    what = f"{differing:,} of {len(tokens):,} tokens differ" if differing else "they split text differently"
    raise UsageError(
        f"both models must share a tokenizer; {name_a} and {name_b} do not: {what}. Choose two models of one "
        "tokenizer family, or give one the tokenizer of the other with `stitch retokenize`."
    )


def same_ids(a, b) -> bool:
    """Whether two tokenizers give the same ids, as far as their vocabularies and `PROBE` tell."""
    return a.get_vocab() == b.get_vocab() and (
        a.encode(PROBE, add_special_tokens=False) == b.encode(PROBE, add_special_tokens=False)
    )
