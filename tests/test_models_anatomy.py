"""A family of the user's own: found by looking, and described from outside, beside what is found."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import cli
import stitch
import tiny
from own_family import MyConfig, MyDecoder, my_decoder
from stitch.composite.checkpoint import write_checkpoint
from stitch.composite.compose import compose
from stitch.composite.exact import inexact
from stitch.errors import UsageError
from stitch.models import anatomy
from stitch.models.given_anatomy import flow_and_anatomy
from stitch.models.loading import load
from stitch.translation.types import Residual, Term, Translation
from translations import identity

FOUND = {"body": "", "blocks": "stack", "embedding": "words", "head": "out", "final_norm": "scale"}


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    """Each test registers anatomies for itself alone."""
    monkeypatch.setattr(anatomy, "ANATOMIES", dict(anatomy.ANATOMIES))


def register(folder, text: str) -> None:
    (folder / "my.yaml").write_text(text)
    stitch.read_anatomies(folder / "my.yaml")


def test_a_family_of_the_users_own_is_found_by_looking(tmp_path):
    model = my_decoder(tmp_path)
    assert {name: model.flow[name] for name in ("blocks", "exit", "argument", "output")} == {
        "blocks": "stack", "exit": "scale", "argument": 1, "output": [1, 2]
    }  # fmt: skip
    assert [inexact(model, site) for site in range(5)] == [None] * 5
    llama = tiny.model("llama")
    translation = Translation("affine", (Term(Residual(2), tiny.noise(24, llama.width)),), torch.zeros(llama.width))
    assert compose(model, llama, 2, 3, translation)(tiny.ids()).logits.isfinite().all()


def test_an_anatomy_file_names_the_modules_of_a_family(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "my_decoder: {family: Mine, body: '', blocks: stack, final_norm: scale, embedding: words, head: out, mlp: now}\n"
    )
    assert stitch.read_anatomies(file)["my_decoder"].blocks == "stack"
    model = my_decoder(tmp_path / "model")
    assert model.anatomy.family == "Mine" and model.anatomy.mlp == "now" and not model.anatomy.tested
    for text, message in (
        ("my_decoder: {block: stack}", r"has 'block' \(did you mean blocks\?\)"),
        ("my_decoder: {blocks: 3}", "blocks of my_decoder must be a path"),
        ("my_decoder: stack", "must have paths of modules below it"),
        ("- 1", "must hold a model type"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            stitch.read_anatomies(file)
    done = CliRunner().invoke(cli.app, ["--anatomy", str(file), "inspect", "demo:gpt2"])
    assert done.exit_code == 2 and "must hold a model type" in done.output


@pytest.mark.parametrize("given", ["blocks: stack", "heads_out: now", "family: Mine", "embedding: words, down: before"])
def test_names_that_are_left_out_are_found_by_looking(given, tmp_path):
    register(tmp_path, f"my_decoder: {{{given}}}")
    known = vars(my_decoder(tmp_path / "model").anatomy)
    assert {name: known[name] for name in FOUND} == FOUND
    told = dict(part.split(": ") for part in given.split(", "))
    assert {name: known[name] for name in told} == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "embedding: tokens",
            "embedding must be `words`, which was found by looking; got `tokens`, which there is not",
        ),
        ("final_norm: norm", "final_norm must be `scale`, which was found by looking; got `norm`, which there is not"),
        ("head: words", "head must be `out`, which was found by looking; got `words`, of type Embedding"),
        ("blocks: layers", "blocks must be `stack`, which was found by looking; got `layers`, which there is not"),
        ("body: model", "body must be a module around the blocks, which are `stack`; got `model`, which there is not"),
        ("positions: wpe", "positions must be a module; got `wpe`, which there is not"),
        ("heads_out: attention.out", "heads_out must be a module of a block; got `attention.out`, which there is not"),
    ],
)
def test_names_that_are_not_what_is_found_are_refused(given, told, tmp_path):
    register(tmp_path, f"my_decoder: {{{given}}}")
    with pytest.raises(UsageError) as refused:
        my_decoder(tmp_path / "model")
    assert str(refused.value) == f"the anatomy of my_decoder must be corrected: {told}."


def test_all_that_is_wrong_with_an_anatomy_is_said_at_once(tmp_path):
    register(tmp_path, "my_decoder: {blocks: stack, head: words, embedding: out, final_norm: norm}")
    with pytest.raises(
        UsageError, match=r"embedding must be `words`.*; final_norm must be `scale`.*; head must be `out`"
    ):
        my_decoder(tmp_path / "model")


def test_a_down_projection_that_is_not_the_one_found_is_refused():
    net = tiny.net("llama")
    given = anatomy.Anatomy(family="Mine", down="self_attn.o_proj")
    with pytest.raises(UsageError, match=r"down must be `mlp.down_proj`, .*; got `self_attn.o_proj`"):
        flow_and_anatomy(net, given)


class Two(MyDecoder):
    """The stream runs through two lists of as many blocks, one of them deeper among the modules."""

    def __init__(self, config):
        super().__init__(config)
        self.upper = nn.ModuleDict({"stack": nn.ModuleList(MyDecoder(config).stack)})

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        stream = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        for number, block in enumerate(self.upper["stack"]):
            _, stream = block(number, stream)
        return super().forward(inputs_embeds=stream)


def test_of_two_lists_of_blocks_that_which_is_given_is_taken():
    net = Two(MyConfig()).eval()
    assert flow_and_anatomy(net, None)[0]["blocks"] == "stack"
    flow, known = flow_and_anatomy(net, anatomy.Anatomy(family="Mine", blocks="upper.stack"))
    assert flow["blocks"] == known.blocks == "upper.stack"


def test_a_composite_of_a_described_family_knows_its_parts_again(tmp_path):
    register(tmp_path, "my_decoder: {blocks: stack, heads_out: now}")
    model = my_decoder(tmp_path / "model")
    joined = compose(model, model, 2, 1, identity(model, 2))
    write_checkpoint(tmp_path / "joined", joined.config, model.folder, model.folder, identity(model, 2), loaded={})
    parts = load(tmp_path / "joined").parts
    assert [(part.anatomy.heads_out, len(part.blocks)) for part in parts] == [("now", 2), ("now", 3)]
