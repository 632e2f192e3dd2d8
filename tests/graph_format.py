"""The format of attribution graphs, written down from the programs that read it."""

import pytest

# circuit-tracer's frontend/graph_models.py, and what Neuronpedia's graph-schema.json asks for beyond it.
METADATA = {"slug": str, "scan": str, "transcoder_list": list, "prompt_tokens": list, "prompt": str, "node_threshold": float,
            "schema_version": int}  # fmt: skip
Q_PARAMS = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
NODE = {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
        "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
        "influence": float | None, "activation": float | None}  # fmt: skip
LINK = {"source": str, "target": str, "weight": float}


def check_format(graph: dict) -> None:
    """Raises AssertionError unless the graph has the format's fields and what its viewers rely on."""
    assert graph.keys() == {"metadata", "qParams", "nodes", "links"}
    for part, fields in ((graph["metadata"], METADATA), (graph["qParams"], Q_PARAMS)):
        assert all(isinstance(part[name], kind) for name, kind in fields.items())
    assert all(
        type(node[name]) is kind or isinstance(node[name], kind)
        for node in graph["nodes"]
        for name, kind in NODE.items()
    )
    assert all(link.keys() == LINK.keys() and isinstance(link["weight"], float) for link in graph["links"])
    tokens, ids = graph["metadata"]["prompt_tokens"], [node["node_id"] for node in graph["nodes"]]
    assert all(isinstance(token, str) for token in tokens)
    assert len(set(ids)) == len(ids) and {link[end] for link in graph["links"] for end in ("source", "target")} <= set(
        ids
    )
    assert graph["qParams"]["clickedId"] in ids
    # Viewers tell features apart by these three.
    assert len({(node["layer"], node["feature"], node["ctx_idx"]) for node in graph["nodes"]}) == len(ids)
    for node in graph["nodes"]:
        assert 0 <= node["ctx_idx"] < len(tokens)
        if node["feature_type"] == "logit":
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) == pytest.approx(node["token_prob"], abs=1e-3)
        elif node["feature_type"] == "embedding":
            assert node["layer"] == "E" and node["feature"] == node["ctx_idx"]
        else:
            assert node["feature_type"] in ("attention head", "mlp neuron")  # viewers fetch features of types they know
            block, number = map(int, node["node_id"].split("_")[:2])  # viewers compute both from `feature`
            assert node["feature"] == (block + number) * (block + number + 1) // 2 + number and node["layer"] == str(
                block
            )
            assert node["influence"] <= graph["metadata"]["node_threshold"]
