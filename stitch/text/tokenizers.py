"""What two models' tokenizers must have in common, and the token a text begins with."""

from stitch.errors import UsageError


def bos_of(tokenizer) -> int:
    """The token that starts a text: BOS, or EOS for the families (Qwen, GPT-NeoX) that have none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UsageError("a tokenizer must have a BOS or an EOS token to start windows with; this one has neither.")


def require_same_ids(a, b, name_a: str, name_b: str) -> None:
    """Both models must read the same ids: raises UsageError saying how many entries of the two vocabularies differ.

    Names and classes of tokenizers say nothing; what counts is that every token string has the same id in both.
    """
    first, second = a.get_vocab(), b.get_vocab()
    if first == second and _splits_alike(a, b):
        return
    tokens = first.keys() | second.keys()
    differing = sum(first.get(token) != second.get(token) for token in tokens)
    what = f"{differing:,} of {len(tokens):,} tokens differ" if differing else "they split text differently"
    raise UsageError(
        f"both models must share a tokenizer; {name_a} and {name_b} do not: {what}. Choose two models of one tokenizer family."
    )


PROBE = "The 3 quick_foxes' naïve plan:\n\tdef f(x): return x**2  # 漢字 🙂 1234567 don't\r\n\n  end."


def _splits_alike(a, b) -> bool:
    return a.encode(PROBE, add_special_tokens=False) == b.encode(PROBE, add_special_tokens=False)
