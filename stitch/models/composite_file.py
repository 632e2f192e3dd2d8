"""What config.json of a composite must say. The format is this package's own, so its parts have no key that is unknown here.

Other programs add keys beside them, such as transformers its version: these are not looked at.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from sae.json_file import faults
from stitch.models.config_file import Blocks, Count, Id, ModelConfig, Size

Path = Annotated[str, Field(strict=True, pattern=r"^(\w+(\.\w+)*)?$", max_length=300)]  # to a module
Share = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Own(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Residual(_Own):
    kind: Literal["residual"]
    site: Blocks
    back: Count = 0
    width: Size
    identity: StrictBool = False


class _Routed(_Own):
    kind: Literal["routed"]
    site: Blocks
    back: Count = 0
    width: Size
    classes: Size
    entries: Size


class _Codes(_Own):
    kind: Literal["codes"]
    site: Blocks
    width: Size
    features: Size
    activation: Literal["relu", "jumprelu", "topk", "rbf"]
    k: Count | None = None
    identity: StrictBool = False


class _Table(_Own):
    entries: Size
    rank: Size | None = None
    basis: StrictBool | None = None


class _Fallback(_Own):
    of: Literal["a", "b"]
    width: Size
    share: Share | None = None


class _Token(_Table):
    kind: Literal["token"]
    back: Count = 0
    keyed: StrictBool = False
    fallback: _Fallback | None = None


class _Position(_Table):
    kind: Literal["position"]


class _Ngram(_Table):
    kind: Literal["ngram"]
    order: Annotated[int, Field(strict=True, ge=2, le=62)]
    vocabulary: Size


_Term = Annotated[_Residual | _Routed | _Codes | _Token | _Position | _Ngram, Field(discriminator="kind")]


class _Translation(_Own):
    width: Size
    first: StrictBool = False
    bos_token_id: Id | None = None
    terms: list[_Term]


class _Flow(_Own):
    """See `stitch/modeling/modeling_halves.py`."""

    class_: Annotated[str, Field(strict=True, alias="class", pattern=r"^\w+$")]
    body: Path
    blocks: Path
    exit: Path | None
    input: Path
    head: Path
    argument: Count | StrictStr
    output: Annotated[list[Count], Field(min_length=2, max_length=2)] | None
    float32: StrictBool
    depth: Blocks
    width: Size
    embedded: Size
    idle: list[Path]
    unused: list[Path]
    ids: StrictBool


class _Composite(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    a_config: dict
    b_config: dict
    site_a: Blocks
    site_b: Blocks
    stop_b: Blocks | None = None
    train_seam_only: StrictBool = False
    shares_embedding: StrictBool = False
    max_position_embeddings: Size | None = None
    translation: _Translation
    a_flow: _Flow | None = None
    b_flow: _Flow | None = None


def is_composite(config: Mapping[str, Any]) -> bool:
    """It is asked of a config that was read, so a model that is not there is refused before torch is imported here."""
    from stitch.modeling.modeling_composite import StitchConfig

    return config.get("model_type") == StitchConfig.model_type


def composite_faults(config: Mapping[str, Any]) -> list[str]:
    """Everything that config.json of a composite cannot say; nothing where it may describe one."""
    found = faults(_Composite, config)
    for side in ("a_config", "b_config"):
        if isinstance(part := config.get(side), dict):
            inner = composite_faults(part) if side == "a_config" and is_composite(part) else faults(ModelConfig, part)
            found += [f"{side}.{one}" for one in inner]
    return found or list(_disagreements(config))


def _disagreements(config: Mapping[str, Any]) -> Iterator[str]:
    """What two values say against each other, of a config whose values are right by themselves."""
    flow, translation, site = config.get("b_flow"), config["translation"], config["site_a"]
    if flow is not None:
        stop = flow["depth"] if config.get("stop_b") is None else config["stop_b"]
        if not config["site_b"] <= stop <= flow["depth"]:
            yield f"site_b, stop_b: must be in order and at most b_flow.depth = {flow['depth']}, got {config['site_b']}, {stop}"
        if translation["width"] != flow["width"]:
            yield f"translation.width: must be b_flow.width = {flow['width']}, got {translation['width']}"
        depth = _depth(config)
        if depth is not None and site > depth:
            yield f"site_a: must be at most the {depth} blocks of a_config, got {site}"
    if config.get("shares_embedding"):
        yield from _of_shared(config)
    if translation.get("first") and translation.get("bos_token_id") is None:
        yield "translation.bos_token_id: is needed by translation.first"
    for number, term in enumerate(translation["terms"]):
        for what in _of_term(term, site):
            yield f"translation.terms.{number}.{what}"


def _of_shared(config: Mapping[str, Any]) -> Iterator[str]:
    """What keeps A's embedding and B's head from being one matrix."""
    a, b = config.get("a_flow"), config.get("b_flow")
    if a is None or b is None:
        yield "shares_embedding: needs a_flow and b_flow, so a_config must be that of a stock model"
    elif a["embedded"] != b["embedded"] or config["a_config"].get("vocab_size") != config["b_config"].get("vocab_size"):
        yield "shares_embedding: needs one size of embedding and one vocabulary in a_config and b_config"


def _depth(config: Mapping[str, Any]) -> int | None:
    """Blocks of A, which may be a composite. None where it says no number, as in composites of earlier versions."""
    early = config["a_config"]
    if not is_composite(early):
        return config["a_flow"]["depth"] if config.get("a_flow") else None
    stop = early.get("stop_b")
    if stop is None:
        stop = early["b_flow"]["depth"] if early.get("b_flow") else None
    return None if stop is None else early["site_a"] + stop - early["site_b"]


def _of_term(term: Mapping[str, Any], site: int) -> Iterator[str]:
    if term.get("site", 0) > site:
        yield f"site: must be at most site_a = {site}, got {term['site']}"
    if term["kind"] == "codes" and term["activation"] == "topk" and not 1 <= (term.get("k") or 0) <= term["features"]:
        yield f"k: must be in 1..{term['features']}, got {term.get('k')}"
    if term["kind"] == "ngram" and term["vocabulary"] ** term["order"] >= 2**63:
        yield f"vocabulary: must fit 64 bits when raised to the order {term['order']}, got {term['vocabulary']}"
    if term.get("rank") is not None and term.get("basis") is None:
        yield "basis: is needed beside rank"
    if term.get("fallback") is not None and not term.get("keyed"):
        yield "keyed: is needed by fallback"
