"""The anatomy that a user gives, beside what is found by looking: names that are left out are filled in, all others compared."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stitch.errors import UsageError
from stitch.files.specification import faulty
from stitch.models.anatomy import Anatomy, anatomy_of, dotted
from stitch.models.flow import flow_of
from stitch.models.writes import down_of

BESIDE_BLOCKS = {"embedding": "input", "final_norm": "exit", "head": "head"}  # and what the flow calls them
IN_BODY = ("positions", "embedding_dropout")
IN_BLOCKS = ("attention", "heads_out", "mlp", "down", "mlp_out_norm")


def flow_and_anatomy(net: PreTrainedModel, given: Anatomy | None) -> tuple[dict, Anatomy]:
    """The flow of `net`, and its anatomy, which is that which was given for its family, if any, with what was left out.

    Where several module lists may be the blocks, those that were given are.
    Raises: UsageError with all names that are not the modules found by looking; as `flow_of` where nothing is found.
    """
    flow = flow_of(net, blocks=_chosen(net, given), settled=True)
    anatomy, down = anatomy_of(net.config, flow), down_of(net, flow)
    if given is None:
        return flow, replace(anatomy, down=down)
    if faults := [*_faults(net, given, flow, down)]:
        raise faulty(f"the anatomy of {net.config.model_type}", faults)
    return flow, replace(anatomy, down=given.down or (down if given.mlp_out_norm is None else ""))


def _chosen(net: PreTrainedModel, given: Anatomy | None) -> str | None:
    """The path of the blocks that were given, where they can be the blocks; None where looking finds them."""
    if given is None or not given.blocks:
        return None
    for body in (given.body, net.base_model_prefix):
        path = dotted(body, given.blocks)
        if isinstance(_module(net, path), nn.ModuleList):
            try:
                return flow_of(net, blocks=path)["blocks"]
            except UsageError:  # what is found without it is in the message
                return None
    return None


def _faults(net: PreTrainedModel, given: Anatomy, flow: dict, down: str) -> Iterator[str]:
    body = given.body or flow["body"]
    if body and not flow["blocks"].startswith(f"{body}."):
        yield f"body must be a module around the blocks, which are `{flow['blocks']}`; got {_told(_module(net, body), body)}"
        body = flow["body"]
    if given.blocks:
        yield from _differs(net, "blocks", body, given.blocks, flow["blocks"])
    for name, place in BESIDE_BLOCKS.items():
        if path := getattr(given, name):
            yield from _differs(net, name, "" if name == "head" else body, path, flow[place])
    for name in IN_BODY:
        path = getattr(given, name)
        if path and _module(net, dotted(body, path)) is None:
            yield f"{name} must be a module; got {_told(None, path)}"
    blocks: Any = net.get_submodule(flow["blocks"])
    for name in IN_BLOCKS:
        path = getattr(given, name)
        if path and all(_module(block, path) is None for block in blocks):  # some blocks may have another kind
            yield f"{name} must be a module of a block; got {_told(None, path)}"
        elif path and name == "down" and down and given.mlp_out_norm is None and path != down:
            yield f"down must be `{down}`, which was found by looking; got `{path}`"


def _differs(net: nn.Module, name: str, body: str, path: str, found: str | None) -> Iterator[str]:
    """What is wrong with a path that was given, where looking has `found` another module or none."""
    module = _module(net, dotted(body, path))
    if found is None:
        yield f"{name} must be left out, as no module takes the stream after the last block; got {_told(module, path)}"
    elif module is not net.get_submodule(found):
        wanted = found.removeprefix(f"{body}.") if body else found
        yield f"{name} must be `{wanted}`, which was found by looking; got {_told(module, path)}"


def _told(module: nn.Module | None, path: str) -> str:
    return f"`{path}`, " + ("which there is not" if module is None else f"of type {type(module).__name__}")


def _module(net: nn.Module, path: str) -> nn.Module | None:
    try:
        return net.get_submodule(path)
    except AttributeError:
        return None
