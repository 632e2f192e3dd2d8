"""Headers of safetensors files, and indexes of shards."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.documents import changed, written
from fuzz.folders import BYTES, Files, folder_door, json_file

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS: Sequence[Any] = ("F16", "F64", "I64", "BOOL", "__metadata__")
OFFSETS: Sequence[Any] = ([0, 4], [4, 0], [-4, 0], [0, 10**20], [3.0, 4.0], [True, 4])
PLACES = ("../model.safetensors", "/tmp/model.safetensors", "./model-00001-of-00002.safetensors", "model.bin")


def one_file(folder: Path) -> Path:
    import tiny

    return tiny.save(folder / "weights-7f3", "llama")


def shards(folder: Path) -> Path:
    import tiny

    tiny.net("llama").save_pretrained(folder / "sharded-7f3", max_shard_size="30KB")
    return folder / "sharded-7f3"


def headers(folder: Path) -> st.SearchStrategy[Files]:
    """Headers that are changed, some of which claim another length than theirs."""
    content = (folder / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    document, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    edited = changed([document], known=[*KINDS, *OFFSETS]).map(lambda one: written(one).encode("utf-8", "replace"))
    lengths = st.sampled_from((0, 1, 8, 10**6, 10**9, 2**40, 2**63, 2**64 - 1))

    def framed(header: bytes) -> st.SearchStrategy[Files]:
        own = st.just(len(header))
        claims = st.integers(0, 9).flatmap(lambda kind: own if kind else lengths)
        return claims.map(lambda claim: {FILE: claim.to_bytes(8, "little") + header + rest})

    return st.integers(0, 9).flatmap(lambda kind: edited if kind else st.sampled_from(BYTES)).flatmap(framed)


def read_weights(folder: Path) -> Any:
    from stitch.files.shards import stored_tensors

    return stored_tensors(folder)


def is_sound(folder: Path, tensors: Any) -> bool:
    """The reference implementation reads the same shapes from the same files, and all of them lie in the folder."""
    from safetensors import safe_open

    for name, tensor in tensors.items():
        with safe_open(tensor.path, "pt") as opened:
            if tuple(opened.get_slice(name).get_shape()) != tensor.shape:
                return False
        if tensor.path.parent != folder:
            return False
    return bool(tensors)


TWICE = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": 7, "data_offsets": [0, 4]}}'
KEPT: Sequence[Files] = ({FILE: len(TWICE).to_bytes(8, "little") + TWICE + bytes(4)},)
DOORS = [
    folder_door("safetensors header", one_file, headers, read_weights, is_sound, KEPT),
    folder_door("shard index", shards, json_file(INDEX, PLACES), read_weights, is_sound),
]
