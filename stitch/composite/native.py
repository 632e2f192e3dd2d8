"""A model that leaves out or repeats some of its blocks, as a standard checkpoint of its family.

It loads without this package's code; that of a family of one's own is copied. Tensors are copied by byte range from the donor's
safetensors files, with blocks renumbered; only changed weights are new. Where the files have other names than the model, as many
mixtures of experts do, transformers writes the model in memory.
"""

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from stitch.composite.donor_code import carry, save_net
from stitch.errors import StitchError
from stitch.files.folders import appear
from stitch.files.shards import Held, Stored, named_tensors, write_shards
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.anatomy import Anatomy
from stitch.models.model import Model
from stitch.models.shared import share
from stitch.models.text_part import text_tensors


def config_with_blocks(config: PreTrainedConfig, order: Sequence[int]) -> PreTrainedConfig:
    """A copy of `config` for a model of the blocks `order`. Lists that have an entry for each block get those of `order`."""
    found = copy.deepcopy(config)
    text = found.get_text_config(decoder=True)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers and not name.endswith("token_id"):
            setattr(text, name, [value[block] for block in order])
    text.num_hidden_layers = len(order)
    found._name_or_path = ""
    return found


def with_blocks(model: Model, order: Sequence[int]) -> Model:
    """`model` with the blocks `order`, which may leave out and repeat some. All tensors share memory with those of `model`."""
    prefix = model.anatomy.path_of_blocks
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config_with_blocks(model.config, order))
    share(net, model.net, lambda path: _renumbered(path, prefix, lambda block: order[block]))
    net.generation_config = copy.deepcopy(model.net.generation_config)
    return dataclasses.replace(model, net=net.eval(), altered=uuid4().hex).with_flow(
        {**model.flow, "depth": len(order)}
    )


def is_stored(model: Model) -> bool:
    """Whether the files have the tensors of all blocks under their names in the model: some families rename or merge them."""
    if model.anatomy.tested:
        return True
    held, names = {name for name, _ in model.net.named_parameters()}, text_tensors(model.folder).keys()
    prefix = model.anatomy.path_of_blocks
    return {name for name in names if name.startswith(f"{prefix}.")} == {
        name for name in held if name.startswith(f"{prefix}.")
    }


def write_native(
    target: Path,
    model: Model,
    order: Sequence[int],
    changed: Mapping[str, Tensor],
    *,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes `model` with the blocks `order` to the folder `target`, which must not exist, in the model's dtype.

    `changed` holds new values of parameters, by their names in `with_blocks(model, order)`. The folder appears complete or not
    at all, and the same inputs give the same bytes.
    Raises: StitchError when a donor's file is missing or damaged, or when writing fails.
    """
    config = config_with_blocks(model.config, order)
    config.architectures, config.dtype = [type(model.net).__name__], model.dtype
    tensors, of_donor = _tensors(model, order, changed) if is_stored(model) else None, carry(config)
    content = config.to_dict()
    content.pop("_name_or_path", None)

    def fill(folder: Path) -> None:
        if tensors is None:  # transformers knows the names that its family has in files
            save_net(_changed(with_blocks(model, order), changed), folder, max_shard_bytes)
        else:
            write_shards(folder, tensors, max_shard_bytes)
            (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
            for name, data in of_donor.items():
                (folder / name).write_bytes(data)
        copy_tokenizer(model.folder, folder)
        if (model.folder / "generation_config.json").is_file():
            shutil.copyfile(model.folder / "generation_config.json", folder / "generation_config.json")
        for name, data in (extra_files or {}).items():
            (folder / name).write_bytes(data)

    appear(target, fill, "join")


def _changed(model: Model, changed: Mapping[str, Tensor]) -> PreTrainedModel:
    """The network with these parameters, and with blocks that share no memory: in files each has weights of its own."""
    for name, value in changed.items():
        path, _, last = name.rpartition(".")
        setattr(model.net.get_submodule(path), last, nn.Parameter(value, requires_grad=False))
    seen: set[int] = set()
    for parameter in model.blocks.parameters():
        if parameter.data_ptr() in seen:
            parameter.data = parameter.data.clone()
        seen.add(parameter.data_ptr())
    return model.net


def _tensors(model: Model, order: Sequence[int], changed: Mapping[str, Tensor]) -> dict[str, Stored | Held]:
    """The new checkpoint's tensors, by the names in the donor's files, so that tied weights are stored once as before."""
    prefixes = _names_in_files(model.anatomy.path_of_blocks, model.anatomy)
    named, own = named_tensors(model.folder), model.net.state_dict().keys()
    tensors: dict[str, Stored | Held] = {}
    for name, stored in text_tensors(model.folder).items():
        if named and name not in named and name not in own:  # a shard may hold tensors of something else
            continue
        cast = model.dtype if stored.stored_dtype.is_floating_point else None
        prefix = next((prefix for prefix in prefixes if re.match(rf"{re.escape(prefix)}\.\d+\.", name)), None)
        if prefix is None:
            tensors[name] = dataclasses.replace(stored, cast=cast)
            continue
        donor = int(name[len(prefix) + 1 :].partition(".")[0])
        for block in (block for block, of in enumerate(order) if of == donor):
            tensors[_renumbered(name, prefix, lambda _, block=block: block)] = dataclasses.replace(stored, cast=cast)
    for name, value in changed.items():
        place = next((found for found in _names_in_files(name, model.anatomy) if found in tensors), None)
        if place is None or tensors[place].shape != tuple(value.shape):
            raise StitchError(
                f"the checkpoint needs the tensor {name}; {model.folder} does not have it: download it again."
            )
        tensors[place] = Held(value.to(model.dtype))
    return tensors


def _names_in_files(name: str, anatomy: Anatomy) -> list[str]:
    """The names that `name` may have in checkpoint files: that of the family's files, or the model's."""
    found = [own + name.removeprefix(start) for start, own in anatomy.stored_as if name.startswith(start)]
    return [*found, name]


def _renumbered(path: str, prefix: str, number: Callable[[int], int]) -> str:
    """`path` with its block's number, which follows `prefix`, replaced by `number` of it."""
    if not path.startswith(f"{prefix}."):
        return path
    block, dot, rest = path[len(prefix) + 1 :].partition(".")
    return f"{prefix}.{number(int(block))}{dot}{rest}"
