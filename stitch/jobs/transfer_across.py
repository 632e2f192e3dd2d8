"""Carrying between two models that read different tokens: what the maps are fitted on, and what is refused.

Text is cut into B's tokens, and A reads the same bytes in its own. Where a token of both ends, the two streams have read the same
text: the maps are fitted on these places alone. What is measured on a model is measured in its own tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.schedule import TOKENS_PER_FEATURE
from stitch.activations.original import Original, at_tokens_of
from stitch.config import CompleteSettings
from stitch.errors import StitchError, UsageError
from stitch.jobs.across import lost_bytes
from stitch.jobs.pair.text import text_size
from stitch.models.model import Model
from stitch.text.correspondence import alike
from stitch.text.documents import SPLITS, Split, select
from stitch.text.sources import Corpus
from stitch.text.tokenizers import same_ids
from stitch.text.windows import Windows, sample


@dataclass(frozen=True)
class Across:
    """A as it is read at B's tokens, and the report split in A's own tokens, of the same documents.

    `shared_a` and `shared_b` are the ids of tokens that stand for the same bytes, `lengths_a` and `lengths_b` the bytes of every
    id. `described` is what the report says of it.
    """

    a: Model
    windows_a: Windows
    shared_a: Int[Tensor, " shared"]
    shared_b: Int[Tensor, " shared"]
    lengths_a: Float[Tensor, " vocabulary_a"]
    lengths_b: Float[Tensor, " vocabulary_b"]
    described: dict


def require_carriable(a: Model, b: Model) -> None:
    """Raises UsageError for two models of different tokenizers between which nothing can be carried, before any work."""
    if same_ids(a.tokenizer, b.tokenizer):
        return
    if len(a.parts) > 1:
        raise UsageError(
            f"a composite must share its tokenizer with the other model; {a.name} is one, and {b.name} reads other ids: choose "
            "one of its donors."
        )


def read_across(
    settings: CompleteSettings, a: Model, b: Model, windows: Mapping[Split, Windows], corpus: Corpus
) -> Across | None:
    """What is different where tokenizers differ; None where they do not. `windows` are of B's tokens.

    Raises: UsageError where a tokenizer loses too much of the text, where the two share no token, and where tokens of both end at
    the same byte at fewer places than a map needs.
    """
    if same_ids(a.tokenizer, b.tokenizer):
        return None
    reading = at_tokens_of(a, b)
    original = reading.original
    assert isinstance(original, Original)
    own_a, own_b = original.rewriter.own, original.rewriter.given
    shared_a, shared_b = alike(own_a, own_b)
    there = (shared_a < a.vocabulary) & (shared_b < b.vocabulary)
    shared_a, shared_b = shared_a[there], shared_b[there]
    if not len(shared_a):
        raise UsageError(f"both tokenizers must share some tokens; those of {a.name} and {b.name} share none.")
    lost = lost_bytes(reading, windows["fit"], corpus)
    places: dict[Split, Bool[Tensor, "windows places"]] = {
        split: original.coincides(windows[split].ids)[:, 1:] for split in SPLITS
    }
    for split, found in places.items():
        _require_places(int(found.sum()), split, a, b)
    held_out = text_size(settings, a, b).held_out
    windows_a = sample(select(corpus.documents, "report"), a.tokenizer, settings.context, held_out)
    if not len(windows_a.ids):
        raise StitchError(
            f"text must fill one window of {settings.context} tokens of {a.name} in the report split; {corpus.name} does not: "
            "use more text, or lower `context`."
        )
    described = {
        "coinciding": float(places["fit"].double().mean()),
        "lost": {"a": lost["b"], "b": lost["a"]},  # there A's tokens are given, here B's
        "shared": len(shared_a),
    }
    return Across(reading, windows_a, shared_a, shared_b, own_a.lengths, own_b.lengths, described)


def _require_places(found: int, split: Split, a: Model, b: Model) -> None:
    least = TOKENS_PER_FEATURE * max(a.width, b.width) if split == "fit" else 1
    if found < least:
        raise UsageError(
            f"tokens of both models must end at the same byte at {least:,} places of the {split} split or more, to fit the maps "
            f"on; those of {a.name} and {b.name} do at {found:,}: raise `{'tokens' if split == 'fit' else 'held_out'}`, or "
            "give one the tokenizer of the other with `stitch retokenize`."
        )
