"""Licence and lineage: what is read from the cards of models, and what stands in the cards of those made from them."""

from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import ModelCard as HubCard

import sae
import stitch
import tiny
from hub_double import card_errors, hub  # noqa: F401 (a fixture)
from jobs import gpt2_and_qwen3
from stitch.files.front_matter import front_matter, read_front_matter
from stitch.models.identity import weights_hash
from stitch.models.lineage import lineage
from stitch.models.provenance import described, described_sae
from stitch.models.sources import DEMO, DEMOS, Source, resolve
from stitch.report.origin import licence_file, origin_metadata, origin_section
from stitch.report.readme import ModelCard

APACHE, MIT = {"license": "apache-2.0"}, {"license": "mit"}
NAMED = {"license": "other", "license_name": "house-rules", "license_link": "https://example.org/rules"}

WITHOUT_LINK = {"license": "other", "license_name": "house-rules"}


def several(name: str) -> dict:
    return {"license": "other", "license_name": name, "license_link": "LICENSE.md"}


def card(folder: Path, **metadata) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text("\n".join([*front_matter(metadata), "# A model"]))
    return folder


def model(name: str, licence: dict | None, *base: str, kind: str = "folder", revision: str | None = None) -> dict:
    return {"name": name, "kind": kind, "revision": revision, "license": licence, "base_model": list(base)}


def written(models: list[dict]) -> str:
    return ModelCard(
        name="X", made=["Y."], tags=[], models=models, relation="merge", example=[], tables=[], notes=[], report="report.json",
        recipe={"command": "join"},
    ).to_bytes().decode()  # fmt: skip


@pytest.mark.parametrize(
    "licences, expected, said",
    [
        ([APACHE], APACHE, "gives its licence"),
        ([APACHE, APACHE], APACHE, "the licence that all of them have"),
        ([APACHE, MIT], several("apache-2.0-and-mit"), "different licences"),
        ([MIT, APACHE, MIT], several("mit-and-apache-2.0"), "different licences"),
        ([APACHE, None], {}, "The licence of m1 is unknown"),
        ([None, None], {}, "The licence of m0 and m1 is unknown"),
        ([NAMED], NAMED, "gives its licence"),
        ([NAMED, NAMED], NAMED, "all of them"),
        ([NAMED, {**NAMED, "license_name": "Their Rules"}], several("house-rules-and-their-rules"), "different licences"),
        ([NAMED, WITHOUT_LINK], WITHOUT_LINK, "all of them"),
        ([{"license": "other"}] * 2, several("terms-of-m0-and-terms-of-m1"), "different licences"),
        ([{"license": ["mit", "other"]}, APACHE], several("mit-and-terms-of-m0-and-apache-2.0"), "different licences"),
        ([{"license": ["mit", "apache-2.0"]}] * 2, {"license": ["mit", "apache-2.0"]}, "all of them"),
        ([], {}, "No weights of another model"),
    ],
)  # fmt: skip
def test_a_card_gives_the_licence_of_its_models_or_none(licences, expected, said):
    models = [model(f"m{number}", licence) for number, licence in enumerate(licences)]
    assert origin_metadata(models, "merge") == expected
    text = "\n".join(origin_section(models))
    assert said in text
    listed = licence_file(models).get("LICENSE.md", b"").decode()
    assert bool(listed) == (expected.get("license_link") == "LICENSE.md")
    for one in models:
        assert f"- {one['name']}: " in text and (not listed or f"- {one['name']}: " in listed)
    assert card_errors(written(models)) == []


def test_models_of_the_hub_are_named_with_their_revision_and_others_by_what_they_were_made_from():
    models = [
        model("org/a@main", APACHE, "org/a", kind="hub", revision="abc"),
        model("runs/b", MIT, "org/c", "org/a"),
        model("demo:gpt2", MIT, kind="demo"),
        model("b.gguf", None, kind="gguf", revision="f00"),
        model("org/a@main", APACHE, "org/a", kind="hub", revision="abc"),
    ]
    assert origin_metadata(models, "merge") == {"base_model": ["org/a", "org/c"], "base_model_relation": "merge"}
    lines = [line for line in origin_section(models) if line.startswith("- ")]
    assert lines == [
        "- [org/a](https://huggingface.co/org/a/tree/abc) at revision `abc`: apache-2.0",
        "- runs/b: mit; made from org/c, org/a",
        "- demo:gpt2: mit",
        "- b.gguf (SHA-256 `f00`): licence unknown",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("---\nlicense: mit\n---\n# A", {"license": "mit"}),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n# A", {"license": "mit"}),
        ("---\nlicense: mit\n---", {"license": "mit"}),
        ("---\nlicense: mit\n", {}),
        ("# A\n---\nlicense: mit\n---\n", {}),
        ("---\n: [\n---\n", {}),
        ("---\n- mit\n---\n", {}),
        ("---\nlicense: mit\ntext: a --- b\n---\n", {"license": "mit", "text": "a --- b"}),
    ],
)
def test_metadata_is_read_where_there_is_some(text, expected, tmp_path):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_front_matter(tmp_path / "README.md") == expected
    assert read_front_matter(tmp_path / "absent.md") == {}


@pytest.mark.parametrize("given", [None, "unknown", "", 7, [], ["mit", "unknown"], [3], {"a": 1}])
def test_a_licence_that_is_not_given_is_unknown(given, tmp_path):
    assert lineage(Source("x", card(tmp_path, license=given), None, "folder"))["license"] is None


def test_a_licence_beside_the_card_is_linked_on_the_hub_only(tmp_path):
    folder = card(tmp_path, license="other", license_name="house-rules", license_link="LICENSE")
    named = {"license": "other", "license_name": "house-rules"}
    assert lineage(Source("x", folder, None, "folder"))["license"] == named
    link = "https://huggingface.co/org/a/blob/abc/LICENSE"
    assert lineage(Source("org/a", folder, "abc", "hub"))["license"] == {**named, "license_link": link}


def test_only_names_on_the_hub_are_base_models(tmp_path):
    folder = card(tmp_path, base_model=["org/a", "../b", "/c/d", 3, "org/a", "gpt2 x"])
    assert lineage(Source("runs/x", folder, None, "folder"))["base_model"] == ["org/a"]
    assert lineage(Source("gpt2@main", folder, "abc", "hub"))["base_model"] == ["gpt2"]
    assert lineage(Source("x", card(tmp_path, base_model="org/b"), None, "gguf"))["base_model"] == ["org/b"]


def test_a_card_names_the_version_that_made_the_model_and_links_to_no_package():
    made = ModelCard(
        name="m", made=["A model."], tags=[], models=[], relation="merge", example=[], tables=[], notes=[],
        report="report.json", recipe={"command": "join"},
    ).to_bytes().decode()  # fmt: skip
    assert made.splitlines()[-1].endswith(f" Made with stitch-lm {version('stitch-lm')}.")
    assert "://" not in made


def test_the_embedded_models_have_the_packages_licence():
    from stitch.demo.ship import readme

    for name in DEMOS:
        assert (DEMO / name / "README.md").read_text() == readme(name)
        assert described(resolve(f"demo:{name}"))["license"] == APACHE


def test_a_gguf_file_says_its_licence(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    import ggufs

    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "cache"))
    ggufs.pico_gguf(tmp_path / "a.gguf", licence="mit", base="https://huggingface.co/org/a")
    found = described(resolve(str(tmp_path / "a.gguf")))
    assert (found["license"], found["base_model"]) == (MIT, ["org/a"])


def test_a_loaded_model_is_named_by_where_it_was_loaded_from(tmp_path):
    from stitch.api.given import named

    net, tokenizer = tiny.net("gpt2"), tiny.tokenizer()
    for place, expected in (("org/a", ["org/a"]), ("", []), (str(tmp_path), [])):
        net.name_or_path = place
        with named((net, tokenizer)) as (name,):
            assert described(resolve(name))["base_model"] == expected


def test_the_card_of_a_hub_model_comes_with_it(hub, tmp_path):  # noqa: F811
    files = {path.name: path.read_bytes() for path in tiny.save(tmp_path / "a", "gpt2").iterdir()}
    commit = hub.add("user/a", {**files, "README.md": b"---\nlicense: mit\n---\n"})
    found = described(resolve("user/a"))
    assert (found["license"], found["base_model"], found["revision"]) == (MIT, ["user/a"], commit)
    (tmp_path / "README.md").write_text(written([found]))
    HubCard.load(tmp_path / "README.md").validate()
    data = HubCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("mit", ["user/a"], "merge")


def test_the_double_refuses_a_card_that_the_hub_would(hub, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="base_model_relation"):
        HubCard("---\nbase_model_relation: offspring\n---\n").validate()


def test_an_sae_is_described_by_its_folders_card_or_by_that_of_its_repository(hub, tmp_path):  # noqa: F811
    folder = str(card(tmp_path / "sae", license="mit"))
    assert described_sae(folder) == {**model(folder, MIT), "weights_sha256": weights_hash(Path(folder))}
    commit = hub.add("user/saes", {"README.md": b"---\nlicense: mit\n---\n"})
    assert described_sae("user/saes:layer.3") == model(
        "user/saes:layer.3", MIT, "user/saes", kind="hub", revision=commit
    )
    assert described_sae("user/none:layer.3") == model("user/none:layer.3", None, "user/none", kind="hub")
    known = described_sae("gemma-scope-2b-pt-res-canonical:layer_0/width_16k/canonical")
    assert known["base_model"] == ["google/gemma-scope-2b-pt-res"]


def test_an_sae_is_listed_and_decides_the_licence_only_where_its_weights_are_inside():
    models = [model("m0", APACHE), model("m1", APACHE)]

    def given_sae(licence: dict | None, inside: bool) -> dict:
        found = model("user/saes:layer.3", licence, "user/saes", kind="hub", revision="abc")
        return {**found, "of": "m0 at resid_pre.3", "inside": inside}

    for licence, inside, expected in (
        (MIT, False, APACHE),
        (None, False, APACHE),
        (APACHE, True, APACHE),
        (MIT, True, several("apache-2.0-and-mit")),
        (None, True, {}),
    ):
        given = [given_sae(licence, inside)]
        assert origin_metadata(models, "merge", given) == expected
        shown = "licence unknown" if licence is None else licence["license"]
        use = "numbers from its weights are in this model" if inside else "nothing of it is in this model"
        line = (
            "- the SAE `user/saes:layer.3` in [user/saes](https://huggingface.co/user/saes/tree/abc) at revision `abc`, "
            f"of m0 at resid_pre.3: {shown}; {use}"
        )
        assert line in origin_section(models, given)
        listed = licence_file(models, given).get("LICENSE.md", b"").decode()
        assert (line in listed) == bool(listed) == ("license_name" in expected)


@pytest.mark.parametrize(
    "translation, inside",
    [("features", [True, False]), pytest.param("affine", [False, False], marks=pytest.mark.slow)],
)
def test_a_composite_names_the_saes_that_it_was_given(translation, inside, tmp_path):
    pair, saes = gpt2_and_qwen3(tmp_path), {}
    for side, width in (("a", 32), ("b", 48)):
        saes[f"sae_{side}"] = tmp_path / f"sae-{side}"
        sae.save(sae.train(tiny.noise(512, width), features=64, k=4, passes=1), saes[f"sae_{side}"], {})
        card(saes[f"sae_{side}"], license="mit")
    for name in ("gpt2", "qwen3"):
        card(pair[name], license="apache-2.0")
    made = stitch.join(
        pair["gpt2"], pair["qwen3"], 2, text=pair["text"], tokens=4096, context=32, reference_steps=0, memory="256M",
        brief=True, device="cpu", quiet=True, translation=translation, **{name: str(place) for name, place in saes.items()},
    )  # fmt: skip
    assert [one["inside"] for one in made.report["provenance"]["saes"]] == inside
    text = (made.folder / "README.md").read_text()
    for side, model_name, site in (("a", "gpt2", 2), ("b", "qwen3", 2)):
        assert f"- the SAE `{saes[f'sae_{side}']}`, of {pair[model_name]} at resid_pre.{site}: mit; " in text
    expected = several("apache-2.0-and-mit") if any(inside) else APACHE
    found = read_front_matter(made.folder / "README.md")
    assert {name: found[name] for name in found if name.startswith("license")} == expected
    assert (made.folder / "LICENSE.md").exists() == any(inside)


@pytest.mark.slow
def test_a_composite_of_hub_models_can_be_pushed_and_says_where_it_is_from(hub, tmp_path, monkeypatch):  # noqa: F811
    pair = gpt2_and_qwen3(tmp_path)
    for name, licence in (("gpt2", "mit"), ("qwen3", "apache-2.0")):
        files = {path.name: path.read_bytes() for path in pair[name].iterdir()}
        hub.add(f"user/{name}", {**files, "README.md": f"---\nlicense: {licence}\n---\n".encode()})
    monkeypatch.setenv("HF_TOKEN", hub.token)
    made = stitch.join(
        "user/gpt2", "user/qwen3", 2, text=pair["text"], tokens=4096, context=32, features=64, k=8, reference_steps=0,
        memory="256M", brief=True, device="cpu", out=tmp_path / "out", quiet=True,
    )  # fmt: skip
    made.push("user/both", quiet=True)
    text = hub.files("user/both")["README.md"].decode()
    assert card_errors(text) == []
    data = HubCard(text).data.to_dict()
    assert data["license"] == "other" and data["base_model"] == ["user/gpt2", "user/qwen3"]
    assert (data["license_name"], data["license_link"]) == ("mit-and-apache-2.0", "LICENSE.md")
    assert data["base_model_relation"] == "merge"
    for name, licence in (("gpt2", "mit"), ("qwen3", "apache-2.0")):
        for place in (text, hub.files("user/both")["LICENSE.md"].decode()):
            assert f"at revision `{hub.repositories[f'user/{name}'].commits[-1].oid}`: {licence}" in place
    # The composite's own folder is the parent of what is made from it.
    found = lineage(Source("out", tmp_path / "out", None, "folder"))
    named = {"license": "other", "license_name": "mit-and-apache-2.0"}
    assert found == {"license": named, "base_model": ["user/gpt2", "user/qwen3"]}
