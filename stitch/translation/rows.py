"""The registry of a report's rows: what each row is, what it reads, what it is compared with, and what it costs.

Everything that needs to know the rows reads this table: fitting, scoring, the report, `brief`, the command line's help and the
documentation. To add a translation, write a function that takes `ClosedForm` inputs (stitch/translation/closed_forms.py) and add
an entry here that names it; a ridge on other inputs needs the entry alone. This module loads no tensor library.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

RIDGE, ROUTES, TABLES = "ridge", "routes", "tables"

# What is there anyway: look-ups, which multiply nothing, and three more streams of A, with a product each.
LOOK_UPS = ("embedding", "embedding-1", "embedding-2", "state", "state-1", "state-2", "position")
FREE = ("x-1", "earlier-1", "earlier-2", *LOOK_UPS)
STREAMS = ("x", "x-1", "earlier-1", "earlier-2")  # of A
LIFTS = ("codes", "untrained", "random-relu", "random-topk", "exemplars", "rbf")  # features of A's stream

# Translations that become weights of the model itself.
NATIVE = ("down-projection", "down-projections")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a report.

    `made_by` is how a translation is fitted: "ridge" on the inputs in `reads` (those that the pair has); "routes", which adds a
    matrix per class of tokens to the row `base`; "tables", which adds n-gram tables to `base`; or a closed form as
    "module:function". Rows without it are not fitted. `target` is what a ridge regresses on. `compared_with` names the
    row whose difference to this one the report shows; of a null, the row that it is the null of. `headline`: the
    composite's difference to this row is shown. `alternative`: a model that could be used in the composite's place, which
    the verdict compares it with. `needs_products`: a closed form that needs the products of the codes
    themselves, which a wide SAE does not have. `costs` overrides what `cost` says from the inputs.
    """

    name: str
    help: str
    reads: tuple[str, ...] = ()
    costs: str | None = None
    made_by: str | None = None
    base: str | None = None
    target: str = "target"
    compared_with: str | None = None
    headline: bool = False
    alternative: bool = False
    brief: bool = False
    needs_products: bool = False
    matched: bool = False  # made from decoder rows of matched features
    across_tokenizers: bool = False  # only where B reads other tokens than A
    one_model: bool = False  # only where A is B

    @property
    def saes(self) -> str:
        """The sides whose SAEs have numbers in it: "ab", "a" or none."""
        return "ab" if self.matched else "a" if "codes" in self.reads else ""

    @property
    def kind(self) -> str:
        """model, translation, floor, ceiling, reference or null."""
        return self.name.partition(":")[0] if ":" in self.name else "model"

    @property
    def short(self) -> str:
        """The name without its kind, as `translation` takes it."""
        return self.name.partition(":")[2] or self.name

    @property
    def cost(self) -> str:
        """What the row costs per token beside the blocks of both models, in words."""
        if self.costs is not None:
            return self.costs
        streams = len(set(self.reads) & set(STREAMS))
        parts = [
            "an encoder and a product on its active features" if set(self.reads) & set(LIFTS) else "",
            f"{streams} product{'s' * (streams > 1)} d_a × d_b" if streams else "",
            "look-ups" if set(self.reads) & set(LOOK_UPS) else "",
            "n-gram look-ups" if self.made_by == TABLES else "",
        ]
        return "; ".join(part for part in parts if part) or "nothing"


def _models() -> list[Row]:
    return [
        Row(name="a", help="Model A, whole.", headline=True, alternative=True, brief=True),
        Row(name="b", help="Model B, whole.", headline=True, alternative=True, brief=True),
        Row(
            name="composite", brief=True, costs="the translation's",
            help="A's early blocks, the chosen translation and B's late blocks, run from token ids to logits.",
        ),
        Row(
            name="line", brief=True,
            help="CE_A + share · (CE_B − CE_A), where share is the composite's place between A's and B's FLOPs: what "
            "mixing the two models by text would reach at that cost.",
        ),
    ]  # fmt: skip


def _closed_forms() -> list[Row]:
    """Translations that a function in `stitch.translation.closed_forms` makes."""

    def row(name: str, function: str, help: str, reads: tuple[str, ...] = ("x",), **more) -> Row:
        where = f"stitch.translation.closed_forms:{function}"
        return Row(name=f"translation:{name}", help=help, reads=reads, made_by=where, **more)

    features = "an encoder and a product on its active features"
    return [
        row(
            "identity", "identity", "A's stream itself, cut or zero-padded to B's width.", brief=True, costs="no product"
        ),
        row("mean-shift", "mean_shift", "A's stream moved by the difference of the two means.", costs="no product"),
        row("procrustes", "procrustes", "The best rotation and scale from paired activations."),
        row(
            "permutation", "permutation", brief=True, costs=features, matched=True,
            help="Each feature of A is decoded by the decoder row of the feature of B that it is matched to.",
        ),
        row(
            "barycentric", "barycentric", costs=features, matched=True,
            help="The same with a soft matching: each feature of A becomes a weighted mean of features of B.",
        ),
        row("directions", "directions", "The linear map that sends A's matched decoder rows to B's.", matched=True),
        row("prior", "prior", "Ridge regression that shrinks towards `directions` instead of zero.", matched=True),
        row("rotation", "rotation", "The best rotation between matched decoder rows.", matched=True),
        row(
            "permutation+error", "permutation_with_error", reads=("codes", "x"), matched=True,
            help="`permutation`, and a linear map of what A's SAE does not reconstruct.",
        ),
        row(
            "cross-code", "cross_coded", reads=("codes", "x"), costs=features, needs_products=True, matched=True,
            help="B's codes predicted from A's with several partners per feature, then decoded.",
        ),
    ]  # fmt: skip


def _regressions() -> list[Row]:
    """Ridges, and rows that add class matrices or n-gram tables to one."""

    def ridge(name: str, help: str, *reads: str, **more) -> Row:
        return Row(name=f"translation:{name}", help=help, reads=reads, made_by=RIDGE, **more)

    def on(base: Row, made_by: str, name: str, help: str, **more) -> Row:
        shared = {"headline": False, "brief": False, "costs": None, **more}
        return replace(base, name=f"translation:{name}", help=help, made_by=made_by, base=base.name, **shared)

    affine_free = ridge(
        "affine+free",
        "Ridge on A's stream and what has been computed anyway: look-ups of the last three tokens and of the position, A's "
        "stream one token ago and at two earlier sites.",
        *("x", *FREE),
    )
    features_free = ridge(
        "features+free",
        "`features` with what has been computed anyway, as in `affine+free`.",
        *("codes", "x", *FREE),
    )
    routed = on(affine_free, ROUTES, "routed", "`affine+free` with a matrix of its own for each class of tokens.")
    return [
        ridge("affine", "Ridge regression from A's stream to B's: the baseline.", "x", headline=True, brief=True),
        ridge("affine+token", "Ridge on A's stream and B's embedding of the current token.", "x", "embedding"),
        ridge(
            "affine+state",
            "Ridge on A's stream, B's own state of the token without context, and B's embedding of the previous token.",
            *("x", "state", "embedding-1"),
        ),
        affine_free,
        ridge("features", "Ridge on the codes of A's SAE and on A's stream.", "codes", "x"),
        ridge(
            "features+token", "`features` with B's embedding of the current token.", *("codes", "x", "embedding")
        ),
        features_free,
        on(
            affine_free, TABLES, "affine+free+tables", brief=True,
            help="`affine+free` and tables of what it leaves, by token and by n-gram, shrunken towards shorter contexts.",
        ),
        routed,
        on(routed, TABLES, "routed+tables", "`routed` with n-gram tables of what it leaves.", brief=True),
        on(features_free, TABLES, "features+free+tables", "`features+free` with n-gram tables of what it leaves."),
    ]  # fmt: skip


def _bounds() -> list[Row]:
    """Floors, ceilings, and a trained reference."""
    return [
        Row(
            name="floor:mean", brief=True,
            help="B's late blocks on the mean of B's stream: nothing comes from the text.",
        ),
        Row(name="floor:zero", help="B's late blocks on zeros."),
        Row(name="floor:wrong-text", help="B's late blocks on B's own stream of another text."),
        Row(
            name="ceiling:sae-b", headline=True, brief=True,
            help="B with its SAE's reconstruction in place of its stream: the best that any route through B's features can "
            "do.",
        ),
        Row(name="sae-a", help="A with its SAE's reconstruction in place of its stream.", brief=True),
        Row(
            name="reference:affine-trained", reads=("x",), headline=True,
            help="The affine map after some gradient steps on cross-entropy. Nothing else in the table is trained.",
        ),
    ]  # fmt: skip


def _alternatives() -> list[Row]:
    """Models made of one donor alone, by the same means, at no more FLOPs than the composite."""

    def row(name: str, help: str, **more) -> Row:
        return Row(name=f"reference:{name}", help=help, alternative=True, headline=True, **more)

    return [
        row(
            "own-tables", brief=True, costs="look-ups and n-gram look-ups",
            help="B with its first blocks replaced by n-gram tables (`convert ngram`), fitted on the same text, with no more "
            "FLOPs and bytes than the composite. No A.",
        ),
        row(
            "a-own-tables", brief=True, costs="look-ups and n-gram look-ups",
            help="The same with A: its first blocks replaced by n-gram tables. No B.",
        ),
        row(
            "b-shortened", brief=True, costs="nothing",
            help="B without some neighbouring blocks, with the gap bridged in closed form. No A.",
        ),
        row(
            "a-exit", brief=True, costs="1 product d_a × d_a",
            help="A's first blocks, a ridge to the stream after its last block, A's final norm and head. No B.",
        ),
        row(
            "b-skip", costs="the translation's",
            help="The composite with B's own first blocks in the place of A's, and the same kind of translation. No A.",
        ),
    ]  # fmt: skip


def _nulls() -> list[Row]:
    """Versions of translations with one ingredient destroyed."""

    def null(name: str, of: str, help: str, *reads: str, **more) -> Row:
        found = Row(
            name=f"null:{name}", help=help, reads=reads or ("x",), compared_with=f"translation:{of}", made_by=RIDGE
        )
        return replace(found, **more)

    def features(name: str, help: str) -> Row:
        return null(name, "features+free", f"`features+free` with {help}.", name, "x", *FREE)

    return [
        null(
            "shuffled-matching", "permutation", made_by=None, brief=True,
            help="`permutation` with partners exchanged among features that fire about as often; the mean of 20 draws, or "
            "of as many as an eighth of `memory` holds.",
            costs="an encoder and a product on its active features",
        ),
        null(
            "random-rotation", "procrustes", "A random rotation with the scale of `procrustes`.",
            made_by="stitch.translation.closed_forms:random_rotation",
        ),
        null("shuffled-tokens", "affine", "`affine` fitted to B's streams of other tokens.", target="shuffled"),
        null(
            "untrained-sae", "features", "`features` with an untrained SAE of the same size and sparsity.",
            *("untrained", "x"),
        ),
        features("random-relu", "dense random ReLU features instead of the SAE's"),
        features("random-topk", "random features as sparse as the SAE's"),
        features("exemplars", "the activations of single tokens as feature directions"),
        features("rbf", "Gaussian bumps around the activations of single tokens: kernel regression"),
        null("look-ups", "affine+free", "`affine+free` without A: look-ups alone.", *LOOK_UPS),
        null(
            "no-source", "affine+free+tables",
            "Look-ups and n-gram tables without A: what B and the tables know of the text on their own.",
            *LOOK_UPS, made_by=TABLES, base="null:look-ups", headline=True, alternative=True, brief=True,
        ),
        Row(
            name="null:untrained-a", compared_with="composite", alternative=True, costs="the translation's",
            help="The composite with an A whose weights are drawn at random, and the same kind of translation, without "
            "features, fitted to it. What a composite without features gains on this row is due to what A learnt.",
        ),
        null(
            "random-routes", "routed",
            "`routed` with classes of tokens drawn at random: what more parameters alone are worth.",
            *("x", *FREE), made_by=ROUTES, base="translation:affine+free",
        ),
    ]  # fmt: skip


def _depth_surgery() -> list[Row]:
    """Ways to bridge removed or repeated blocks with weights of the model itself (`native`)."""

    def surgery(
        name: str, help: str, compared_with: str | None = "translation:down-projection", costs: str | None = None
    ) -> Row:
        return Row(
            name=name, help=f"Depth surgery: {help}", compared_with=compared_with, costs=costs, one_model=True,
            alternative=name.startswith("reference:"),
        )  # fmt: skip

    return [
        surgery(
            "translation:down-projection",
            "the down projection before the seam, refitted to produce the stream that the next block expects.",
            None,
        ),
        surgery(
            "translation:down-projections",
            "the down projections before and after the seam, refitted one after the other.",
            None,
        ),
        surgery("null:shuffled-down-projection", "the down projection refitted to the streams of other tokens."),
        surgery(
            "null:random-range",
            "as many blocks removed or repeated elsewhere, bridged as the composite is: the mean over a few ranges.",
            "composite",
        ),
        surgery(
            "reference:passthrough",
            "blocks are removed or repeated and nothing is refitted, as mergekit's passthrough does.",
        ),
        surgery("reference:replaceme", "ReplaceMe (arXiv 2505.02819), a linear map after the down projection."),
        surgery(
            "reference:replaceme-relative",
            "ReplaceMe with each token weighed by the inverse square of its stream's norm.",
        ),
        surgery(
            "reference:linear-patch",
            "LinearPatch (arXiv 2505.24680), a Hadamard rotation with channels scaled to the magnitude that the next block "
            "expects. It stays a matrix of its own.",
            costs="one product d × d",
        ),
    ]


def _across_tokenizers() -> list[Row]:
    """What is measured beside the rest where B reads other tokens than A."""

    def head(name: str, help: str, kind: str = "reference", **more) -> Row:
        said = f"Across tokenizers: the composite with {help}"
        return Row(name=f"{kind}:{name}", help=said, costs="the translation's", **more)

    def retokenized(name: str, help: str, **more) -> Row:
        return Row(
            name=f"reference:{name}", help=f"Across tokenizers: {help} No A.", alternative=True, headline=True, costs="nothing",
            **more,
        )  # fmt: skip

    found = [
        Row(
            name="ceiling:aligned", headline=True, brief=True, costs="B's first blocks",
            help="Across tokenizers: B's late blocks on B's own streams, each that of the token of B that ends with A's token "
            "or last before it, and the composite's head: what a perfect translation would reach.",
        ),
        retokenized(
            "b-retokenized", "B reading A's tokens, with means of rows and a head fitted and biased behind its "
            "own blocks, as the composite's is.", brief=True,
        ),
        retokenized(
            "b-retokenized-omp", "the same with embedding and head by OMP in A's rows, as tokensurgeon makes them. Tokens that "
            "do not occur in the text have means.", brief=True,
        ),
        head("head-first", "a head of copied rows, and for other tokens the row of their first piece."),
        head("head-mean", "a head of copied rows, and for other tokens the mean of their pieces' rows."),
        head("head-mean-bias", "`head-mean` and a bias that makes mean probabilities those of the text, folded into the rows."),
        head("head-marginal", "a head whose rows are means over all tokens of B that begin with a token, weighed by frequency."),
        head("head-marginal-bias", "`head-marginal` and a bias, as in `head-mean-bias`."),
        head("head-omp-8", "a head of copied rows, and for other tokens 8 shared ones, combined as in A's head."),
        head("head-omp-64", "a head of copied rows, and for other tokens 64 shared ones, combined as in A's head."),
        head("head-ridge", "a head of copied rows, and for other tokens rows fitted to what B says in its own tokens."),
        head("head-ridge-all", "a head all of whose rows are fitted to what B says in its own tokens."),
        head("head-ridge-all-bias", "`head-ridge-all` and a bias, as in `head-mean-bias`."),
        head("head-a", "A's head behind a ridge from B's last stream to A's."),
        head("shuffled-head", "its head's rows exchanged at random.", "null", compared_with="composite", brief=True),
    ]  # fmt: skip
    return [replace(row, across_tokenizers=True) for row in found]


ROWS: tuple[Row, ...] = (
    *_models(),
    *_closed_forms(),
    *_regressions(),
    *_bounds(),
    *_alternatives(),
    *_nulls(),
    *_depth_surgery(),
    *_across_tokenizers(),
)


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
    """What `translation` may be, beside auto."""
    return [found.short for found in ROWS if found.kind == "translation"]


def nulls_of(name: str) -> list[str]:
    """Names of the nulls of a row."""
    return [found.name for found in ROWS if found.compared_with == name and found.kind == "null"]


def compared_with() -> dict[str, str]:
    """Rows whose difference to another row the report shows, and that row."""
    return {found.name: found.compared_with for found in ROWS if found.compared_with is not None}


def leads_to(row: Row, wants: Callable[[str], bool]) -> bool:
    """Whether `wants` accepts this row's name, or that of a row that starts from it."""
    return wants(row.name) or any(leads_to(one, wants) for one in ROWS if one.base == row.name)
