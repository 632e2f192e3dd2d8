"""The registry of a report's rows: what each row is, what it reads, what it is compared with, and what it costs.

Fitting, scoring, the report, `brief`, the command line's help and the documentation all read this table. To add a translation,
write a function that takes `ClosedForm` inputs (stitch/translation/closed_forms.py) and add an entry here that names it; a ridge
on other inputs needs the entry alone. This module loads no tensor library.
"""

from dataclasses import dataclass

RIDGE, ROUTES, TABLES = "ridge", "routes", "tables"

# Inputs that cost little or nothing at inference: look-ups, and streams of A that are computed anyway.
LOOK_UPS = ("embedding", "embedding-1", "embedding-2", "state", "state-1", "state-2", "position")
FREE = ("x-1", "earlier-1", "earlier-2", *LOOK_UPS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a report.

    `made_by` is how a translation is fitted: "ridge" on the inputs in `reads` (those that the pair has); "routes", which adds a
    matrix per class of tokens to the row `base`; "tables", which adds n-gram tables to `base`; or a closed form as
    "module:function". Rows without it are not fitted. `target` is what a ridge regresses on. `compared_with` names the
    row whose difference to this one the report shows; of a null, the row that it is the null of. `headline`: the
    composite's difference to this row is shown. `needs_products`: a closed form that needs the products of the codes
    themselves, which a wide SAE does not have.
    """

    name: str
    help: str
    reads: tuple[str, ...] = ()
    cost: str = "nothing beside the models"
    made_by: str | None = None
    base: str | None = None
    target: str = "target"
    compared_with: str | None = None
    headline: bool = False
    brief: bool = False
    needs_products: bool = False

    @property
    def kind(self) -> str:
        """model, translation, floor, ceiling, reference or null."""
        return self.name.partition(":")[0] if ":" in self.name else "model"

    @property
    def short(self) -> str:
        """The name without its kind, as `translation` takes it."""
        return self.name.partition(":")[2] or self.name


_PRODUCT = "one d_a × d_b product per token"
_CODES = "the SAE encoder and one product on its active features"
_FREE = "one product per stream of A that is read; look-ups"
_CLOSED = "stitch.translation.closed_forms:"

ROWS: tuple[Row, ...] = (
    Row(name="a", help="Model A, whole.", headline=True, brief=True),
    Row(name="b", help="Model B, whole.", headline=True, brief=True),
    Row(
        name="composite",
        help="A's early blocks, the chosen translation and B's late blocks, run from token ids to logits.",
        cost="the blocks that are kept, and the translation",
        brief=True,
    ),
    Row(
        name="line",
        help="CE_A + share · (CE_B − CE_A), where share is the composite's place between A's and B's block FLOPs: "
        "what mixing the two models by text would reach at that cost.",
        brief=True,
    ),
    Row(
        name="translation:identity",
        help="A's stream itself, cut or zero-padded to B's width.",
        reads=("x",),
        cost="no product",
        made_by=_CLOSED + "identity",
        brief=True,
    ),
    Row(
        name="translation:mean-shift",
        help="A's stream moved by the difference of the two means.",
        reads=("x",),
        cost="no product",
        made_by=_CLOSED + "mean_shift",
    ),
    Row(
        name="translation:procrustes",
        help="The best rotation and scale from paired activations.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=_CLOSED + "procrustes",
    ),
    Row(
        name="translation:permutation",
        help="Each feature of A is decoded by the decoder row of the feature of B that it is matched to.",
        reads=("x",),
        cost=_CODES,
        made_by=_CLOSED + "permutation",
        brief=True,
    ),
    Row(
        name="translation:barycentric",
        help="The same with a soft matching: each feature of A becomes a weighted mean of features of B.",
        reads=("x",),
        cost=_CODES,
        made_by=_CLOSED + "barycentric",
    ),
    Row(
        name="translation:directions",
        help="The linear map that sends A's matched decoder rows to B's.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=_CLOSED + "directions",
    ),
    Row(
        name="translation:prior",
        help="Ridge regression that shrinks towards `directions` instead of zero.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=_CLOSED + "prior",
    ),
    Row(
        name="translation:rotation",
        help="The best rotation between matched decoder rows.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=_CLOSED + "rotation",
    ),
    Row(
        name="translation:permutation+error",
        help="`permutation`, and a linear map of what A's SAE does not reconstruct.",
        reads=("codes", "x"),
        cost=_CODES + ", and one d_a × d_b product",
        made_by=_CLOSED + "permutation_with_error",
    ),
    Row(
        name="translation:cross-code",
        help="B's codes predicted from A's with several partners per feature, then decoded.",
        reads=("codes", "x"),
        cost=_CODES,
        made_by=_CLOSED + "cross_coded",
        needs_products=True,
    ),
    Row(
        name="translation:affine",
        help="Ridge regression from A's stream to B's: the baseline.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=RIDGE,
        headline=True,
        brief=True,
    ),
    Row(
        name="translation:affine+token",
        help="Ridge on A's stream and B's embedding of the current token.",
        reads=("x", "embedding"),
        cost=_PRODUCT + "; a look-up",
        made_by=RIDGE,
    ),
    Row(
        name="translation:affine+state",
        help="Ridge on A's stream, B's own state of the token without context, and B's embedding of the previous token.",
        reads=("x", "state", "embedding-1"),
        cost=_PRODUCT + "; look-ups",
        made_by=RIDGE,
    ),
    Row(
        name="translation:affine+free",
        help="Ridge on A's stream and all that costs next to nothing: look-ups of the last three tokens and of the position, "
        "A's stream one token ago and at two earlier sites.",
        reads=("x", *FREE),
        cost=_FREE,
        made_by=RIDGE,
    ),
    Row(
        name="translation:features",
        help="Ridge on the codes of A's SAE and on A's stream.",
        reads=("codes", "x"),
        cost=_CODES + ", and one d_a × d_b product",
        made_by=RIDGE,
    ),
    Row(
        name="translation:features+token",
        help="`features` with B's embedding of the current token.",
        reads=("codes", "x", "embedding"),
        cost=_CODES + ", and one d_a × d_b product; a look-up",
        made_by=RIDGE,
    ),
    Row(
        name="translation:features+free",
        help="`features` with all that costs next to nothing, as in `affine+free`.",
        reads=("codes", "x", *FREE),
        cost=_CODES + "; " + _FREE,
        made_by=RIDGE,
    ),
    Row(
        name="translation:affine+free+tables",
        help="`affine+free` and tables of what it leaves, by token and by n-gram, shrunken towards shorter contexts.",
        reads=("x", *FREE),
        cost=_FREE + "; n-gram look-ups",
        made_by=TABLES,
        base="translation:affine+free",
        brief=True,
    ),
    Row(
        name="translation:routed",
        help="`affine+free` with a matrix of its own for each class of tokens.",
        reads=("x", *FREE),
        cost=_FREE,
        made_by=ROUTES,
        base="translation:affine+free",
    ),
    Row(
        name="translation:routed+tables",
        help="`routed` with n-gram tables of what it leaves.",
        reads=("x", *FREE),
        cost=_FREE + "; n-gram look-ups",
        made_by=TABLES,
        base="translation:routed",
        brief=True,
    ),
    Row(
        name="translation:features+free+tables",
        help="`features+free` with n-gram tables of what it leaves.",
        reads=("codes", "x", *FREE),
        cost=_CODES + "; " + _FREE + "; n-gram look-ups",
        made_by=TABLES,
        base="translation:features+free",
    ),
    Row(
        name="translation:down-projection",
        help="Depth surgery (`native`): the down projection before the cut, refitted with the remaining stream as target.",
        reads=("neurons",),
        cost="nothing: it replaces weights of the model",
    ),
    Row(
        name="translation:down-projections",
        help="Depth surgery (`native`): the down projections before and after the cut, refitted.",
        reads=("neurons",),
        cost="nothing: it replaces weights of the model",
    ),
    Row(name="floor:mean", help="B's late blocks on the mean of B's stream: nothing comes from the text.", brief=True),
    Row(name="floor:zero", help="B's late blocks on zeros."),
    Row(name="floor:wrong-text", help="B's late blocks on B's own stream of another text."),
    Row(
        name="ceiling:sae-b",
        help="B with its SAE's reconstruction in place of its stream: the best that any route through B's features can do.",
        headline=True,
        brief=True,
    ),
    Row(name="sae-a", help="A with its SAE's reconstruction in place of its stream.", brief=True),
    Row(
        name="reference:affine-trained",
        help="The affine map after some gradient steps on cross-entropy. Nothing else in the table is trained.",
        reads=("x",),
        cost=_PRODUCT,
        headline=True,
    ),
    Row(
        name="null:shuffled-matching",
        help="`permutation` with partners exchanged among features that fire about as often; the mean of 20 draws.",
        reads=("x",),
        cost=_CODES,
        compared_with="translation:permutation",
        brief=True,
    ),
    Row(
        name="null:random-rotation",
        help="A random rotation with the scale of `procrustes`.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=_CLOSED + "random_rotation",
        compared_with="translation:procrustes",
    ),
    Row(
        name="null:shuffled-tokens",
        help="`affine` fitted to B's streams of other tokens.",
        reads=("x",),
        cost=_PRODUCT,
        made_by=RIDGE,
        target="shuffled",
        compared_with="translation:affine",
    ),
    Row(
        name="null:untrained-sae",
        help="`features` with an untrained SAE of the same size and sparsity.",
        reads=("untrained", "x"),
        cost=_CODES,
        made_by=RIDGE,
        compared_with="translation:features",
    ),
    Row(
        name="null:random-relu",
        help="`features+free` with dense random ReLU features instead of the SAE's.",
        reads=("random-relu", "x", *FREE),
        cost=_CODES,
        made_by=RIDGE,
        compared_with="translation:features+free",
    ),
    Row(
        name="null:random-topk",
        help="`features+free` with random features as sparse as the SAE's.",
        reads=("random-topk", "x", *FREE),
        cost=_CODES,
        made_by=RIDGE,
        compared_with="translation:features+free",
    ),
    Row(
        name="null:exemplars",
        help="`features+free` with the activations of single tokens as feature directions.",
        reads=("exemplars", "x", *FREE),
        cost=_CODES,
        made_by=RIDGE,
        compared_with="translation:features+free",
    ),
    Row(
        name="null:rbf",
        help="`features+free` with Gaussian bumps around the activations of single tokens: kernel regression.",
        reads=("rbf", "x", *FREE),
        cost=_CODES,
        made_by=RIDGE,
        compared_with="translation:features+free",
    ),
    Row(
        name="null:look-ups",
        help="`affine+free` without A: look-ups alone.",
        reads=LOOK_UPS,
        cost="look-ups",
        made_by=RIDGE,
        compared_with="translation:affine+free",
    ),
    Row(
        name="null:no-source",
        help="Look-ups and n-gram tables without A: what B and the tables know of the text on their own.",
        reads=LOOK_UPS,
        cost="look-ups",
        made_by=TABLES,
        base="null:look-ups",
        compared_with="translation:affine+free+tables",
        headline=True,
        brief=True,
    ),
    Row(
        name="null:random-routes",
        help="`routed` with classes of tokens drawn at random: what more parameters alone are worth.",
        reads=("x", *FREE),
        cost=_FREE,
        made_by=ROUTES,
        base="translation:affine+free",
        compared_with="translation:routed",
    ),
    Row(
        name="null:shuffled-down-projection",
        help="Depth surgery: the down projection refitted to the streams of other tokens.",
        cost="nothing: it replaces weights of the model",
        compared_with="translation:down-projection",
    ),
    Row(
        name="reference:passthrough",
        help="Depth surgery: blocks are removed and nothing is refitted, as mergekit's passthrough does.",
        cost="nothing: it replaces weights of the model",
        compared_with="translation:down-projection",
    ),
    Row(
        name="reference:replaceme",
        help="Depth surgery: ReplaceMe (arXiv 2505.02819), a linear map after the down projection.",
        cost="nothing: it replaces weights of the model",
        compared_with="translation:down-projection",
    ),
    Row(
        name="reference:replaceme-relative",
        help="Depth surgery: ReplaceMe with each token weighed by the inverse square of its stream's norm.",
        cost="nothing: it replaces weights of the model",
        compared_with="translation:down-projection",
    ),
)

# Translations that become weights of the model itself.
NATIVE = ("down-projection", "down-projections")


def row(name: str) -> Row:
    """The row of this name. Raises KeyError where there is none."""
    return {found.name: found for found in ROWS}[name]


def made_by(*ways: str) -> list[Row]:
    """Rows that are fitted in one of these ways."""
    return [found for found in ROWS if found.made_by in ways]


def closed_forms() -> list[Row]:
    """Rows that a function named in the registry makes."""
    return [found for found in ROWS if found.made_by and ":" in found.made_by]


def translations() -> list[str]:
    """The values that the setting `translation` may have, beside auto."""
    return [found.short for found in ROWS if found.kind == "translation"]


def nulls_of(name: str) -> list[str]:
    """Names of the nulls of a row."""
    return [found.name for found in ROWS if found.compared_with == name and found.kind == "null"]


def compared_with() -> dict[str, str]:
    """For each row whose difference to another row the report shows: that other row."""
    return {found.name: found.compared_with for found in ROWS if found.compared_with is not None}
