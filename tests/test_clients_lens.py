"""SAELens and TransformerLens: SAEs attach where they were trained, published ones load, stock results open in the bridge."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import composites
import tiny
from hub_double import hub  # noqa: F401
from jobs import gpt2_and_qwen3, settings
from sae.storage import load as load_sae
from stitch.composite.native import write_native
from stitch.features.saes import place_of
from stitch.jobs.join import stitch
from stitch.models.loading import load
from tolerance import apart

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
RELEASE, SAE_ID, REPOSITORY = "gpt2-small-res-jb", "blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted"


@pytest.fixture(scope="module")
def donors(tmp_path_factory) -> dict[str, Path]:
    return gpt2_and_qwen3(tmp_path_factory.mktemp("donors"))


@pytest.fixture(scope="module")
def composite(donors, tmp_path_factory) -> Path:
    """Blocks 0 and 1 of GPT-2, then Qwen from block 2; with the SAEs of both sites."""
    out = tmp_path_factory.mktemp("run") / "composite"
    stitch(
        settings(donors["gpt2"], donors["qwen3"], donors["text"], tokens=8192, brief=True, reference_steps=None), out
    )
    return out


# SAELens


@pytest.mark.parametrize(("side", "donor", "block"), [("a", "gpt2", 2), ("b", "qwen3", 2)])
@torch.no_grad()
def test_an_sae_attaches_to_its_model_at_its_site(composite, donors, side, donor, block):
    from sae_lens import SAE
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    sae = SAE.load_from_disk(composite / f"sae-{side}")
    assert sae.cfg.metadata.model_name == str(donors[donor])
    model, ids = load(donors[donor]), tiny.ids()
    bridge = SAETransformerBridge.boot_transformers(str(donors[donor]), device="cpu")
    assert apart(bridge(ids), model.net(ids).logits) < 1e-3
    handle = model.blocks[block].register_forward_pre_hook(lambda _, given: (sae(given[0]), *given[1:]))
    spliced = model.net(ids, use_cache=False).logits
    handle.remove()
    assert apart(bridge.run_with_saes(ids, saes=[sae]), spliced) < 1e-3
    assert apart(spliced, model.net(ids).logits) > 0.1
    _, cache = bridge.run_with_cache_with_saes(ids, saes=[sae])
    (codes,) = [name for name in cache if name.endswith("hook_sae_acts_post")]
    assert cache[codes].shape == (*ids.shape, 64)


def test_an_sae_before_the_first_block_attaches_there():
    assert place_of("m", "resid_pre.0") == {"model_name": "m", "hook_name": "blocks.0.hook_resid_pre"}


def test_a_published_sae_is_found_by_its_release(composite, hub):  # noqa: F811
    """The release is in SAELens's own list; the Hub is a local one."""
    files = {f"{SAE_ID}/{path.name}": path.read_bytes() for path in (composite / "sae-a").iterdir()}
    hub.add(REPOSITORY, files)
    found, ours = load_sae(f"{RELEASE}:{SAE_ID}", width=32), load_sae(composite / "sae-a")
    assert torch.equal(found.W_dec, ours.W_dec)
    hub.add("someone/saes", {f"layer.3/{name.split('/')[-1]}": content for name, content in files.items()})
    assert torch.equal(load_sae("someone/saes:layer.3").W_dec, ours.W_dec)


# TransformerLens


@torch.no_grad()
def test_a_stock_result_opens_in_the_bridge(donors, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    write_native(tmp_path / "shorter", load(donors["qwen3"]), [0, 1, 4, 5], {})
    ids = tiny.ids()
    bridge = TransformerBridge.boot_transformers(str(tmp_path / "shorter"), device="cpu")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "shorter")(ids).logits
    assert apart(bridge(ids), wanted) < 1e-3
    _, cache = bridge.run_with_cache(ids)
    assert cache["blocks.3.hook_resid_post"].shape == (*ids.shape, 48)


def test_the_bridge_refuses_a_composite(tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    folder = composites.write(tmp_path)
    with pytest.raises(ValueError, match="Could not determine supported architecture"):
        TransformerBridge.boot_transformers(str(folder), trust_remote_code=True, device="cpu")
    part = json.loads((folder / "config.json").read_text())["b_config"]["architectures"]
    assert part == ["LlamaForCausalLM"] and AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
