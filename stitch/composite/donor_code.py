"""Code of models that are no part of transformers, as files of what is made from them, which then loads where nobody else has it.

transformers copies the file that `auto_map` names, and files that it and these import with a dot in front, from one folder, and
knows them by name. In a stock model they keep their names. A composite can have those of several models, so there they get a name
that no other model's have: `donor_`, a hash of all of them, and their own.
"""

import copy
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from stitch.errors import StitchError
from stitch.modeling.modeling_composite import CLASSES, StitchBaseModel, StitchConfig, code_of_donor, parts_of
from stitch.modeling.modeling_recurrent import RecurrentConfig
from stitch.models.donor_code import brings_code, is_foreign

AUTO = ("AutoConfig", "AutoModelForCausalLM")
INDEX = "modeling_donors.py"
RELATIVE = re.compile(r"^(\s*from\s+\.)(\w+)(\s+import)", re.MULTILINE)  # as transformers finds them


def save_net(net: PreTrainedModel, folder: Path, max_shard_bytes: int = 50_000_000_000) -> None:
    """As `net.save_pretrained`, with the code of the models that `net` is made from."""
    net.save_pretrained(folder, max_shard_size=max_shard_bytes)
    config = copy.deepcopy(net.config)
    files = carry(config)
    if isinstance(config, StitchConfig):  # save_pretrained enters the class of `net` alone
        config.auto_map = {**config.auto_map, "AutoModel": f"modeling_composite.{StitchBaseModel.__name__}"}
    config.save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def carry(config: PreTrainedConfig) -> dict[str, bytes]:
    """The files with the code of all stock models in `config`; of a composite also the one that imports their classes.
    Empty where transformers has all.

    In `config`, `auto_map` of every stock model then names what is in these files; of one without any it is taken out.
    """
    if not isinstance(config, (StitchConfig, RecurrentConfig)):
        return _code_of(config, is_part=False)
    parts = [*parts_of(config.base_config if isinstance(config, RecurrentConfig) else config)]
    files = {name: content for part in parts for name, content in _code_of(part, is_part=True).items()}
    return {**files, INDEX: _index(parts)} if files else {}


def _code_of(model: PreTrainedConfig, *, is_part: bool) -> dict[str, bytes]:
    """The files of one stock model, which has `auto_map` set or taken out. Those of a part of others get new names."""
    named = getattr(model, "auto_map", None) or {}
    classes = _classes(model, named) if brings_code(model) else []
    vars(model).pop("auto_map", None)
    if not classes or not all(map(_can_go, classes)):
        return {}
    sources = _sources(classes)
    names = _new_names(sources) if is_part else {stem: stem for stem in sources}
    others = {} if is_part else {auto: name for auto, name in named.items() if str(name).partition(".")[0] in sources}
    own = {auto: f"{names[_file(one).stem]}.{one.__name__}" for auto, one in zip(AUTO, classes, strict=True)}
    model.auto_map = {**others, **own}
    return {f"{names[stem]}.py": _renamed(text, names).encode() for stem, text in sources.items()}


def _classes(model: PreTrainedConfig, named: Any) -> list[type]:
    """The classes of config and model. A composite that was loaded has those of its parts."""
    own = [CLASSES[name] for name in code_of_donor(named) if name in CLASSES]
    net: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model), None)
    return own or ([type(model), net] if net else [])


def _can_go(one: type) -> bool:
    """Not a class of transformers, and one of a file that can be imported: none that was typed in a notebook, or in the program
    that runs."""
    return is_foreign(one) and one.__module__ != "__main__" and one.__module__.rpartition(".")[2] == _file(one).stem


def _file(one: type) -> Path:
    return Path(getattr(sys.modules[one.__module__], "__file__", None) or "")


def _sources(classes: list[type]) -> dict[str, str]:
    """The text of all files that `classes` need, by the stems of their names."""
    found: dict[str, str] = {}
    for one in classes:
        try:
            for file in (_file(one), *map(Path, get_relative_import_files(_file(one)))):
                found[file.stem] = file.read_text(encoding="utf-8")
        except OSError as error:
            raise StitchError(
                f"code that is copied must be files of one folder; those that {one.__name__} needs are not: {error}."
            ) from error
    return found


def _new_names(sources: dict[str, str]) -> dict[str, str]:
    digest = hashlib.sha256("".join(f"{name}\n{sources[name]}\n" for name in sorted(sources)).encode()).hexdigest()[:12]
    return {stem: stem if stem.startswith("donor_") else f"donor_{digest}_{stem}" for stem in sources}


def _renamed(text: str, names: dict[str, str]) -> str:
    return RELATIVE.sub(lambda found: f"{found[1]}{names.get(found[2], found[2])}{found[3]}", text)


def _index(parts: list[PreTrainedConfig]) -> bytes:
    names = sorted({name for part in parts for name in code_of_donor(getattr(part, "auto_map", None)) if name})
    lines = ['"""Classes of the models that this one consists of, whose code is no part of transformers."""', ""]
    for number, name in enumerate(names):
        stem, _, one = name.partition(".")
        lines.append(f"from .{stem} import {one} as class_{number}")
    lines += [
        "",
        "CLASSES: dict[str, type] = {",
        *(f'    "{name}": class_{n},' for n, name in enumerate(names)),
        "}",
        "",
    ]
    return "\n".join(lines).encode()
