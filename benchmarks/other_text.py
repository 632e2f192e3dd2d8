"""Translations fitted on docstrings and scored on other kinds of text. One JSON line per seed and direction.

Every row of the main job is fitted on the fit split of the docstrings, then scored on held-out docstrings and on other
text that is found on most machines: licences and comments of the installed Python packages, and man pages if there are
any.
"""

import gzip
import io
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from _pair import prepare, print_lines, row

from stitch.jobs.pair.features import match_pair
from stitch.jobs.pair.streams import harvest_pair
from stitch.jobs.pair.translations import states_of_tokens, translate_pair
from stitch.text.document import Document
from stitch.text.windows import sample

LONGEST = 10_000  # characters of one document, at most: long ones would leave too few for an interval
MOST = 1_000_000  # characters of one kind of text, at most
ROWS = (
    "translation:affine", "translation:affine+free", "translation:affine+free+tables", "translation:features",
    "translation:features+free", "translation:features+free+tables", "translation:cross-code", "null:no-source",
    "null:look-ups", "null:untrained-sae", "null:random-relu", "null:random-topk", "null:exemplars", "null:rbf",
)  # fmt: skip
AGAINST = (
    ("translation:affine+free", "a"), ("translation:affine+free", "b"), ("translation:affine+free", "null:look-ups"),
    ("translation:affine+free+tables", "b"), ("translation:affine+free+tables", "null:no-source"),
    ("translation:features+free", "b"), ("translation:features+free+tables", "b"),
    ("translation:features+free+tables", "translation:features+free"),
    ("translation:affine+free+tables", "translation:affine+free"),
    ("translation:features+free", "translation:affine+free"), ("translation:features+free", "null:random-relu"),
    ("translation:features+free", "null:exemplars"), ("translation:features+free", "null:rbf"),
    ("translation:features", "null:untrained-sae"), ("translation:features", "translation:affine"),
    ("translation:cross-code", "translation:affine"),
)  # fmt: skip


def installed() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def licences() -> Iterator[Document]:
    for path in sorted(installed().rglob("*")):
        if path.is_file() and re.match(r"(LICEN[CS]E|COPYING|NOTICE)", path.name):
            yield str(path), path.read_text(errors="ignore")


def comments() -> Iterator[Document]:
    for path in sorted(installed().rglob("*.py")):
        try:
            source = path.read_text()
            tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        except (OSError, UnicodeDecodeError, tokenize.TokenError, SyntaxError):
            continue
        found = [token.string.lstrip("#: ") for token in tokens if token.type == tokenize.COMMENT]
        if sum(map(len, found)) > 400:
            yield str(path), "\n".join(found)


def man_pages() -> Iterator[Document]:
    for path in sorted(Path("/usr/share/man").glob("man[1-8]/*.gz")):
        text = gzip.decompress(path.read_bytes()).decode(errors="ignore")
        plain = (re.sub(r"\\f.|\\&|\\", "", line) for line in text.splitlines() if not line.startswith((".", "'")))
        yield str(path), "\n".join(plain)


KINDS: dict[str, Callable[[], Iterator[Document]]] = {
    "licences": licences,
    "comments": comments,
    "man pages": man_pages,
}


def documents(kind: str) -> list[Document]:
    """Distinct documents of one kind, until they have MOST characters."""
    seen: dict[str, str] = {}
    total = 0
    for name, whole in KINDS[kind]():
        text = whole[:LONGEST]
        if text.strip() and text not in seen:
            seen[text] = name
            total += len(text)
            if total > MOST:
                break
    return [(name, text) for text, name in seen.items()]


def run(direction: str, seed: int, tokens: int, held_out: int, work: Path, texts: dict[str, list[Document]]) -> dict:
    pair = prepare(direction, seed=seed, tokens=tokens, held_out=held_out, work=work)
    settings, fit = pair.settings, pair.paired["fit"]
    folder = work / f"{direction}-{tokens}-{held_out}"
    matching = match_pair(settings, fit, pair.saes, folder / f"seed-{seed}")
    tables = states_of_tokens(pair.a, pair.b, pair.paired)
    fitted = translate_pair(settings, pair.a, pair.b, pair.paired, pair.saes, matching, tables)
    rows = {name: (fitted.translations | fitted.nulls)[name] for name in ROWS}
    found = {"docstrings": pair.paired["report"]}
    assert settings.context is not None
    for kind, read in texts.items():
        windows = sample(read, pair.b.tokenizer, settings.context, held_out)
        found[kind] = harvest_pair(settings, pair.a, pair.b, windows, folder / kind.replace(" ", "-"))
    results = {}
    for kind, paired in found.items():
        scores = pair.scores(rows, paired)
        results[kind] = {
            "tokens": paired.a.windows.tokens,
            "documents": scores["b"].documents,
            "results": [row(scores, name) for name in scores],
            "differences": [row(scores, *pair_of) for pair_of in AGAINST],
        }
    return {"benchmark": "other_text", "direction": direction, "seed": seed, "tokens": fit.tokens, "texts": results}


def main() -> None:
    texts = {kind: documents(kind) for kind in KINDS}
    texts = {kind: found for kind, found in texts.items() if sum(len(text) for _, text in found) > MOST // 20}
    print_lines(partial(run, texts=texts), tokens=100_000)


if __name__ == "__main__":
    main()
