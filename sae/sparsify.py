"""SAEs in folders of EleutherAI's sparsify: cfg.json and sae.safetensors, in a folder named after the hook.

SAELens's own reader of such folders is not used: in its version 6.54 it transposes W_dec, though sparsify stores it as SAELens
does, and subtracts the decoder bias only where the decoder is not normalised, though sparsify always does.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field

from sae.errors import SAEError
from sae.json_file import faults, read_config, read_object
from sae.messages import one_line
from sae.plain import from_matrices

if TYPE_CHECKING:
    import sae_lens

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
SEED = re.compile(r"seed\d+")  # the folder below that of the hook, where there are several
HOOK = re.compile(r"embed_tokens|(?:\w+\.)*(?:layers|h|blocks)\.\d+(?:\.\w+)*", re.ASCII)  # as layers.3 and h.3.mlp
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]


class SparsifyFile(BaseModel):
    d_in: Size
    k: Size
    activation: Literal["topk"] = "topk"
    signed: Literal[False] = False
    transcode: Literal[False] = False
    skip_connection: Literal[False] = False


def is_sparsify(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path, device: str) -> "sae_lens.SAE":
    """The SAE: z = top k of relu(encoder (x − b_dec) + bias), and x̂ = z W_dec + b_dec.

    Its hook is the name of the folder, or of the folder that a link leads to, and its model stands in config.json above it.
    Raises: SAEError for a damaged folder, a transcoder, a skip connection, signed codes and an activation other than topk.
    """
    values = read_config(folder / CONFIG)
    if found := faults(SparsifyFile, values):
        raise SAEError(
            f"{folder / CONFIG} must describe an SAE of sparsify that can be used here; {'; '.join(found[:5])}."
        )
    weights = _weights(folder / WEIGHTS)
    if weights["W_enc"].shape[0] != values["d_in"]:
        raise SAEError(
            f"{folder} must read activations of width {values['d_in']}, as it says; it reads {len(weights['W_enc'])}."
        )
    known = (Path(os.path.abspath(folder)), folder.resolve())
    places = [one.parent if SEED.fullmatch(one.name) else one for one in known]
    return from_matrices(
        folder, "topk", weights, k=values["k"], subtracts=True, device=device,
        model=next(filter(None, (_model(place.parent / "config.json") for place in places)), None),
        hook=next((place.name for place in places if HOOK.fullmatch(place.name)), None),
    )  # fmt: skip


def _weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        stored = load_file(file)
    except Exception as error:  # safetensors raises its own, and those of the system
        raise SAEError(
            f"{file} is truncated, corrupt or no safetensors file: {one_line(error)}. Download it again."
        ) from error
    if set(stored) != set(NAMES):
        raise SAEError(f"{file} must hold {', '.join(NAMES)}; got {', '.join(sorted(stored))[:120]}.")
    found = {NAMES[name]: tensor for name, tensor in stored.items()}
    return {**found, "W_enc": found["W_enc"].T.contiguous()}


def _model(file: Path) -> str | None:
    try:
        name: Any = read_object(file).get("model")
    except (OSError, ValueError):
        return None
    return name if isinstance(name, str) else None
