"""Writes a composite to a folder that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads.

Tensors are copied by byte range from the donors' safetensors files and renamed; the donors are never loaded into memory.
"""

import copy
import functools
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import PreTrainedModel

from stitch import modeling
from stitch.composite.compose import set_dtype
from stitch.composite.donor_code import carry
from stitch.errors import StitchError
from stitch.files.folders import appear
from stitch.files.output import check_output
from stitch.files.shards import Held, Stored, write_shards
from stitch.files.tokenizer import copy_tokenizer
from stitch.modeling.modeling_composite import StitchBaseModel, StitchConfig, StitchForCausalLM
from stitch.models.anatomy import Anatomy, anatomy_of, dotted
from stitch.models.model import Model
from stitch.models.text_part import text_tensors
from stitch.progress import Progress
from stitch.translation.module import translation_tensors
from stitch.translation.types import Translation

# Of `stitch/modeling`: without these a composite does not load.
CODE = ("modeling_composite.py", "modeling_halves.py", "modeling_translation.py", "modeling_donors.py")


@dataclass(frozen=True)
class OtherTokenizer:
    """Where the tokenizer of a composite is that of the model in `folder`, not B's: `tensors` replace those of B's files, by
    their names in the composite."""

    folder: Path
    tensors: Mapping[str, torch.Tensor]


def head_tensors(b: Model) -> dict[str, torch.Tensor]:
    """The tensors of B's head, by their names in a composite."""
    return {f"b.{b.anatomy.head}.{name}": tensor.detach().cpu() for name, tensor in b.head.named_parameters()}


def write_checkpoint(
    target: Path,
    config: StitchConfig,
    a: Path,
    b: Path,
    translation: Translation,
    *,
    loaded: Mapping[str, PreTrainedModel] | None = None,
    other: OtherTokenizer | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes the composite that `config` describes (`composite.config`, or `stitch_config(…)`) to the folder `target`.

    `a` and `b` are the donors' folders; the tokenizer is B's, or that of `other`. `loaded` are both donors by "a" and "b": what
    the files of a family that is not tested hold is known only once it is loaded. With `dtype` None every tensor keeps the type
    that it is stored in. The folder appears complete or not at all, and the same inputs give the same bytes.
    Raises: UsageError when `target` exists and may not be replaced; StitchError when a donor's file is missing or damaged,
    or when writing fails.
    """
    check_output(target, overwrite)
    replaced = {} if other is None else {name: Held(tensor) for name, tensor in other.tensors.items()}
    tensors = donor_tensors(config, a, b, dtype, loaded, replaced)
    model_dtype = dtype or _common_dtype(tensors)
    for name, tensor in translation_tensors(translation, model_dtype).items():
        tensors[f"translation.{name}"] = Held(tensor)
    config = copy.deepcopy(config)
    set_dtype(config, model_dtype)
    of_donors = carry(config)

    def fill(folder: Path) -> None:
        write_shards(folder, tensors, max_shard_bytes, progress)
        (folder / "config.json").write_text(_config_json(config))
        (folder / "generation_config.json").write_text(_generation_json(config, b if other is None else other.folder))
        for name in CODE:
            shutil.copyfile(Path(modeling.__file__).parent / name, folder / name)
        copy_tokenizer(b if other is None else other.folder, folder)
        for name, content in {**of_donors, **(extra_files or {})}.items():
            (folder / name).write_bytes(content)

    appear(target, fill, "join", overwrite=overwrite)


def donor_tensors(
    config: StitchConfig,
    a: Path,
    b: Path,
    dtype: torch.dtype | None,
    loaded: Mapping[str, PreTrainedModel] | None = None,
    replaced: Mapping[str, Held] = MappingProxyType({}),
) -> dict[str, Stored | Held]:
    """Where every tensor of the composite's halves comes from, by its name in the composite. Of files only headers are read.

    Those of `replaced` are in no file.
    """
    with torch.device("meta"):
        slots = StitchForCausalLM(config).state_dict()
    a_anatomy, b_anatomy = anatomy_of(config.a_config, config.a_flow), anatomy_of(config.b_config, config.b_flow)
    a_stored, b_stored = text_tensors(a), text_tensors(b)
    tensors: dict[str, Stored | Held] = {}
    shared = f"b.{b_anatomy.head}.weight" if config.shares_embedding else None  # stored as A's embedding
    for name, slot in slots.items():
        half, _, path = name.partition(".")
        if half not in ("a", "b") or name == shared:
            continue
        if name in replaced:
            tensors[name] = replaced[name]
            continue
        donor, anatomy = (dotted(a_anatomy.body, path), a_anatomy) if half == "a" else (path, b_anatomy)
        if loaded and not anatomy.tested:
            held = _tensor(loaded[half], donor)
            tensors[name] = Held(held if dtype is None or not held.is_floating_point() else held.to(dtype))
            continue
        stored = _find(donor, anatomy, *((a_stored, a) if half == "a" else (b_stored, b)))
        if stored.shape != tuple(slot.shape):
            raise StitchError(
                f"{donor} must have shape {tuple(slot.shape)}, as config.json says; in {stored.path} it has "
                f"{stored.shape}: the folder mixes two models, download it again."
            )
        is_weight = stored.stored_dtype.is_floating_point and not _stays_float32(name)
        cast = dtype if dtype is not None and is_weight else None
        tensors[name] = Stored(stored.path, stored.start, stored.stop, stored.stored_dtype, stored.shape, cast)
    return tensors


def _tensor(net: PreTrainedModel, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    return getattr(net.get_submodule(path), last).detach().cpu()


def _find(name: str, anatomy: Anatomy, stored: dict[str, Stored], folder: Path) -> Stored:
    """The stored tensor that the model calls `name`: under that name, the family's own, or that of a tied tensor."""
    tied = [f"{anatomy.head}.weight", dotted(anatomy.body, f"{anatomy.embedding}.weight")]
    # Of two tied tensors a file may hold either or both; its own takes precedence.
    for own in [name, *(other for other in tied if name in tied and other != name)]:
        for candidate in (own, *(file + own.removeprefix(at) for at, file in anatomy.stored_as if own.startswith(at))):
            if candidate in stored:
                return stored[candidate]
    raise StitchError(f"the checkpoint needs the tensor {name}; {folder} does not have it: download it again.")


def _common_dtype(tensors: Mapping[str, Stored | Held]) -> torch.dtype:
    """The narrowest type that represents every donor weight exactly. Translations are left out: they are always float32."""
    weights = [tensor.dtype for name, tensor in tensors.items() if not _stays_float32(name)]
    return functools.reduce(torch.promote_types, [dtype for dtype in weights if dtype.is_floating_point])


def _stays_float32(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in StitchForCausalLM._keep_in_fp32_modules_strict or ())


def _config_json(config: StitchConfig) -> str:
    content = config.to_dict()
    content["architectures"] = [StitchForCausalLM.__name__]
    content["auto_map"] = {
        "AutoConfig": f"modeling_composite.{StitchConfig.__name__}",
        "AutoModel": f"modeling_composite.{StitchBaseModel.__name__}",
        "AutoModelForCausalLM": f"modeling_composite.{StitchForCausalLM.__name__}",
    }
    content.pop("_name_or_path", None)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _generation_json(config: StitchConfig, donor: Path) -> str:
    """The generation settings of the donor whose tokens are read, without the static cache that some families ask for and a
    composite cannot use.
    """
    content: dict = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    path = donor / "generation_config.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise StitchError(f"{path} must be JSON; it cannot be read: download it again.") from error
    content.pop("cache_implementation", None)
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
