"""Words of the command line: suggestions for mistyped ones, and library messages with options instead of parameters."""

import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import cli
from matching.errors import MatchError
from sae.errors import SAEError
from stitch.api.given import byte_count, folder_name
from stitch.commands import help, options
from stitch.commands.app import may_be_model
from stitch.commands.errors import reported
from stitch.commands.spelling import spelt
from stitch.commands.values import block_or_auto
from stitch.errors import StitchError, UsageError
from stitch.files.recipe import donor_and_behaviour, sae_by_block


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), prog_name="stitch")


@pytest.mark.parametrize(
    "typed, answer",
    [
        ("jion", "No such command 'jion'. Did you mean 'join'?"),
        ("jion a b --layer 3", "No such command 'jion'. Did you mean 'join'?"),
        ("rnu dfa abba", "Did you mean 'run'?"),
        ("complie machine", "Did you mean 'compile'?"),
        ("heads demo:gpt2", "Did you mean 'convert heads'?"),
        ("convert head demo:gpt2", "Did you mean 'heads'?"),
        ("something", "No such command 'something'. To join two models: stitch MODEL_A MODEL_B --layer N."),
        ("--verison", "No such option: --verison. Did you mean --version?"),
        ("demo:gpt2 demo:llama --laier 3", "--layer"),
        ("--laier 3 demo:gpt2 demo:llama", "--layer"),
        ("join demo:gpt2 demo:llama --layer 3 --overwritten", "--overwrite"),
    ],
)
def test_a_mistyped_word_is_answered_with_a_suggestion(typed, answer):
    done = invoke(*typed.split())
    assert done.exit_code == 2 and not done.stdout
    assert answer in " ".join(done.stderr.split())


@pytest.mark.parametrize("word", ["user/join", "demo:gpt2", "./jion", "model.gguf", "~/jion"])
def test_arguments_that_look_like_models_are_taken_as_models(word):
    assert may_be_model(word)
    done = invoke(word)
    assert done.exit_code == 2 and "Missing argument 'MODEL_B'" in done.stderr


def test_a_folder_with_a_name_like_a_command_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'join'" in invoke("jion", "b", "--layer", "x").stderr
    (tmp_path / "jion").mkdir()
    done = invoke("jion", "b", "--layer", "x")
    assert done.exit_code == 2 and "'--layer'" in done.stderr


def test_a_hub_name_without_a_user_is_taken_as_a_model():
    done = invoke("gpt2", "distilgpt2", "--layer", "x")
    assert done.exit_code == 2 and "Invalid value for '--layer'" in done.stderr


def option(name: str, *opts: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, opts=list(opts), param_type_name="option")


def positional(name: str, metavar: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, opts=[name], metavar=metavar, param_type_name="argument")


PARAMETERS = [
    option("layer_b", "--layer-b"),
    option("tokens", "--tokens"),
    option("features", "--features"),
    option("count", "--prompts"),
    option("quiet", "-q", "--quiet"),
    option("overwrite", "--overwrite"),
    positional("model_a", "MODEL_A"),
    positional("tape", "[TAPE]"),
    positional("model"),
]


@pytest.mark.parametrize(
    "message, expected",
    [
        ("layer_b must be a block's number; got 'x'.", "--layer-b must be a block's number; got 'x'."),
        ("tokens must be at least 4,096.", "--tokens must be at least 4,096."),
        ("count must be 1 or more.", "--prompts must be 1 or more."),
        ("model_a must be a decoder.", "MODEL_A must be a decoder."),
        ("model may be a folder.", "MODEL may be a folder."),
        ("layer_b, tokens and count must be 0 or more.", "--layer-b, --tokens and --prompts must be 0 or more."),
        ("layer_b 9 is beyond the last block.", "--layer-b 9 is beyond the last block."),
        ("too few: raise `tokens`.", "too few: raise --tokens."),
        ("`quiet` and `tokens` do not go together.", "--quiet and --tokens do not go together."),
        ("x exists: choose another or pass `overwrite=True`.", "x exists: choose another or pass --overwrite."),
        ("give `count=8` or more; only `tape` is read.", "give --prompts 8 or more; only TAPE is read."),
    ],
)
def test_parameters_in_messages_become_options(message, expected):
    assert spelt(message, PARAMETERS) == expected


@pytest.mark.parametrize(
    "message",
    [
        "layers must be all; got 3.",
        "layer_bb must be none.",
        "Tokens must differ.",
        "sites and tokens must agree.",
        "features to be grafted must be a transcoder's.",
        "the text must be UTF-8: `convert_heads` and `tokens_of` read it.",
        "a sentence about tokens and layer_b.",
        "--tokens must be at least 4,096.",
        "`from` begins at block 0; {model: demo:gpt2}.",
        "",
    ],
)
def test_other_words_in_messages_stay(message):
    assert spelt(message, PARAMETERS) == message


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UsageError("tokens must be\nmore."), 2, "stitch: --tokens must be more.\n"),
        (StitchError("the weights are damaged."), 1, "stitch: the weights are damaged.\n"),
        (SAEError("features must be more."), 1, "stitch: --features must be more.\n"),
        (MatchError("`count` is too small."), 1, "stitch: --prompts is too small.\n"),
        (UsageError("a file has \x1b[31m\u202e in it."), 2, "stitch: a file has \\x1b[31m\\u202e in it.\n"),
        (UsageError("a" * 10**6), 2, f"stitch: {'a' * 2_000}…\n"),
        (ValueError("tokens must"), 1, "stitch: unexpected ValueError: tokens must (--debug shows where)\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    with pytest.raises(typer.Exit) as found, reported(PARAMETERS, debug=False):
        raise error
    assert found.value.exit_code == code and capsys.readouterr().err == line
    with pytest.raises(type(error)), reported(PARAMETERS, debug=True):
        raise error


@pytest.mark.parametrize("passing", [typer.Exit(3), typer.Abort(), BrokenPipeError()])
def test_exceptions_that_typer_handles_are_passed_on(passing, capsys):
    with pytest.raises(type(passing)) as found, reported(PARAMETERS, debug=False):
        raise passing
    assert found.value is passing and capsys.readouterr().err == ""


def test_a_command_reports_its_own_errors():
    app = typer.Typer()

    @help.command(app, "Input", "stitch fail")
    def fail(tokens: options.ReportTokens = 1, debug: options.Debug = False) -> None:
        """Fail."""
        raise UsageError("tokens must be more.")

    done = CliRunner().invoke(app, [])
    assert (done.exit_code, done.stderr) == (2, "stitch: --tokens must be more.\n")
    assert isinstance(CliRunner().invoke(app, ["--debug"]).exception, UsageError)


@pytest.mark.parametrize(
    "text, size", [("4G", 2**32), ("512M", 2**29), ("1.5k", 1536), ("2T", 2**41), ("1000", 1000), ("8g", 2**33)]
)
def test_sizes_in_bytes(text, size):
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["lots", "", "4X", "G", "infG", "nanG"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(UsageError, match=r"^memory must be a size such as 512M or 4G; got"):
        byte_count(text)


def test_other_options_are_parsed():
    assert [block_or_auto("layer_b", text) for text in ("auto", "4", "-1")] == ["auto", 4, -1]
    assert sae_by_block(["0=a=b", "11=folder"]) == {0: "a=b", 11: "folder"} and sae_by_block(None) == {}
    assert donor_and_behaviour("demo:induction=induction") == ("demo:induction", "induction")
    assert str(folder_name("demo:induction", "my prompts.jsonl")) == "demo-induction-my-prompts"
    for wrong in (["zero=a"], ["1="], ["1=a", "1=b"]):
        with pytest.raises(UsageError, match=r"^features must be BLOCK=SAE"):
            sae_by_block(wrong)
    with pytest.raises(UsageError, match=r"^layer_b must be"):
        block_or_auto("layer_b", "four")
    with pytest.raises(UsageError, match="DONOR=BEHAVIOUR"):
        donor_and_behaviour("demo:induction")


def test_the_entry_of_the_package_is_the_command():
    assert callable(cli.main) and cli.app is sys.modules["stitch.commands.app"].app
