"""Which families of transformers can be cut and joined to themselves without a change, and what other commands do with them.

    python benchmarks/families.py > build/families.jsonl        # all of transformers' causal language models: 40 minutes
    python benchmarks/families.py llama qwen3_moe

A model of six blocks, saved and loaded, is joined to itself at every site, and its logits are compared with the model's bit by
bit: for a whole text, in pieces with a cache, padded on the left, and both. `answers` counts the ways in which the model itself
runs; in the others there is nothing to compare. `native` is whether its blocks can be renumbered, as `--native` does. Every
command is then run on the model (see `_family_commands.py`). Seconds are those of the processor.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import _families
import transformers
from _family_commands import Desk, outcomes
from transformers import PreTrainedModel

import tiny
from stitch.composite.exact import answers, inexact, require_renumbered
from stitch.errors import UsageError
from stitch.models.loading import load
from stitch.models.model import Model


def tried(kind: str, desk: Desk | None = None) -> dict:
    """The outcome for one family, with the reason where it is not exact. With a `desk` the other commands are tried as well."""
    try:
        net = _families.net(kind)
    except Exception as error:  # of a family's own code: sizes that depend on one another, packages that are missing
        return {"outcome": "not built", "why": _one_line(error)}
    started = time.process_time()
    try:
        model = _loaded(net, kind)
        own = answers(model, model.net)
        found = {site: why for site in range(model.depth + 1) if (why := inexact(model, site, own)) is not None}
    except Exception as error:
        return {"outcome": "refused", "why": _one_line(error)}
    line = {
        "class": model.flow["class"], "sites": model.depth + 1 - len(found), "of": model.depth + 1,
        "blocks": model.flow["blocks"], "answers": sum(not isinstance(one, str) for one in own.values()),
        "unanswered": [{"way": way, "said": one} for way, one in own.items() if isinstance(one, str)],
        "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip
    if set(found) - {model.depth}:  # a family need not have a module after its last block
        return {"outcome": "refused", "why": found[min(found)], **line}
    line = {"outcome": "exact", "native": "yes" if _is_renumbered(model) else "no", **line}
    if desk is None:
        return line
    started = time.process_time()
    return {**line, **outcomes(net, kind, desk), "seconds_of_commands": round(time.process_time() - started, 1)}


def _loaded(net: PreTrainedModel, kind: str) -> Model:
    """The model as users load it: from a folder, by `load`, which refuses one that is not causal or has no chain of blocks."""
    with TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return load(Path(folder), name=kind)


def _is_renumbered(model: Model) -> bool:
    try:
        require_renumbered(model)
    except UsageError:
        return False
    return True


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return said if isinstance(error, UsageError) else f"{type(error).__name__}: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=_families.KINDS)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    families = parser.parse_args().families
    with TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for kind in families:
            line = {
                "benchmark": "families", "family": kind, **tried(kind, desk), "transformers": transformers.__version__,
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            print(f"{kind}: {line['outcome']}", *line.get("commands", {}).values(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
