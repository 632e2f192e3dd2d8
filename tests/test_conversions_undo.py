"""`stitch convert undo` gives the donor back, bit for bit, or refuses in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tiny
from cli import app
from jobs import write_text
from stitch.conversions.consolidation.fitting import zero_edit
from stitch.conversions.consolidation.kept import keep, undo_of
from stitch.conversions.consolidation.slow_weights import apply_edit
from stitch.conversions.consolidation.undo import undo
from stitch.errors import UsageError
from stitch.files.shards import as_bytes, stored_tensors
from stitch.models.loading import load
from stitch.models.made_from import made_from

WRITABLE = [family for family in tiny.FAMILIES if family not in ("gemma2", "gemma3_text", "olmo2")]


def consolidated(donor: Path, out: Path, seed: int = 0) -> Path:
    """The model in `donor` with noise added to all down projections, in the way of a document."""
    model = load(donor)
    edit = {block: tiny.noise(*one.shape, seed=seed) for block, one in zero_edit(model).items()}
    replaced = apply_edit(model, edit, 0.1)
    model.net.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    keep(out, replaced, f"note-{seed}.txt", donor)
    return out


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: as_bytes(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}


def run(*words: object):
    return CliRunner().invoke(app, ["convert", *map(str, words), "-q"])


@pytest.mark.parametrize("family", WRITABLE)
def test_the_donor_comes_back_bit_for_bit(family, tmp_path):
    donor = tiny.save(tmp_path / "donor", family)
    edited = consolidated(donor, tmp_path / "edited")
    report = undo(str(edited), tmp_path / "back")
    assert tensors(edited) != tensors(donor) == tensors(tmp_path / "back")
    assert report["tensors"] == {"restored": tiny.DEPTH, "of": len(tensors(donor))}
    assert made_from(tmp_path / "back") == []  # the model that was undone was made from this one
    ids = tiny.ids()
    assert torch.equal(load(tmp_path / "back").net(ids).logits, load(donor).net(ids).logits)


def test_a_half_precision_donor_comes_back_in_half_precision(tmp_path):
    donor = tiny.save(tmp_path / "donor", "llama", dtype=torch.bfloat16)
    edited = consolidated(donor, tmp_path / "edited")
    undo(str(edited), tmp_path / "back")
    assert tensors(tmp_path / "back") == tensors(donor)
    assert {one.dtype for one in stored_tensors(tmp_path / "back").values()} == {torch.bfloat16}


def test_documents_come_out_in_the_opposite_order(tmp_path):
    donor = tiny.save(tmp_path / "donor", "gpt2")
    one = consolidated(donor, tmp_path / "one", seed=1)
    two = consolidated(one, tmp_path / "two", seed=2)
    undo(str(two), tmp_path / "back to one")
    assert tensors(tmp_path / "back to one") == tensors(one) != tensors(donor)
    report = undo(str(tmp_path / "back to one"), tmp_path / "back")
    assert report["document"] == "note-1.txt" and tensors(tmp_path / "back") == tensors(donor)
    with pytest.raises(UsageError, match=r"has no undo/undo\.json"):
        undo(str(tmp_path / "back"), tmp_path / "further")


@pytest.mark.slow
def test_the_command_takes_out_what_consolidate_wrote(tmp_path):
    donor, text, note = tiny.save(tmp_path / "donor", "gpt2", n_layer=2), write_text(tmp_path), tmp_path / "note.txt"
    note.write_text("the feature of a model is a layer of the stream and the head is early")
    words = ("--context", note, "--text", text, "--tokens", 4096, "--held-out", 600, "--device", "cpu")
    done = run("consolidate", donor, *words, "--out", tmp_path / "read")
    assert done.exit_code == 0, done.output
    done = run("undo", tmp_path / "read", "--out", tmp_path / "back")
    assert done.exit_code == 0, done.output
    assert "restored" in done.output and "Taken out again: note.txt" in done.output
    assert tensors(tmp_path / "back") == tensors(donor) != tensors(tmp_path / "read")
    assert {"report.json", "report.html", "README.md"} <= {file.name for file in (tmp_path / "back").iterdir()}
    again = run("undo", "--recipe", tmp_path / "back", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again/README.md").read_bytes() == (tmp_path / "back/README.md").read_bytes()


def _train(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    found["transformer.ln_f.bias"][0] += 1e-3
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def _add(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    save_file({**found, "extra": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


def _damage(folder: Path) -> None:
    found = load_file(folder / "undo" / "model.safetensors")
    save_file({name: one + 1 for name, one in found.items()}, folder / "undo" / "model.safetensors")


def _lose(folder: Path) -> None:
    (folder / "undo" / "undo.json").unlink()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (_train, 2, "MODEL must be as `stitch convert consolidate` wrote it; 1 of the"),
        (_add, 2, "have changed since, extra first"),
        (_damage, 1, "must hold the donor's tensors; transformer.h.0.mlp.c_proj.weight is not"),
        (_lose, 2, "has no undo/undo.json"),
    ],
)
def test_a_model_that_has_changed_since_is_refused_in_one_line(change, code, message, tmp_path):
    edited = consolidated(tiny.save(tmp_path / "donor", "gpt2"), tmp_path / "edited")
    assert undo_of(edited, "edited").replaced == tiny.DEPTH
    change(edited)
    done = run("undo", edited, "--out", tmp_path / "back")
    assert done.exit_code == code, done.output
    assert message in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "back").exists()


def test_a_link_out_of_the_folder_is_not_copied(tmp_path):
    donor = consolidated(tiny.save(tmp_path / "first", "gpt2"), tmp_path / "donor")
    (tmp_path / "secret").write_text("secret")
    (donor / "undo" / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="is a link to"):
        consolidated(donor, tmp_path / "edited")
