"""Names of hooks: which site of the residual stream each of them is.

Site N is the stream that enters block N. The output of block N − 1 is the same stream. Spellings are those of
TransformerLens and SAELens (`blocks.3.hook_resid_pre`), TransformerBridge (`blocks.3.hook_out`), this package (`resid_pre.3`),
dictionary_learning (`resid_post_layer_3`), and modules of transformers, whose output is read, as sparsify has them
(`layers.3`, `model.layers.3`, `transformer.h.3`).
"""

import re

# Each finds the number of a block; the second is added to it.
SPELLINGS = (
    (re.compile(r"blocks\.(\d+)\.hook_(?:resid_pre|in)"), 0),
    (re.compile(r"blocks\.(\d+)\.hook_(?:resid_post|out)"), 1),
    (re.compile(r"(?:hook_)?resid(?:ual)?_pre[._](?:layer[._])?(\d+)"), 0),
    (re.compile(r"(?:hook_)?resid(?:ual)?_post[._](?:layer[._])?(\d+)"), 1),
    (re.compile(r"(?:[a-z]\w*\.)*(?:layers|h|blocks)[._](\d+)"), 1),
)
# A part of a block or of the model whose output is no site: attention, MLP, norms, the stream between attention and MLP.
ELSEWHERE = re.compile(
    r"(?<![a-z])(?:attn|attention|self_attn|mlp|mlps|z|q|k|v|ln\d?|ln_final|norm\w*|resid_mid|embed)(?![a-z])"
)


def site_of(hook: str) -> int | None:
    """The site that `hook` names; None for a hook that is elsewhere and for an unknown spelling."""
    for pattern, added in SPELLINGS:
        if found := pattern.fullmatch(hook.strip().lower()):
            return int(found[1]) + added
    return None


def is_elsewhere(hook: str) -> bool:
    """Whether `hook` is known to be none of the sites, such as `blocks.3.hook_mlp_out`."""
    return site_of(hook) is None and ELSEWHERE.search(hook.lower().replace("hook_", "")) is not None
