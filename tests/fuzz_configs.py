"""Folders that users give, damaged at random: models, composites, SAEs, weights, and what stitch itself has left behind.

Every format has a folder that is right, a strategy for files to put in its place, the call that reads the folder, and `sound`:
whether what was accepted makes sense. `survey` counts how cases end.
"""

import copy
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matching.errors import MatchError
from sae.errors import SAEError
from stitch.errors import StitchError

REFUSED, SOUND, NONSENSE, UNEXPECTED = "refused cleanly", "accepted and sound", "nonsense accepted", "unexpected"
SECONDS = 10  # for one case

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**6, 10**9, 2**31, 2**63, 10**20, -(10**20)),
    *(0.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf"), 3.0),
    *("", "x", "32", "../x", "/etc/passwd", "float99", "\x1b[31mred", "two\nlines", "[bold]x[/]", "x" * 3000),
    *([], [1], ["x"], [None], {}, {"a": 1}, {"": None}, [[[[[[[[]]]]]]]]),
]
RAW: list[bytes] = [
    *(b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{} {}", b"\0" * 64),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a": 1, "a": 2}', b"{'a': 1}"),
]


@dataclass(frozen=True)
class Format:
    """`cases` gives the contents of files by name; None takes the file away. `read` reads a folder, `sound` judges its result."""

    name: str
    folder: Path
    cases: st.SearchStrategy[dict[str, bytes | None]]
    read: Callable[[Path], Any]
    sound: Callable[[Path, Any], bool]


@dataclass
class Survey:
    """How many cases ended in which way, and an example of each kind of end that should not be."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, end: str, why: str, case: dict[str, bytes | None]) -> None:
        self.counts[end] += 1
        if end in (NONSENSE, UNEXPECTED):
            self.counts[f"  {why}"] += 1
            self.examples.setdefault(why, repr({name: content and content[-3000:] for name, content in case.items()}))


def survey(which: Format, cases: int, seen: Callable[[str, str, dict], None] | None = None) -> Survey:
    found = Survey()

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(which.cases)
    def run(case: dict[str, bytes | None]) -> None:
        end, why = end_of(which, case)
        found.add(end, why, case)
        if seen:
            seen(end, why, case)

    run()
    return found


def end_of(which: Format, case: dict[str, bytes | None]) -> tuple[str, str]:
    """How one case ends, and why in a few words."""
    with _in_place(which.folder, case), _limited():
        try:
            result = which.read(which.folder)
        except (StitchError, SAEError, MatchError) as error:
            told = str(error)
            if "\n" in told or len(told) > 1000 or not _names(told, which.folder, case):
                return UNEXPECTED, f"unclear message: {told[:100]!r}"
            if "\x1b" in told:
                return UNEXPECTED, "a terminal escape in the message"
            return REFUSED, told
        except Exception as error:
            return UNEXPECTED, f"{type(error).__name__} at {_place(error)}"
        try:
            return (SOUND, "") if which.sound(which.folder, result) else (NONSENSE, "not sound")
        except Exception as error:
            return NONSENSE, f"{type(error).__name__} when used"


def _names(told: str, folder: Path, case: dict) -> bool:
    """Whether a message says which file or folder is meant."""
    return any(name in told for name in (str(folder), folder.name, "sae_a", *case))


def _place(error: BaseException) -> str:
    """The last line of this project in a traceback."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if ("/stitch/" in file or "/sae/" in file) and "site-packages" not in file:
            place = f"{Path(file).name}:{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return place


@contextmanager
def _in_place(folder: Path, case: dict[str, bytes | None]) -> Iterator[None]:
    """The files of `case` in `folder` inside the block; what was there before after it."""
    before = {name: (folder / name).read_bytes() if (folder / name).exists() else None for name in case}
    try:
        _put(folder, case)
        yield
    finally:
        _put(folder, before)


def _put(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)


@contextmanager
def _limited() -> Iterator[None]:
    """A case that takes too long ends with TimeoutError."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)  # again, as one that is raised in a callback is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# JSON


def changed(file: str, document: dict, odd: list[Any] = ODD) -> st.SearchStrategy[dict[str, bytes | None]]:
    """`file` with one or two values of `document` changed, keys taken out or put in, or with bytes that are no such file."""
    places = list(_places(document))

    @st.composite
    def edited(draw: st.DrawFn) -> dict[str, bytes | None]:
        new = copy.deepcopy(document)
        for _ in range(draw(st.integers(1, 2))):
            _edit(
                new,
                draw(st.sampled_from(places)),
                draw(st.sampled_from("set set set out in".split())),
                draw(st.sampled_from(odd)),
            )
        return {file: json.dumps(new).encode()}

    whole = json.dumps(document).encode()
    cut = st.integers(0, len(whole) - 1).map(lambda length: {file: whole[:length]})
    raw = st.sampled_from([None, *RAW]).map(lambda content: {file: content})
    return st.integers(0, 19).flatmap(lambda kind: raw if kind == 0 else cut if kind == 1 else edited())


def _places(document: Any, above: tuple = ()) -> Iterator[tuple]:
    """Paths to all values."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in entries:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _edit(document: Any, place: tuple, how: str, value: Any) -> None:
    """Changes one value. A place that an earlier edit has taken away is left."""
    try:
        for key in place[:-1]:
            document = document[key]
        if how == "out":
            del document[place[-1]]
        elif how == "in" and isinstance(document, dict):
            document["surprise"] = copy.deepcopy(value)
        else:
            document[place[-1]] = copy.deepcopy(value)
    except (KeyError, IndexError, TypeError):
        pass


def read_json(folder: Path, file: str) -> dict:
    return json.loads((folder / file).read_bytes())


# Models and composites

SIZES = (
    *(
        "vocab_size",
        "hidden_size",
        "n_embd",
        "num_hidden_layers",
        "n_layer",
        "num_attention_heads",
        "n_head",
        "head_dim",
    ),
    *("num_key_value_heads", "intermediate_size", "n_inner", "max_position_embeddings", "n_positions"),
)
OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads")
EPSILONS = ("layer_norm_epsilon", "rms_norm_eps")


def model(folder: Path, file: str = "config.json") -> Format:
    """Of a folder with a model or a composite."""
    return Format(f"{folder.name}: {file}", folder, changed(file, read_json(folder, file)), _load_model, model_is_sound)


def _load_model(folder: Path) -> Any:
    from stitch.models.loading import load
    from stitch.models.sources import resolve

    return load(resolve(str(folder)).folder)


def model_is_sound(folder: Path, result: Any) -> bool:
    """The model computes finite logits for every entry of its vocabulary, and what its config says is what it is."""
    import torch

    with torch.no_grad():
        logits = result.net(torch.tensor([[0, 5, 9, 13]])).logits
    whole = read_json(folder, "config.json")
    configs = [one for one in (whole, whole.get("a_config"), whole.get("b_config")) if isinstance(one, dict)]
    return bool(
        logits.shape[:2] == (1, 4)
        and logits.shape[2] == result.net.config.vocab_size
        and logits.isfinite().all()
        and all(config_is_sound(one) for one in configs)
    )


def config_is_sound(config: dict) -> bool:
    """Sizes are whole numbers above zero; rates, epsilons and ids are what such numbers can be."""
    sizes = [config[name] for name in SIZES if name in config and not (name in OPTIONAL and config[name] is None)]
    rates = [value for name, value in config.items() if name.endswith(("pdrop", "dropout"))]
    epsilons = [config[name] for name in EPSILONS if name in config]
    ids = [config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
    ids = [one for each in ids for one in (each if isinstance(each, list) else [each]) if one is not None]
    return bool(
        all(type(size) is int and 0 < size < 2**31 for size in sizes)
        and all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates)
        and all(type(epsilon) in (int, float) and 0 <= epsilon < 1 for epsilon in epsilons)
        and all(type(one) is int and -1 <= one < 2**31 for one in ids)
    )


# Weights

INDEX = "model.safetensors.index.json"


def header(folder: Path, file: str = "model.safetensors") -> Format:
    """Of the header of a safetensors file."""
    whole = (folder / file).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    document, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    odd = [
        *ODD,
        "F16",
        "F64",
        "I64",
        "BOOL",
        "__metadata__",
        [0, 4],
        [4, 0],
        [-4, 0],
        [0, 10**20],
        [3.0, 4.0],
        [True, 4],
    ]

    def framed(case: dict[str, bytes | None]) -> st.SearchStrategy[dict[str, bytes | None]]:
        content = case[file]
        claims = [len(content or b""), 0, 1, 8, 10**6, 10**9, 2**40, 2**63, 2**64 - 1]
        many = st.integers(0, 9).flatmap(lambda kind: st.sampled_from(claims) if kind == 0 else st.just(claims[0]))
        return many.map(lambda claim: {file: content and claim.to_bytes(8, "little") + content + rest})

    return Format(
        "safetensors header", folder, changed(file, document, odd).flatmap(framed), _read_weights, weights_are_sound
    )


def index(folder: Path) -> Format:
    """Of the index of shards in a folder that has several."""
    odd = [*ODD, "../model.safetensors", "/tmp/model.safetensors", "./model-00001-of-00002.safetensors", "model.bin"]
    return Format(
        "shard index", folder, changed(INDEX, read_json(folder, INDEX), odd), _read_weights, weights_are_sound
    )


def _read_weights(folder: Path) -> Any:
    from stitch.files.shards import stored_tensors

    return stored_tensors(folder)


def weights_are_sound(folder: Path, result: Any) -> bool:
    """The reference implementation reads the same shapes from the same files, and all of them lie in the folder."""
    from safetensors import safe_open

    for name, tensor in result.items():
        with safe_open(tensor.path, "pt") as opened:
            if tuple(opened.get_slice(name).get_shape()) != tensor.shape:
                return False
        if tensor.path.parent != folder:
            return False
    return bool(result)


# SAEs

WIDTH = 12  # of the stream that an SAE has to read


def autoencoder(folder: Path, file: str = "cfg.json") -> Format:
    odd = [*ODD, "jumprelu", "topk", "gated", "batchtopk", "temporal", "float16", "cuda:9", "layer_norm", "hook_z"]
    return Format(f"SAE {file}", folder, changed(file, read_json(folder, file), odd), _load_sae, sae_is_sound)


def _load_sae(folder: Path) -> Any:
    """As a join looks at the SAE that it is given."""
    from sae.convert import to_dictionary
    from sae.storage import load
    from stitch.features.given import Place, look_at, require_fitting
    from stitch.models.sources import resolve

    given = look_at("sae_a", str(folder), WIDTH)
    require_fitting([given], {"sae_a": Place(resolve("demo:gpt2"), None)}, insist=True)
    return to_dictionary(load(folder)), given.attachment


def sae_is_sound(folder: Path, result: Any) -> bool:
    """Codes and reconstructions are finite, have the sizes that cfg.json says, and names are text."""
    import torch

    dictionary, place = result
    config = read_json(folder, "cfg.json")
    x = torch.linspace(-1, 1, 3 * len(dictionary.encoder)).view(3, -1)
    codes = dictionary.encode(x)
    return bool(
        codes.isfinite().all()
        and dictionary.decode(codes).isfinite().all()
        and codes.shape[1] == config["d_sae"] and type(config["d_sae"]) is int
        and x.shape[1] == config["d_in"] and type(config["d_in"]) is int
        and all(name is None or type(name) is str for name in (place.model, place.hook))
        and isinstance(config.get("metadata", {}), dict)
    )  # fmt: skip


# What stitch has left behind


def left_behind(folder: Path) -> list[Format]:
    """Of the files of stitch in an output and a work folder. These are read to decide; a damaged one counts as missing."""
    from stitch.files.finished import finished
    from stitch.files.left import Left, left_in
    from stitch.files.output import why_not_replaceable
    from stitch.files.owner import OWNER, Owner, busy, owner_of

    marker = {"written_by": "stitch-lm", "command": "join", "files": ["report.json", "stitch.json"]}
    owner = {"pid": 2**22 - 1, "host": "elsewhere", "start": "5", "since": 1_700_000_000.5}
    run = {"command": "join", "began": 1_700_000_000.5, "stage": "harvest"}
    request = {"model_a": "demo:gpt2", "tokens": 4096}
    report = {"provenance": {"settings": request}, "results": []}

    def left_is_sound(folder: Path, result: Any) -> bool:
        return result is None or (isinstance(result, Left) and type(result.request) is dict and bool(result.in_words))

    def owner_is_sound(folder: Path, result: Any) -> bool:
        return result is None or (isinstance(result, Owner) and bool(str(busy(folder, result))))

    def done(place: Path) -> dict | None:
        return finished(place, request, place)

    def nothing_or(kind: type) -> Callable[[Path, Any], bool]:
        return lambda _, found: found is None or type(found) is kind

    return [
        Format("stitch.json", folder, changed("stitch.json", marker), why_not_replaceable, nothing_or(str)),
        Format("owner.json", folder, changed(OWNER, owner), owner_of_without_locks(owner_of), owner_is_sound),
        Format("run.json", folder, changed("run.json", run), left_in, left_is_sound),
        Format("request.json", folder, changed("request.json", request), left_in, left_is_sound),
        Format("report.json", folder, changed("report.json", report), done, nothing_or(dict)),
    ]  # fmt: skip


def owner_of_without_locks(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """`read` on a file system without locks, where the owner's file alone decides."""
    from stitch.files import owner

    def call(folder: Path) -> Any:
        before, owner._is_locked = owner._is_locked, lambda _: None
        try:
            return read(folder)
        finally:
            owner._is_locked = before

    return call
