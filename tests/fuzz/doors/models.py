"""Files beside models: the config of a graft's host, anatomies, prompts of a behaviour, labels of a probe, a circuit."""

import functools
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz.documents import changed, json_files, spoilt, strictly, whole, written, yaml_files
from fuzz.door import Door


@functools.cache
def pico() -> Any:
    import tiny

    return tiny.model("llama")


def ready() -> None:
    import stitch.circuits.find
    import stitch.grafts.hosts
    import stitch.models.anatomy_file
    import stitch.text.labels  # noqa: F401

    pico()
    host(Path(__file__).parents[3] / "examples/llama-tiny.json")  # transformers imports families when they are made


# The host of a graft

HOSTS = (
    {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "attention_bias": True,
        "mlp_bias": True,
    },
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24},
    {
        "model_type": "qwen2",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
)
WRONG_HOSTS: tuple[dict, ...] = (
    {"num_key_value_heads": 71},
    {"hiden_size": 3},
    {"hidden_size": 10**6},
    {"num_hidden_layers": 10**9},
    {"initializer_range": 1e300},
    {"rms_norm_eps": -1.0},
    {"mlp_bias": 2},
    {"num_hidden_layers": 0},
    {"rope_theta": True},
)
HOST_NAMES = (
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "head_dim",
    ),
    *(
        "vocab_size",
        "tie_word_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "hidden_act",
        "activation_function",
    ),
    *(
        "layer_norm_epsilon",
        "initializer_range",
        "torch_dtype",
        "dtype",
        "architectures",
        "pad_token_id",
        "use_cache",
        "n_inner",
    ),
)


def host(path: Path) -> Any:
    from stitch.grafts.fresh_host import read_host

    return read_host(path, pico(), 0)


# Settings that transformers keeps under another name.
RENAMED = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters", "torch_dtype": "dtype"}


def host_sound(content: bytes, model: Any) -> bool:
    """A model of the family, depth and width that the file gives, with the donor's vocabulary and finite weights that run."""
    import torch

    document = strictly(content)
    depth = document.get("num_hidden_layers", document.get("n_layer")) or model.depth
    width = document.get("hidden_size", document.get("n_embd")) or model.width
    with torch.no_grad():
        ids = torch.tensor([[0, 5, 6]])[:, : document.get("n_positions", document.get("max_position_embeddings"))]
        out = model.net(ids).logits
    return (
        model.net.config.model_type == document["model_type"]
        and whole(depth, 1, 1_000)
        and whole(width, 1, 100_000)
        and not isinstance(document.get("rope_theta"), bool)
        and (model.depth, model.width) == (depth, width)
        and tuple(out.shape) == (*ids.shape, len(pico().embedding.weight))
        and bool(out.isfinite().all())
        and not document.get("tie_word_embeddings")
        and all(isinstance(name, str) and name.isidentifier() for name in document)
        and all(hasattr(model.net.config, RENAMED.get(name, name)) for name in document)
    )


# Anatomies

ANATOMIES = (
    {"my_decoder": {"family": "My decoder", "body": "model", "blocks": "stack", "heads_out": "attention.out"}},
    {"a": {"blocks": "h"}, "b": {"positions": None, "mlp_out_norm": "post"}},
)
PATHS = (
    *"family body head embedding positions embedding_dropout blocks final_norm".split(),
    *"attention heads_out mlp down mlp_out_norm".split(),
)
MAY_BE_NONE = {"family", "positions", "embedding_dropout", "mlp_out_norm"}


def anatomies(path: Path) -> Any:
    from stitch.models.anatomy_file import read_anatomies

    return read_anatomies(path)


def anatomies_sound(content: bytes, found: Any) -> bool:
    """A model type each, and below it known names with dotted paths of identifiers."""
    document = yaml.safe_load(content)
    return (
        set(found) == set(document)
        and all(isinstance(name, str) and name.isprintable() and name for name in document)
        and all(isinstance(paths, dict) and set(paths) <= set(PATHS) for paths in document.values())
        and all(
            (value is None and name in MAY_BE_NONE)
            or (isinstance(value, str) and value.isprintable() and (name == "family" or not value or dotted(value)))
            for paths in document.values()
            for name, value in paths.items()
        )
        and all(
            getattr(found[kind], name) == value for kind, paths in document.items() for name, value in paths.items()
        )
    )


def dotted(path: str) -> bool:
    return all(part.isidentifier() or part.isdecimal() for part in path.split("."))


# Prompts and labels, a document on each line

PROMPTS = ({"clean": "ab", "corrupt": "cd", "answer": "e"}, {"clean": "a b", "corrupt": "c d", "answer": " "})
LABELS = ({"text": "a (b) c", "labels": [[2, 5, 1], [0, 2, 0]]}, {"text": "abc", "labels": [[0, 3, 1]]})


def lines(documents: Any, names: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    one = changed(documents, names=names).map(written)
    return spoilt(st.lists(one, min_size=1, max_size=3).map("\n".join))


def documents_of(content: bytes) -> list[Any]:
    text = content.decode("utf-8-sig")
    return [strictly(line.encode()) for line in text.split("\n") if line.strip()]


def prompts(path: Path) -> Any:
    from stitch.circuits.behaviours.named import make_prompts

    return make_prompts(str(path), pico().tokenizer)


def prompts_sound(content: bytes, found: Any) -> bool:
    """A prompt per line: BOS and the characters of `clean` and `corrupt`, equally many, and one character as the answer."""
    documents, ids = documents_of(content), pico().tokenizer.get_vocab()
    if len(documents) != len(found.clean):
        return False
    for row, one in enumerate(documents):
        length = len(one["clean"])
        asked = found.asked[row].nonzero()[:, 0].tolist()
        if not (
            set(one) == {"clean", "corrupt", "answer"}
            and all(isinstance(text, str) for text in one.values())
            and 0 < length == len(one["corrupt"])
            and asked == [length]
            and int(found.answers[row, length]) == ids.get(one["answer"], -1)
            and found.clean[row, : length + 1].tolist() == [0, *(ids.get(letter, 2) for letter in one["clean"])]
            and found.corrupt[row, : length + 1].tolist() == [0, *(ids.get(letter, 2) for letter in one["corrupt"])]
        ):
            return False
    return True


def labels(path: Path) -> Any:
    from stitch.text.labels import read_labelled

    return read_labelled(path, pico().tokenizer, 64)


def labels_sound(content: bytes, found: Any) -> bool:
    """A text per line; spans are in the text, start before end; a character's class is that of the last span with it."""
    documents = documents_of(content)
    if len(documents) != len(found):
        return False
    for one, text in zip(documents, found, strict=True):
        if set(one) != {"text", "labels"} or not isinstance(one["text"], str):
            return False
        size = len(one["text"])
        if not all(whole(a, 0, size) and whole(b, a + 1, size) and whole(c, 0, 100_000) for a, b, c in one["labels"]):
            return False
        expected = [-1] * size
        for start, end, which in one["labels"]:
            expected[start:end] = [which] * (end - start)
        if text.classes.tolist() != [-1, *expected][:64]:
            return False
    return True


# Circuits

CIRCUITS = (
    {"heads": {"1": [0, 2]}, "neurons": {}},
    {"heads": {"0": [1]}, "neurons": {"3": [0, 55]}},
    {
        "model": "x",
        "circuit": {"heads": {"1": [0]}, "neurons": {"2": [5, 6]}},
        "features": {},
        "results": [],
        "stability": 0.5,
    },
    {
        "grafts": [
            {
                "circuit": {"heads": {}, "neurons": {"0": [1]}},
                "plan": {"arrangement": {"blocks": [[1, 2], [3]], "table": 1, "beside": [0]}},
            }
        ]
    },
    {"grafts": [{"circuit": {"heads": {}, "neurons": {"0": [1]}}, "plan": {"arrangement": None}}]},
)


def circuit(path: Path) -> Any:
    from stitch.circuits.circuit_file import read_arrangement, read_circuit

    return read_circuit(path, pico()), read_arrangement(path)


def circuit_sound(content: bytes, found: Any) -> bool:
    """The components of the file, all of which the model has; features in no block; blocks in order."""
    document = strictly(content)
    (report,) = document.get("grafts", [document])
    named = report.get("circuit", report)
    components, arrangement = found
    sizes = {"heads": 4, "neurons": 56}
    wanted: dict = {}
    for kind, size in sizes.items():
        for block, numbers in named.get(kind, {}).items():
            if not (
                block == str(int(block)) and whole(int(block), 0, 5) and all(whole(n, 0, size - 1) for n in numbers)
            ):
                return False
            if numbers:
                wanted.setdefault(kind, {})[block] = sorted(set(numbers))
    given = (report.get("plan") or {}).get("arrangement")
    return (
        {kind: blocks for kind, blocks in components.to_dict().items() if blocks} == wanted
        and ("heads" in named or "neurons" in named)
        and not report.get("features")
        and (arrangement is None) == (given is None)
        and (
            given is None
            or arrangement.to_dict() == {"table": given["table"], "beside": given["beside"], "blocks": given["blocks"]}
        )
    )


DOORS = [
    Door(
        name="host.json",
        file="host.json",
        cases=json_files(HOSTS, names=HOST_NAMES),
        call=host,
        sound=host_sound,
        ready=ready,
        kept=(
            json.dumps({**HOSTS[0], "rope_theta": 500_000}).encode(),
            json.dumps(HOSTS[0]).encode(),
            *(
                json.dumps({**HOSTS[0], **more}).encode()
                for more in (*WRONG_HOSTS, {"max_position_embeddings": 2}, {"max_position_embeddings": 0})
            ),
        ),
    ),
    Door(
        name="anatomy.yaml",
        file="anatomy.yaml",
        cases=yaml_files(ANATOMIES, names=PATHS),
        call=anatomies,
        sound=anatomies_sound,
        ready=ready,
        kept=(b"my_decoder:\n  blocks: stack\n", b"my_decoder:\n  family: null\n"),
    ),
    Door(
        name="behaviour.jsonl",
        file="behaviour.jsonl",
        cases=lines(PROMPTS, ("clean", "corrupt", "answer")),
        call=prompts,
        sound=prompts_sound,
        ready=ready,
        kept=(
            b'{"clean": "ab", "corrupt": "cd", "answer": "e"}\n',
            '{"clean": "a\u2028b", "corrupt": "cde", "answer": "e"}\n'.encode(),
            b'{"clean": ["ab"], "corrupt": 3, "answer": null}\n',
        ),
    ),
    Door(
        name="labels.jsonl",
        file="labels.jsonl",
        cases=lines(LABELS, ("text", "labels")),
        call=labels,
        sound=labels_sound,
        ready=ready,
        kept=(
            b'{"text": "a (b) c", "labels": [[2, 5, 1]]}\n',
            b'{"text": "a (b) c", "labels": [[-2, 5, 1]]}\n',
            b'{"text": "a (b) c", "labels": [[5, 2, 1], [0, 99, 0], [0, 1, 100000000000000000]]}\n',
            b'{"text": "a (b) c", "labels": [["2", 5.5, true]]}\n',
        ),
    ),
    Door(
        name="circuit.json",
        file="circuit.json",
        cases=json_files(
            CIRCUITS, names=("heads", "neurons", "circuit", "grafts", "plan", "arrangement", "features", "0", "5")
        ),
        call=circuit,
        sound=circuit_sound,
        ready=ready,
        kept=(
            b'{"heads": {"1": [0, 2]}, "neurons": {}}',
            b'{"heads": {"90": []}}',
            b'{"heads": {"01": [0]}}',
            b'{"head": {"1": [0]}}',
            b'{"grafts": 0.5}',
            b'{"circuit": {}}',
            b'{"grafts": {"a": 1}, "circuit": {"heads": {"1": [0]}}}',
            b'{"circuit": {"heads": {"1": [true]}}, "features": ""}',
            b'{"circuit": {"heads": {"1": [0]}}, "plan": {"arrangement": {"blocks": [], "table": 0, "beside": []}}}',
        ),
    ),
]
