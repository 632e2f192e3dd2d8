import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save

from hub_double import PART_SIZE, HubDouble, hub  # noqa: F401 (a fixture)
from stitch.errors import StitchError, UsageError
from stitch.files.markdown import loading_example
from stitch.models.hub import download, push

REPO = "user/model"

# The client uploads through a parameter that its HTTP library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def weights(seed: int, values: int = 40_000) -> bytes:
    return save({"w": numpy.random.default_rng(seed).standard_normal(values, dtype=numpy.float32)})


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def files() -> dict[str, bytes]:
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
        "config.json": json.dumps({"model_type": "gpt2"}).encode(),
        "generation_config.json": b"{}",
        "model-00001-of-00002.safetensors": weights(1),  # 160 kB, uploaded in three parts
        "model-00002-of-00002.safetensors": weights(2, values=100),  # uploaded in one part
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "modeling_composite.py": b"# code\n",
        "tokenizer.json": "{ \u00e9 }".encode(),
        "report.json": b'{"chosen": "affine"}',
    }


@pytest.fixture
def model(tmp_path, files) -> Path:
    return write(tmp_path / "model", files)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def closed_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 400
    return text


def test_a_pushed_cards_example_names_the_repository(hub, model, files):
    card = "\n".join(["# A model", *loading_example(remote_code=True)])
    (model / "README.md").write_text(card)
    push(model, REPO, token=hub.token)
    pushed = hub.files(REPO)["README.md"].decode()
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}", trust_remote_code=True)' in pushed
    assert f'AutoTokenizer.from_pretrained("{REPO}", trust_remote_code=False)' in pushed
    assert "FOLDER_OR_REPO" not in pushed and (model / "README.md").read_text() == card


def test_a_pushed_folder_is_downloaded_byte_for_byte(hub, model, files):
    url = push(model, REPO, token=hub.token)
    assert url == f"{hub.url}/{REPO}"
    pushed = hub.files(REPO)
    assert {name: pushed[name] for name in files} == files
    folder, commit = download(REPO)
    assert commit == hub.repositories[REPO].commits[-1].oid
    code = "modeling_composite.py"  # not downloaded here; libraries that need it fetch it themselves
    assert contents(folder) == {name: content for name, content in files.items() if name != code}


def test_a_push_is_one_commit_after_the_initial_one(hub, model):
    push(model, REPO, token=hub.token)
    assert hub.commits(REPO) == ["add", "Upload with stitch"]


def test_large_files_arrive_in_verified_parts_and_small_ones_whole(hub, model, files):
    push(model, REPO, token=hub.token)
    large, small = files["model-00001-of-00002.safetensors"], files["model-00002-of-00002.safetensors"]
    assert hub.parts(large) == [PART_SIZE, PART_SIZE, len(large) - 2 * PART_SIZE]
    assert hub.parts(small) == [len(small)]
    assert hub.parts(files["tokenizer.json"]) == []  # part of the commit
    assert len(hub.verified) == 2


def test_pushing_the_same_again_uploads_and_commits_nothing(hub, model):
    push(model, REPO, token=hub.token)
    uploads, commits = len(hub.uploads), hub.commits(REPO)
    assert push(model, REPO, token=hub.token) == f"{hub.url}/{REPO}"
    assert (len(hub.uploads), hub.commits(REPO)) == (uploads, commits)


def test_a_push_deletes_weights_of_an_earlier_push(hub, model, tmp_path):
    single = {"config.json": b"{}", "model.safetensors": weights(3), "notes.txt": b"mine"}
    push(write(tmp_path / "single", single), REPO, token=hub.token)
    push(model, REPO, token=hub.token)
    left = hub.files(REPO)
    assert "model.safetensors" not in left  # transformers would prefer it to the new shards
    assert left["notes.txt"] == b"mine"
    assert hub.commits(REPO) == ["add", "Upload with stitch", "Upload with stitch"]


def test_hidden_files_and_pickles_are_not_uploaded(hub, model):
    write(
        model,
        {
            ".cache/secret.json": b"{}",
            ".env": b"x",
            "optimizer.pt": b"x",
            "sae/trainer.bin": b"x",
            "sae/cfg.json": b"{}",
        },
    )
    push(model, REPO, token=hub.token)
    extra = set(hub.files(REPO)) - set(contents(model))
    assert extra == {".gitattributes"}
    assert not {".cache/secret.json", ".env", "optimizer.pt", "sae/trainer.bin"} & set(hub.files(REPO))
    assert "sae/cfg.json" in hub.files(REPO)


def test_a_private_repository_is_created_and_needs_the_token(hub, model, monkeypatch):
    push(model, REPO, private=True, token=hub.token)
    assert hub.repositories[REPO].private
    with pytest.raises(StitchError, match="private") as caught:
        download(REPO)
    one_line(caught.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (download(REPO)[0] / "config.json").is_file()


def test_progress_of_a_push_ends_at_all_bytes(hub, model, files):
    seen = []
    push(model, REPO, token=hub.token, progress=lambda *step: seen.append(step))
    total = sum(map(len, files.values()))
    assert len(seen) == len(files) and seen[-1] == (f"upload {REPO}", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_progress_of_a_download_ends_at_all_bytes(hub, model, capfd):
    push(model, REPO, token=hub.token)
    seen = []
    folder, _ = download(REPO, progress=lambda *step: seen.append(step))
    looked_up = {"config.json", "model.safetensors.index.json"}  # before
    total = sum(len(content) for name, content in contents(folder).items() if name not in looked_up)
    assert max(done for _, done, _ in seen) == total == max(known for _, _, known in seen)
    assert capfd.readouterr() == ("", "")  # the client's own progress bars are off


def test_a_revision_is_a_commit_and_an_unknown_one_is_refused(hub):
    first = hub.add(REPO, {"config.json": b"1", "model.safetensors": weights(1)})
    hub.add(REPO, {"config.json": b"2", "model.safetensors": weights(1)})
    assert (download(REPO)[0] / "config.json").read_bytes() == b"2"
    folder, commit = download(REPO, first)
    assert commit == first and (folder / "config.json").read_bytes() == b"1"
    with pytest.raises(StitchError, match="revision"):
        download(REPO, "no-such-branch")


def test_pickles_code_and_subfolders_are_not_downloaded(hub):
    wanted = {"config.json": b"{}", "model.safetensors": weights(1), "tokenizer.model": b"t", "merges.txt": b"m"}
    other = {
        "pytorch_model.bin": b"p",
        "consolidated.safetensors": b"c",
        "onnx/config.json": b"{}",
        "code.py": b"",
        "x.gguf": b"g",
    }
    hub.add(REPO, {**wanted, **other})
    assert contents(download(REPO)[0]) == wanted


def test_a_downloaded_model_can_be_used_without_network(hub, monkeypatch):
    from huggingface_hub import constants

    commit = hub.add(REPO, {"config.json": b"{}", "model.safetensors": weights(1)})
    online = download(REPO)
    monkeypatch.setattr(constants, "ENDPOINT", closed_endpoint())
    assert download(REPO) == online == (online[0], commit)
    with pytest.raises(StitchError) as caught:
        download("user/other")
    assert one_line(caught.value) == "no network and no such local model: user/other; check the connection."


def test_a_token_is_sent_to_the_hub_only(hub, model):
    push(model, REPO, token=hub.token)
    storage = [request for request in hub.requests if request.path.count("/") <= 2 and request.method == "PUT"]
    assert len(storage) == 4 and all(request.status == 200 and not request.authorised for request in storage)


# Failures


@pytest.mark.parametrize(
    "token, told",
    [
        ("hf_refused_refused_refused", "the Hub refused the token: make a new one"),
        ("read", "the token has no permission for that on user/model"),
        ("hf_with a space", "the Hub token holds spaces"),
        ("hf_with\nnewline", "the Hub token holds spaces"),
        ("hf_\u00fcml\u00e4ut", "the Hub token holds spaces"),
    ],
)
@pytest.mark.parametrize("hostile", [False, True])
def test_a_refused_token_is_reported_but_not_shown(hub, model, capfd, caplog, token, told, hostile):
    hub.echo_token = hostile
    secret = hub.read_token if token == "read" else token
    with pytest.raises(StitchError) as caught:
        push(model, REPO, token=secret)
    assert one_line(caught.value).startswith(told)
    assert caught.value.exit_code == 1
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    assert secret not in shown and repr(secret)[1:-1] not in shown
    assert REPO not in hub.repositories


def test_without_a_token_nothing_is_sent(hub, model):
    with pytest.raises(StitchError) as caught:
        push(model, REPO)
    assert (
        one_line(caught.value) == "pushing needs a Hub token and there is none: run `hf auth login`, or set HF_TOKEN."
    )
    assert hub.requests == []


def test_the_token_of_the_environment_is_used(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    push(model, REPO)
    assert "config.json" in hub.files(REPO)


def test_a_push_without_network_is_reported(model, hub):
    with pytest.raises(StitchError) as caught:
        push(model, REPO, token=hub.token, endpoint=closed_endpoint())
    assert one_line(caught.value) == "no network: the Hub cannot be reached; check the connection."


@pytest.mark.parametrize(
    "status, told", [(507, "no room for user/model"), (400, "the Hub is down"), (418, "answered 418")]
)
def test_the_hubs_error_is_reported_in_one_line(hub, model, status, told):
    hub.outage = status
    with pytest.raises(StitchError, match=told) as caught:
        push(model, REPO, token=hub.token)
    one_line(caught.value)


@pytest.mark.parametrize("token, why", [("", "no token was sent"), ("read", "the account of this token has no access")])
def test_for_a_gated_model_the_error_says_what_to_accept(hub, monkeypatch, token, why):
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": weights(1)}, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.read_token if token else "")
    with pytest.raises(StitchError, match=f"user/model is gated, and {why}: accept its terms on its page") as caught:
        download(REPO)
    one_line(caught.value)


def test_a_token_that_may_not_read_gated_models_is_told_so(hub, monkeypatch):
    """The Hub answers 403 without the code of a gated model where a fine-grained token leaves them out."""
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": weights(1)})
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    hub.outage = 403
    with pytest.raises(
        StitchError, match=r"no permission for that on user/model .*: use one that may read it"
    ) as caught:
        download(REPO)
    one_line(caught.value)


def test_a_missing_model_is_distinguished_from_a_missing_network(hub, monkeypatch):
    with pytest.raises(StitchError, match="neither a local folder nor on the Hub") as caught:
        download("user/absent")
    one_line(caught.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(StitchError, match="neither a local folder nor on the Hub"):
        download("user/absent")
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with pytest.raises(StitchError, match="refused the token"):
        download("user/absent")


def test_a_broken_model_card_is_refused_in_one_line(hub, model):
    (model / "README.md").write_text("---\nlicense: apache-2.0\n")
    with pytest.raises(StitchError, match=r"README\.md") as caught:
        push(model, REPO, token=hub.token)
    one_line(caught.value)
    assert hub.commits(REPO) == ["add"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_not_pushed(hub, tmp_path, missing):
    files = {"config.json": b"{}", "model.safetensors": weights(1), "notes.txt": b""}
    del files[missing]
    with pytest.raises(UsageError, match="must hold a model") as caught:
        push(write(tmp_path / "folder", files), REPO, token=hub.token)
    one_line(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["model", "a/b/c", "user/", "user/..x--y", "user/a b", ""])
def test_an_invalid_repository_name_is_refused(hub, model, repo):
    with pytest.raises(UsageError) as caught:
        push(model, repo, token=hub.token)
    one_line(caught.value)


def test_the_clients_settings_are_restored(hub, model):
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled

    before = constants.HF_HUB_DISABLE_XET, are_progress_bars_disabled()
    push(model, REPO, token=hub.token)
    assert (constants.HF_HUB_DISABLE_XET, are_progress_bars_disabled()) == before


def test_a_subprocess_uses_the_double_and_does_not_store_the_token(tmp_path, model, files):
    script = (
        "import sys, pathlib; from stitch.models import hub;"
        f"print(hub.push(pathlib.Path(sys.argv[1]), {REPO!r})); print(hub.download({REPO!r})[0])"
    )
    with HubDouble(tmp_path / "double") as double:
        home = tmp_path / "home"
        result = subprocess.run(
            [sys.executable, "-c", script, str(model)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **double.environment(home)},
            capture_output=True,
            text=True,
            check=True,
        )
    url, folder = result.stdout.splitlines()
    assert url == f"{double.url}/{REPO}" and Path(folder).is_relative_to(home)
    assert (Path(folder) / "config.json").read_bytes() == files["config.json"]
    assert double.token not in result.stdout + result.stderr
    assert not any(double.token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# The double itself


def test_transformers_loads_a_pushed_model_from_the_double(hub, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    original = GPT2LMHeadModel(config).eval()
    original.save_pretrained(tmp_path / "pico")
    push(tmp_path / "pico", REPO, token=hub.token)
    again = AutoModelForCausalLM.from_pretrained(REPO, cache_dir=tmp_path / "cache").eval()
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).logits, original(ids).logits)


def test_the_double_serves_ranges(hub):
    import urllib.request

    content = weights(1)
    hub.add(REPO, {"model.safetensors": content, "config.json": b"0123456789"})
    for path, whole in (("model.safetensors", content), ("config.json", b"0123456789")):
        request = urllib.request.Request(f"{hub.url}/{REPO}/resolve/main/{path}", headers={"Range": "bytes=3-6"})
        with urllib.request.urlopen(request) as answer:
            assert (answer.status, answer.read()) == (206, whole[3:7])
            assert answer.headers["Content-Range"] == f"bytes 3-6/{len(whole)}"
