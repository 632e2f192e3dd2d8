"""What config.json of any model must say, whatever its family: numbers that can be sizes, ids and rates.

Keys that are not listed here are the family's own, and transformers checks them.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from sae.json_file import faults, path_of, shown

MOST = 2**31 - 1
FITS = range(-(2**63), 2**63)
DEEPEST = 20  # levels of nesting
RATES = ("dropout", "pdrop", "dropout_rate", "dropout_prob")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


def _whole(value: Any) -> Any:
    """As `_listed`. Some families compute a size, which makes it a float."""
    every = _listed(value)
    return every and [int(one) if isinstance(one, float) and one.is_integer() else one for one in every]


Name = Annotated[str, Field(strict=True, pattern=r"^[\w./-]+$", max_length=200)]
Size = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Blocks = Annotated[int, Field(strict=True, ge=0, le=10_000)]
Id = Annotated[int, Field(strict=True, ge=-1, le=MOST)]  # -1: none, in some families
Epsilon = Annotated[float, Field(strict=True, ge=0, lt=1)]
# One value for all blocks, or a list with one for each.
Sizes = Annotated[list[Size] | None, BeforeValidator(_whole)]
Counts = Annotated[list[Count] | None, BeforeValidator(_listed)]
Ids = Annotated[list[Id] | None, BeforeValidator(_listed)]


class ModelConfig(BaseModel):
    """Of any family. The spellings of one size are those of several families."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model_type: Name | None = None
    architectures: list[Name] | None = None
    auto_map: dict | None = None
    is_encoder_decoder: StrictBool | None = None
    tie_word_embeddings: StrictBool | None = None
    quantization_config: dict | None = None
    text_config: "ModelConfig | None" = None

    vocab_size: Size | None = None
    hidden_size: Size | None = None
    n_embd: Size | None = None
    d_model: Size | None = None

    num_hidden_layers: Blocks | None = None
    n_layer: Blocks | None = None
    n_layers: Blocks | None = None
    num_layers: Blocks | None = None

    num_attention_heads: Sizes = None
    n_head: Sizes = None
    n_heads: Sizes = None
    num_key_value_heads: Sizes = None
    head_dim: Counts = None  # 0 where the family finds it by itself
    intermediate_size: Sizes = None
    n_inner: Sizes = None
    ffn_dim: Sizes = None
    max_position_embeddings: Sizes = None
    n_positions: Sizes = None
    n_ctx: Sizes = None

    layer_norm_epsilon: Epsilon | None = None
    layer_norm_eps: Epsilon | None = None
    rms_norm_eps: Epsilon | None = None
    norm_epsilon: Epsilon | None = None
    norm_eps: Epsilon | None = None

    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """Everything that config.json cannot say; nothing where it may describe a model."""
    return [*faults(ModelConfig, config), *_beyond(config)]


def _beyond(config: Mapping[str, Any]) -> list[str]:
    """Numbers anywhere in `config` that no library takes, and nesting that no library follows."""
    found, left = [], [((), config)]
    while left:
        place, value = left.pop()
        if len(place) > DEEPEST:
            return [f"{path_of(place[:1])}: must be nested at most {DEEPEST} deep"]
        if isinstance(value, (dict, list)):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            left += [((*place, key), inner) for key, inner in entries]
        elif isinstance(value, (int, float)) and (wrong := _wrong(place, value)):
            found.append(f"{path_of(place)}: must {wrong}, got {shown(value)}")
    return found


def _wrong(place: tuple, value: float) -> str | None:
    if value != value:
        return "be a number"
    if isinstance(value, int) and value not in FITS:
        return "fit 64 bits"
    return "be in 0..1" if str(place[-1]).endswith(RATES) and not 0 <= value <= 1 else None
