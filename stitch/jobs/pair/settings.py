"""Whether a pair can be joined as the settings say, and the defaults that depend on its models."""

from sae.schedule import TOKENS_PER_FEATURE
from stitch.composite.cuts import require_exact
from stitch.composite.exact import require_renumbered
from stitch.config import AnySettings, CompleteSettings, same_relative_depth
from stitch.errors import UsageError, require_extra
from stitch.jobs.pair.text import text_size
from stitch.layers.choose import check_choosable
from stitch.models.model import Model


def check(settings: AnySettings, a: Model, b: Model) -> None:
    """Raises UsageError when the models cannot be joined as the settings say."""
    if settings.matching == "ot" and not settings.native:
        require_extra("ot", "balanced transport")
    a.check_site(settings.layer)
    require_exact(a, settings.layer, first=not settings.native)
    if isinstance(settings.layer_b, int):
        b.check_site(settings.layer_b, "layer_b")
        require_exact(b, settings.layer_b)
    elif settings.layer_b == "auto":
        check_choosable(settings.layer, b)
    if settings.native:
        require_renumbered(a)
    widest = max(a.width, b.width)
    if settings.features is not None:
        if settings.features < widest:
            raise UsageError(f"features must be at least the width, {widest}; got {settings.features}: raise it.")
        # SAE training keeps weights, gradients and two Adam moments of both halves of both SAEs, in float32.
        needed = 4 * 4 * 2 * settings.features * (a.width + b.width)
        if needed > settings.memory:
            raise UsageError(
                f"features must fit into `memory`: {settings.features:,} need {needed / 2**30:.1f} GiB to train, and `memory` is "
                f"{settings.memory / 2**30:.1f} GiB; lower `features` or raise `memory`."
            )
    if not settings.native and not (
        settings.sae_a and settings.sae_b
    ):  # depth surgery has no features, given SAEs have theirs
        tokens = text_size(settings, a, b).fit
        if settings.features is not None:
            check_determined(settings.features, tokens, "features")
        else:
            check_determined(widest, tokens, "the width of both streams")


def complete(settings: AnySettings, a: Model, b: Model) -> CompleteSettings:
    """The settings with every default filled in that depends on the models. `layer_b` must not be "auto".

    Raises: UsageError when the models cannot be joined as the settings say.
    """
    check(settings, a, b)
    layer_b = settings.layer_b
    if layer_b is None:
        layer_b = same_relative_depth(settings.layer, a.depth, b.depth)
        require_exact(b, layer_b)
    if isinstance(layer_b, str):
        raise UsageError("layer_b must be a block's number here; got auto: choose a block first.")
    size = text_size(settings, a, b)
    values = {**settings.to_dict(), "layer_b": layer_b, "context": size.context, "tokens": size.fit}
    return CompleteSettings(**values)


def check_determined(features: int, tokens: int, what: str) -> None:
    """Raises UsageError for fewer than two tokens per feature, too few for least squares. `what` begins the message."""
    if tokens < TOKENS_PER_FEATURE * features:
        raise UsageError(
            f"{what} must be at most half the number of tokens to fit on, {tokens:,}; got {features:,}: "
            "raise `tokens` or lower `features`."
        )
