"""Runs ALTA (arXiv 2410.18077) on the tasks of `synthesis.py`, with the Python of an environment that has jax, scipy and absl-py.

`python _alta_peer.py CLONE TASK LENGTH SCALAR STRINGS.json`, where CLONE is a folder with github.com/google-deepmind/alta, prints
one JSON line with `programs`: parameters, width, how often the one block runs, seconds to compile, and the number of strings with
a wrong answer at their last position. SCALAR is `expansion_scalar_1`, how steeply the first layer of the MLP tells values apart;
ALTA's default is 100, its own tests take 1,000. Parity has ALTA's three programs. Brackets have none there: that is written here.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

START = 2  # the id in front of the string, as in ALTA's own programs; `sum mod 2` has it at the end


def programs(task: str, length: int) -> dict[str, tuple[Callable[[], Any], Callable[[list[int]], list[int]], int]]:
    """By name: how a program is built (ALTA's own are its sparse ones, the smallest), what it reads, how often its block runs."""
    from examples import parity_sparse as parity

    def led(ids: list[int]) -> list[int]:
        return [START, *ids]

    if task == "brackets":
        return {"sequential": (partial(brackets, length), led, length + 1)}
    absolute = partial(parity.build_sequential_program_absolute, max_input_length=length)
    counting = partial(parity.build_sum_mod_2_program_spec, max_input_length=length + 1)
    return {
        "sequential": (parity.build_sequential_program_relative, led, length + 1),
        "sequential, absolute positions": (absolute, list, length + 1),
        "sum mod 2": (counting, lambda ids: [*ids, START], 1),
    }


def brackets(length: int) -> Any:
    """Balanced or not, one symbol after another: the depth so far, or `lost` below 0 and above half of the length."""
    from framework import program_builder as pb

    lost = length // 2 + 1
    variables = {
        "letter": pb.input_var(3),
        "depth": pb.var(lost + 1),
        "balanced": pb.var(2),
        "done": pb.input_var(2, init_fn=lambda id: id == START),
    }
    heads = {"depth_left": pb.v_relative("depth", -1), "done_left": pb.v_relative("done", -1)}
    rules = pb.MLPBuilder(variables, heads)
    # A symbol is read once, when the one before it is done; until then its depth is 0 and it is not balanced.
    for done, done_left, depth, balanced in rules.get("done", "done_left", "depth", "balanced"):
        if (done, done_left, depth, balanced) == (0, 1, 0, 0):
            rules.set("done", 1)
            for depth_left, letter in rules.get("depth_left", "letter"):
                if letter != START:
                    deeper = depth_left + (1 if letter == 0 else -1)
                    found = deeper if depth_left != lost and 0 <= deeper < lost else lost
                    rules.set("depth", found)
                    rules.set("balanced", int(found == 0))
    return pb.program_spec_from_rules(
        variables=variables, heads=heads, rules=rules.rules, output_name="balanced", input_range=3, position_range=None
    )


def size(parameters: Any) -> int:
    heads = [
        array
        for head in parameters.attenion_heads
        for array in (head.query_transform, head.key_transform, head.value_transform, head.output_transform)
    ]
    layers = [array for layer in parameters.feed_forward_layers for array in (layer.weights, layer.biases)]
    tables = [parameters.embeddings.input_embeddings, parameters.embeddings.index_embeddings]
    arrays = [*heads, *layers, *tables, parameters.output_transform]
    return sum(array.size for array in arrays if array is not None)


def main() -> None:
    clone, task, length, scalar, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
    sys.path.insert(0, clone)
    from framework.compiler import compiler_config, compiler_utils
    from framework.transformer import transformer_utils

    cases = json.loads(Path(path).read_text())
    letters = "ba" if task == "parity" else "()"  # by id
    rows = []
    for name, (build, reads, runs) in programs(task, length).items():
        start = time.perf_counter()
        net = compiler_utils.compile_transformer(build(), compiler_config.Config(expansion_scalar_1=scalar))
        seconds = time.perf_counter() - start
        said = [
            transformer_utils.run_transformer(net, None, reads([*map(letters.index, text)]), max_layers=runs)[-1]
            for text, _ in cases
        ]
        row = {
            "program": name,
            "parameters": size(net),
            "blocks": f"1, run {runs} times" if runs > 1 else 1,
            "width": net.embeddings.input_embeddings.shape[1],
            "seconds": round(seconds, 4),
            "strings": len(cases),
            "wrong": sum(one != answer for one, (_, answer) in zip(said, cases, strict=True)),
        }
        rows.append(row)
    print(json.dumps({"programs": rows}))


if __name__ == "__main__":
    main()
