"""A model put behind the tokenizer of another, without a text: rows copied, or means of the rows of pieces."""

from dataclasses import replace

from stitch.activations.original import Original, at_tokens_of
from stitch.conversions.retokenization.rows import Rows, clipped, mean_of_pieces
from stitch.conversions.retokenization.scoring import Head, head_of
from stitch.conversions.retokenization.write import require_plain_ends, with_vocabulary
from stitch.errors import UsageError
from stitch.models.model import Model
from stitch.text.correspondence import correspond
from stitch.text.tokenizers import same_ids


def behind(model: Model, other: Model) -> Model:
    """`model` reading the token ids of `other`. Its `original` reads the same bytes in its own tokens.

    Raises: UsageError when the tokenizers share no token, for a composite, which looks things up by its own ids, and for a family
    that another embedding and head are not enough for.
    """
    if len(model.parts) > 1:
        raise UsageError(
            f"a composite keeps its tokenizer; {model.name} is one, and {other.name} reads other ids: put it first."
        )
    there = at_tokens_of(model, other)
    original = there.original
    assert isinstance(original, Original)
    new, own = original.rewriter.given, original.rewriter.own
    require_plain_ends(model, new)
    found = correspond(own, new)
    if not found.shared:
        raise UsageError(f"both tokenizers must share some tokens; those of {model.name} and {other.name} share none.")
    rows, _ = clipped(mean_of_pieces(model.embedding.weight.detach(), found), model.embedding.weight, found)
    head, _ = clipped(mean_of_pieces(head_of(model), found), head_of(model), found)
    return with_rows(there, rows, head)


def reading(model: Model, other: Model) -> Model:
    """`model` as it reads the token ids of `other`: itself where both read the same, otherwise as `behind` makes it."""
    return model if same_ids(other.tokenizer, model.tokenizer) else behind(model, other)


def with_rows(model: Model, rows: Rows, head: Head) -> Model:
    """A model that is `behind` another tokenizer, with these rows of its embedding and its head."""
    original = model.original
    assert isinstance(original, Original)
    new = original.rewriter.given
    made = replace(model, net=with_vocabulary(original.model, rows, head, new), tokenizer=new.tokenizer)
    return made.with_flow(original.model.flow)  # of which embeddings leave nothing to be found
