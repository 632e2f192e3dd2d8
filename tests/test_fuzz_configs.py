"""Folders that are damaged at random are refused in one line that says where, or make sense."""

import pytest
import torch

import composites
import fuzz_configs
import tiny

CASES = 40  # of each format; raise it to look for more


@pytest.fixture(scope="module")
def formats(tmp_path_factory) -> dict[str, fuzz_configs.Format]:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    from sae.storage import save

    root = tmp_path_factory.mktemp("fuzz")
    tiny.net("llama").save_pretrained(root / "sharded", max_shard_size="30KB")
    named = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2"}
    with torch.random.fork_rng(devices=[]):
        save(
            JumpReLUSAE(JumpReLUSAEConfig(d_in=fuzz_configs.WIDTH, d_sae=40)),
            root / "sae",
            {"model": "demo:gpt2"},
            named,
        )
    (root / "left").mkdir()
    (root / "left" / "report.json").write_text("{}")
    found = [
        fuzz_configs.model(tiny.save(root / "gpt2", "gpt2")),
        fuzz_configs.model(composites.write(root / "parts")),
        fuzz_configs.header(tiny.save(root / "weights", "llama")),
        fuzz_configs.index(root / "sharded"),
        fuzz_configs.autoencoder(root / "sae"),
        fuzz_configs.autoencoder(root / "sae", "provenance.json"),
        *fuzz_configs.left_behind(root / "left"),
    ]
    return {one.name: one for one in found}


NAMES = (
    *("gpt2: config.json", "composite: config.json", "safetensors header", "shard index", "SAE cfg.json"),
    *("SAE provenance.json", "stitch.json", "owner.json", "run.json", "request.json", "report.json"),
)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_folders_are_refused_or_sound(name, formats):
    found = fuzz_configs.survey(formats[name], CASES)
    assert found.examples == {}
    assert found.counts[fuzz_configs.SOUND] > 0


def test_the_survey_sees_what_should_not_be(formats):
    """Of a door that lets everything through, or fails in some other way, or does not say where."""
    one = formats["stitch.json"]

    def told(read, sound=lambda *_: True) -> dict[str, str]:
        return fuzz_configs.survey(fuzz_configs.Format("x", one.folder, one.cases, read, sound), 20).examples

    def fails(error):
        def read(folder):
            raise error

        return read

    assert told(lambda _: None) == {}
    assert set(told(lambda _: None, lambda *_: False)) == {"not sound"}
    assert set(told(fails(KeyError("x")))) == {"KeyError at ?"}
    assert set(told(fails(fuzz_configs.StitchError("it is damaged.")))) == {"unclear message: 'it is damaged.'"}
