"""Code of donors that are no part of transformers, as files of a composite, which then loads where nobody else has it.

transformers copies the file that `auto_map` names, and files that it and these import with a dot in front, from one folder, and
knows them by name. So the files of a donor get a name that no other donor's have: `donor_`, a hash of all of them, and their own.
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from stitch.modeling.modeling_composite import CLASSES, StitchConfig, code_of_donor
from stitch.models.donor_code import brings_code, is_foreign

AUTO = ("AutoConfig", "AutoModelForCausalLM")
INDEX = "modeling_donors.py"
RELATIVE = re.compile(r"^(\s*from\s+\.)(\w+)(\s+import)", re.MULTILINE)  # as transformers finds them


def carry(config: StitchConfig, loaded: Mapping[str, PreTrainedModel]) -> dict[str, bytes]:
    """The files with the code of the donors in `config`, and the one that imports their classes. None where transformers has all.

    In `config`, `auto_map` of every part then names what is in these files; of a part that transformers has, it is taken out.
    `loaded` are the donors by "a" and "b".
    """
    files: dict[str, bytes] = {}
    for part, classes in _parts(config, loaded):
        if brings_code(part) and len(classes) == len(AUTO) and all(map(_can_go, classes)):
            part.auto_map = _taken(classes, files)
        else:
            vars(part).pop("auto_map", None)
    return {**files, INDEX: _index(config)} if files else {}


def _parts(config: StitchConfig, loaded: Mapping[str, PreTrainedModel]) -> list[tuple[PreTrainedConfig, list[type]]]:
    """Every stock part with the classes of its config and its model, of those that are known."""
    early = config.a_config
    found = [(config.b_config, _classes(config.b_config, loaded.get("b")))]
    if not isinstance(early, StitchConfig):
        return [(early, _classes(early, loaded.get("a"))), *found]
    return [*_parts(early, {}), *found]


def _classes(part: PreTrainedConfig, net: PreTrainedModel | None) -> list[type]:
    own = [CLASSES[name] for name in code_of_donor(getattr(part, "auto_map", None)) if name in CLASSES]
    return own or [type(part), *([] if net is None else [type(net)])]


def _can_go(one: type) -> bool:
    """Not a class of transformers, and not one that was typed in a notebook."""
    return is_foreign(one) and getattr(sys.modules[one.__module__], "__file__", None) is not None


def _taken(classes: list[type], files: dict[str, bytes]) -> dict[str, str]:
    """Adds the files that `classes` need to `files`, and returns the names of the classes there."""
    sources: dict[str, str] = {}
    for one in classes:
        first = Path(sys.modules[one.__module__].__file__ or "")
        for file in (first, *map(Path, get_relative_import_files(first))):
            sources[file.stem] = file.read_text(encoding="utf-8")
    digest = hashlib.sha256("".join(f"{name}\n{sources[name]}\n" for name in sorted(sources)).encode()).hexdigest()[:12]

    def renamed(stem: str) -> str:
        return stem if stem.startswith("donor_") else f"donor_{digest}_{stem}"

    for stem, text in sources.items():
        moved = RELATIVE.sub(
            lambda found: f"{found[1]}{renamed(found[2]) if found[2] in sources else found[2]}{found[3]}", text
        )
        files[f"{renamed(stem)}.py"] = moved.encode()
    stems = [one.__module__.rpartition(".")[2] for one in classes]
    return {auto: f"{renamed(stem)}.{one.__name__}" for auto, stem, one in zip(AUTO, stems, classes, strict=True)}


def _index(config: StitchConfig) -> bytes:
    names = sorted(
        {name for part, _ in _parts(config, {}) for name in code_of_donor(getattr(part, "auto_map", None)) if name}
    )
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
