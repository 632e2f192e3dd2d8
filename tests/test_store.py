"""What is kept between runs: found again with the same bytes, bounded, checked, and safe with several runs at once."""

import json
import os
import shutil
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
import tiny
from jobs import gpt2_and_qwen3, settings
from stitch.files.store import Store
from stitch.jobs.join import stitch as join
from stitch.models import identity
from stitch.models.identity import identity_of, weights_hash
from stitch.models.loading import load


def make(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_files_and_folders_come_back_as_they_were(tmp_path):
    store = Store(tmp_path / "store")
    file = make(tmp_path / "a", "x.bin", b"content")
    make(tmp_path / "a", "y.bin", b"more")
    store.put("kind", "one", file, "a file")
    store.put("kind", "two", tmp_path / "a", "a folder")
    shutil.rmtree(tmp_path / "a")
    assert store.get("kind", "one", tmp_path / "again.bin") and (tmp_path / "again.bin").read_bytes() == b"content"
    assert store.get("kind", "two", tmp_path / "again") and (tmp_path / "again" / "y.bin").read_bytes() == b"more"
    assert not store.get("kind", "three", tmp_path / "no") and not (tmp_path / "no").exists()
    assert (store.reused, store.missed) == ({"kind": 2}, {"kind": 1})
    assert {entry.about: entry.bytes for entry in store.entries()} == {"a file": 7, "a folder": 11}


def test_a_flipped_byte_is_noticed_and_the_entry_removed(tmp_path):
    store = Store(tmp_path / "store")
    store.put("kind", "one", make(tmp_path / "a", "x", b"content"), "")
    kept = tmp_path / "store" / "kind" / "one" / "content"
    kept.unlink()  # a link: the source must stay as it is
    kept.write_bytes(b"contEnt")
    assert [entry.key for entry in store.damaged()] == ["one"]
    assert not store.get("kind", "one", tmp_path / "again") and not (tmp_path / "again").exists()
    assert store.entries() == [] and (tmp_path / "a" / "x").read_bytes() == b"content"


def test_what_was_not_needed_for_longest_goes_first(tmp_path):
    store = Store(tmp_path / "store", limit=25)
    for number, key in enumerate(("old", "new")):
        store.put("kind", key, make(tmp_path / "a", key, bytes(10)), "")
        os.utime(tmp_path / "store" / "kind" / key / "entry.json", (number + 1, number + 1))
    assert store.get("kind", "old", tmp_path / "out")  # now `new` is the older one
    store.put("kind", "third", make(tmp_path / "a", "third", bytes(10)), "")
    assert {entry.key for entry in store.entries()} == {"old", "third"}
    store.put("kind", "large", make(tmp_path / "a", "large", bytes(26)), "")
    assert {entry.key for entry in store.entries()} == {"old", "third"}


def test_entries_are_looked_through_now_and_then_and_those_of_other_runs_counted(tmp_path, monkeypatch):
    looked: list[int] = []
    entries = Store.entries
    monkeypatch.setattr(Store, "entries", lambda store: looked.append(1) or entries(store))
    one, other = Store(tmp_path / "store", limit=640), Store(tmp_path / "store", limit=640)
    for number in range(40):
        one.put("kind", f"one {number}", make(tmp_path / "a", "x", bytes(10)), "")
        other.put("kind", f"other {number}", make(tmp_path / "a", "x", bytes(10)), "")
    assert len(looked) < 40 and sum(entry.bytes for entry in entries(one)) <= 640 + 2 * 640 / 32


def test_two_runs_may_keep_and_take_the_same(tmp_path):
    file = make(tmp_path / "a", "x", b"content" * 1000)
    failures = []

    def work(number: int) -> None:
        store = Store(tmp_path / "store")
        try:
            for key in "abcdefgh":
                store.put("kind", key, file, "")
                target = tmp_path / f"{number}-{key}"
                assert store.get("kind", key, target) and target.read_bytes() == b"content" * 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(Store(tmp_path / "store").entries()) == 8
    assert not [*(tmp_path / "store").glob("new-*")]


def test_a_store_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "store").write_text("a file in its place")
    store = Store(tmp_path / "store")
    store.put("kind", "one", make(tmp_path / "a", "x", b"content"), "")
    assert not store.get("kind", "one", tmp_path / "out") and store.entries() == []


def test_a_models_identity_is_that_of_its_files(tmp_path):
    one, other = tiny.save(tmp_path / "one", "gpt2"), tiny.save(tmp_path / "other", "gpt2", seed=1)
    same = shutil.copytree(one, tmp_path / "same")
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)
    assert identity_of(load(one)) == identity_of(load(same)) != identity_of(load(other))
    before = weights_hash(same)
    (same / "report.json").write_text('{"seconds": 3}')  # of a composite that is made again it has other seconds
    assert weights_hash(same) == before
    content = bytearray((same / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (same / "model.safetensors").write_bytes(content)
    os.utime(same / "model.safetensors", (1, 1))
    assert weights_hash(same) != before


def test_an_sae_of_dictionary_learning_that_changed_is_noticed(tmp_path):
    """A resumed join compares SAEs in folders by this hash."""
    make(tmp_path / "sae", "config.json", b"{}")
    make(tmp_path / "sae", "ae.pt", b"some weights")
    before = weights_hash(tmp_path / "sae")
    make(tmp_path / "sae", "ae.pt", b"other weights")
    assert weights_hash(tmp_path / "sae") != before


def test_an_identity_needs_no_cache_that_can_be_written(tmp_path, monkeypatch):
    model = tiny.save(tmp_path / "one", "gpt2")
    known = weights_hash(model)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path / "file" / "below"))
    assert weights_hash(model) == known


@pytest.mark.parametrize("package", ["torch", "transformers", "stitch-lm"])
def test_other_versions_are_other_identities(package, tmp_path, monkeypatch):
    model = load(tiny.save(tmp_path / "one", "gpt2"))
    before = identity_of(model)
    monkeypatch.setattr(identity, "version", lambda name: "99" if name == package else version(name))
    assert identity_of(model) != before


# ----------------------------------------------------------------------------------------------------------- a whole join


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return gpt2_and_qwen3(tmp_path_factory.mktemp("pair"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "report.json"
    }


@pytest.mark.slow
def test_another_layer_or_translation_pays_for_what_is_new_and_gives_the_same_bytes(pair, tmp_path):
    store = tmp_path / "store"
    asked = {"brief": True, "reference_steps": 0}
    first = Store(store)
    join(settings(pair["gpt2"], pair["qwen3"], pair["text"], **asked), tmp_path / "first", store=first)
    assert first.reused == {} and first.missed["saes"] == 2
    used, request = Store(store), settings(pair["gpt2"], pair["qwen3"], pair["text"], **asked, translation="affine")
    join(request, tmp_path / "translation", store=used)
    assert "activations" not in used.missed and used.reused["saes"] == 2
    used, request = Store(store), settings(pair["gpt2"], pair["qwen3"], pair["text"], **asked, layer_b=3)
    report, with_cache = join(request, tmp_path / "with", store=used)
    _, without = join(request, tmp_path / "without")
    assert used.reused["saes"] == 1 == used.missed["saes"] and used.reused["activations"] > 0
    assert report["cache"]["reused"] == used.reused
    found, expected = files(with_cache), files(without)
    assert found.keys() == expected.keys() and [name for name in found if found[name] != expected[name]] == []


def test_other_weights_are_not_mistaken(pair, tmp_path):
    store = tmp_path / "store"
    asked = {"brief": True, "reference_steps": 0}
    model = shutil.copytree(pair["gpt2"], tmp_path / "model")
    join(settings(model, pair["qwen3"], pair["text"], **asked), tmp_path / "first", store=Store(store))
    shutil.rmtree(model)
    tiny.save(model, "gpt2", seed=5)  # under the same name
    used = Store(store)
    join(settings(model, pair["qwen3"], pair["text"], **asked), tmp_path / "second", store=used)
    assert used.missed["activations"] > 0 and used.missed["saes"] >= 1


def test_commands_on_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STITCH_CACHE", str(tmp_path))
    store = Store()
    for key in ("aa1", "ab2", "bb3"):
        store.put("saes", key, make(tmp_path / "a", key, b"content"), f"model {key}")

    def run(*words: str):
        return CliRunner().invoke(cli.app, ["cache", *words])

    assert "model ab2" in run("list").output and "3 entries" in run("size").output
    assert {one["key"] for one in json.loads(run("list", "--json").output)} == {"aa1", "ab2", "bb3"}
    assert "removed 2 entries" in run("remove", "a").output
    assert run("remove", "zz").exit_code == 2 and run("remove").exit_code == 2
    assert run("verify").exit_code == 0
    kept = tmp_path / "store" / "saes" / "bb3" / "content"
    kept.unlink()
    kept.write_bytes(b"CONTENT")
    assert run("verify").exit_code == 1 and "0 entries are whole" in run("verify").output
    assert "removed 0 entries" in run("remove", "--all").output
