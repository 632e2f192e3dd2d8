"""SAEs in folders of dictionary_learning: config.json and ae.pt, a pickle, of which torch reads tensors alone.

Classes and their formulas, as that package has them in its version 0.1.0; codes are z, and x̂ = z W_dec + b_dec.
    AutoEncoder             z = relu(W (x − b_dec) + b)
    AutoEncoderNew          z = relu(W x + b)
    AutoEncoderTopK         z = the k largest of relu(W (x − b_dec) + b)
    BatchTopKSAE, MatryoshkaBatchTopKSAE  z = relu(W (x − b_dec) + b) where it is above one threshold, else 0
    JumpReluAutoEncoder     z = W x + b where it is above the threshold of its feature and 0, else 0
"""

import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, Field, StrictStr

from sae.errors import SAEError
from sae.json_file import faults, read_config
from sae.messages import one_line, printable
from sae.plain import from_matrices

if TYPE_CHECKING:
    import sae_lens

CONFIG, WEIGHTS = "config.json", "ae.pt"
# Bytes of the pickle, which lists the tensors; their numbers are files of their own. In a longer one small pieces could become
# large, as an OrderedDict can be copied by six bytes.
LONGEST = 2**13
NAMED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (BFloat16|[A-Z][a-z]+)Storage"
)
LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


@dataclass(frozen=True)
class Kind:
    """A class: SAELens's architecture, its names of tensors by those in the file, and whether b_dec is subtracted."""

    architecture: Literal["standard", "topk", "jumprelu"]
    names: dict[str, str]
    subtracts: bool = True


KINDS = {
    "AutoEncoder": Kind("standard", {**LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": Kind("standard", {**LINEAR, "decoder.bias": "b_dec"}, subtracts=False),
    "AutoEncoderTopK": Kind("topk", {**LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": Kind("jumprelu", {**LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", {**PLAIN, "threshold": "threshold"}),
    "JumpReluAutoEncoder": Kind("jumprelu", {**PLAIN, "threshold": "threshold"}, subtracts=False),
}
Size = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]


class Trainer(BaseModel):
    dict_class: StrictStr
    activation_dim: Size
    dict_size: Size
    k: Size | None = None
    lm_name: StrictStr | None = None
    submodule_name: StrictStr | None = None


class Buffer(BaseModel):
    io: Literal["in", "out"] = "out"  # the third, in_and_out, is that of a transcoder


class DictionaryFile(BaseModel):
    trainer: Trainer
    buffer: Buffer = Buffer()


def is_dictionary_learning(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path, device: str) -> "sae_lens.SAE":
    """The SAE, with its model and its hook, `submodule_name`; a `layer` alone does not say what of it was read.

    Raises: SAEError for a damaged folder, and for a class that is not listed above.
    """
    said = _config(folder / CONFIG)
    if (kind := KINDS.get(said.trainer.dict_class)) is None:
        given = printable(said.trainer.dict_class)[:40]
        raise SAEError(f"an SAE of dictionary_learning must be one of {', '.join(KINDS)}; {folder} is a {given}.")
    stored = _tensors(folder / WEIGHTS)
    if missing := sorted(set(kind.names) - set(stored)):
        raise SAEError(f"{folder / WEIGHTS} must hold {', '.join(kind.names)}; {missing[0]} is not there.")
    weights = {ours: stored[theirs].detach() for theirs, ours in kind.names.items()}
    if "encoder.weight" in kind.names:  # of a linear layer, which stores the transpose
        weights |= {name: weights[name].T.contiguous() for name in ("W_enc", "W_dec") if weights[name].ndim == 2}
    told = (said.trainer.activation_dim, said.trainer.dict_size)
    if tuple(weights["W_enc"].shape) != told:
        raise SAEError(
            f"{folder / CONFIG} must describe the SAE beside it, of shape {tuple(weights['W_enc'].shape)}; it says {told}."
        )
    return from_matrices(
        folder, kind.architecture, weights, k=_k(folder, said.trainer, stored) if kind.architecture == "topk" else None,
        subtracts=kind.subtracts, model=said.trainer.lm_name, hook=said.trainer.submodule_name, device=device,
    )  # fmt: skip


def _config(file: Path) -> DictionaryFile:
    values = read_config(file)
    if found := faults(DictionaryFile, values):
        raise SAEError(f"{file} must describe an SAE of dictionary_learning; {'; '.join(found[:5])}.")
    return DictionaryFile.model_validate(values)


def _k(folder: Path, trainer: Trainer, stored: dict[str, torch.Tensor]) -> int:
    """As file and config say, which must agree where both say it."""
    known = {int(stored["k"])} if "k" in stored and stored["k"].numel() == 1 and stored["k"].isfinite() else set()
    known |= {trainer.k} if trainer.k is not None else set()
    if len(known) != 1:
        raise SAEError(
            f"the k of {folder} must be one number in {CONFIG} and {WEIGHTS}; got {sorted(known) or 'none'}."
        )
    return known.pop()


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in the file. Nothing in it is run, and nothing in it can take much more memory than it has bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("it is compressed, as torch.save never does")
            if sum(part.file_size for part in parts) > file.stat().st_size:
                raise ValueError("it claims to hold more than it has bytes")
            for part in parts:
                if part.filename.lower().endswith(".pkl"):  # torch reads DATA.PKL as well
                    _require_tensors(archive.read(part))
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(map(_is_whole, found.values())):
            raise ValueError("it must hold tensors alone, by name")
    except MemoryError:
        raise
    except Exception as error:  # of zipfile, of torch's reader and of the system
        raise SAEError(f"{file} is truncated, corrupt or holds more than tensors: {one_line(error)}.") from error
    return found


def _require_tensors(pickle: bytes) -> None:
    """Raises: ValueError where it names more than tensors are made of. torch would also make a bytearray of any size."""
    if len(pickle) > LONGEST:
        raise ValueError("its list of tensors is too long")
    for operation, argument, _ in pickletools.genops(pickle):  # torch refuses other operations that name something
        if operation.name == "GLOBAL" and not NAMED.fullmatch(named := str(argument)):
            raise ValueError(f"it names {printable(named)[:60]}")


def _is_whole(tensor: object) -> bool:
    """Whether every number of a tensor is stored. A stride of 0 would make a huge one from a single number."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
