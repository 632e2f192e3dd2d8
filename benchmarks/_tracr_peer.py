"""Runs Tracr on the tasks of `synthesis.py`, with the Python of an environment that has `tracr-pypi`.

`python _tracr_peer.py TASK LENGTH EXACTNESS STRINGS.json` prints one JSON line: parameters (Tracr's unembedding has
none), blocks, width, seconds to compile, and the number of strings with a wrong answer at their last position. The
answers are read with Tracr's own decoder.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    import jax
    from tracr.compiler import compiling, lib
    from tracr.rasp import rasp

    task, length, exactness, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if task == "parity":
        ones = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a")
        program, letters = rasp.Map(lambda count: count % 2, rasp.SelectorWidth(ones)).named("parity"), {"a", "b"}
    else:
        program, letters = lib.make_shuffle_dyck(pairs=["()"]), {"(", ")"}
    start = time.perf_counter()
    model = compiling.compile_rasp_to_model(program, letters, length, causal=task == "parity", mlp_exactness=exactness)
    seconds = time.perf_counter() - start
    forward = jax.jit(lambda parameters, ids: model.forward(parameters, ids).unembedded_output)
    wrong = 0
    cases = json.loads(path.read_text())
    for text, answer in cases:
        ids = jax.numpy.array([model.input_encoder.encode([compiling.COMPILER_BOS, *text])])
        said = model.output_encoder.decode(forward(model.params, ids)[0].tolist())[-1]
        wrong += said is None or int(said) != answer
    leaves = jax.tree_util.tree_leaves(model.params)
    found = {
        "parameters": int(sum(leaf.size for leaf in leaves)),
        "blocks": model.model_config.num_layers,
        "width": len(model.residual_labels),
        "norms": bool(model.model_config.layer_norm),
        "seconds": round(seconds, 2),
        "strings": len(cases),
        "wrong": wrong,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
