"""The guard for every folder that stitch writes: which folders may be replaced, and the marker that lists what stitch wrote.

Each output folder holds `stitch.json`, a list of the files that stitch put there. A folder is replaced only if nothing else
is in it, so that `overwrite` never deletes files from elsewhere.
"""

import fnmatch
import json
import os
from pathlib import Path

from stitch.errors import UsageError

MARKER = "stitch.json"
WRITER = "stitch-lm"

# Outputs of versions before the marker: one of these files names the kind of artefact ...
REPORTS = ("report.json", "graft.json", "synthesis.json", "tool.json")
# ... and all files match one of these patterns.
KNOWN_FILES = (
    *REPORTS,
    *("config.json", "generation_config.json", "README.md", "sweep.png"),
    *("*.safetensors", "model.safetensors.index.json", "features.json", "modeling_*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "certificate.json", "cfg.json", "provenance.json"),
)
KNOWN_FOLDERS = ("", "sae-a", "sae-b", "seam-*", "seam-*/sae-a", "seam-*/sae-b")


def check_output(out: Path, overwrite: bool) -> None:
    """Raises UsageError when `out` exists and may not be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"out must not exist; {out} does: choose another folder or set `overwrite`.")
    if (reason := why_not_replaceable(out)) is not None:
        raise UsageError(
            f"`overwrite` replaces only a folder that stitch wrote; {out} {reason}: choose another folder for `out`."
        )


def why_not_replaceable(folder: Path) -> str | None:
    """Why this existing path may not be replaced, as the rest of a sentence that its name begins; None if it may."""
    if folder.is_symlink():
        return "is a link"
    if not folder.is_dir():
        return "is a file"
    place = folder.resolve()
    if place == Path(place.anchor) or os.path.ismount(place):
        return "is the root of a file system"
    if Path.home().resolve().is_relative_to(place):
        return "is or holds the home folder"
    if Path.cwd().is_relative_to(place):
        return "is or holds the folder that you work in"
    files = files_in(folder)
    written = _listed(folder)
    if written is not None:
        others = [name for name in files if name not in written and name != MARKER]
        return f"also holds {others[0]}, which stitch did not write" if others else None
    if files and not any(name in REPORTS for name in files):
        return f"holds {files[0]} and no {MARKER}"
    others = [name for name in files if not _was_written_before_the_marker(name)]
    return f"also holds {others[0]}, which stitch did not write" if others else None


def mark(folder: Path, command: str) -> None:
    """Writes the marker: which command wrote the folder, and every file that is in it."""
    content = {"written_by": WRITER, "command": command, "files": sorted({*files_in(folder), MARKER})}
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n")


def written_by(folder: Path) -> str:
    """The command that wrote a folder which has a marker."""
    return json.loads((folder / MARKER).read_text())["command"]


def files_in(folder: Path) -> list[str]:
    """Paths of everything below `folder` that is not a plain folder, relative to it, sorted. Links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        for name in [*files, *(one for one in folders if (Path(place) / one).is_symlink())]:
            found.append((Path(place) / name).relative_to(folder).as_posix())
    return sorted(found)


def _listed(folder: Path) -> set[str] | None:
    """The files that the marker lists; None where there is no marker of stitch."""
    try:
        content = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("written_by") != WRITER:
        return None
    files = content.get("files")
    return set(files) if isinstance(files, list) and all(isinstance(name, str) for name in files) else None


def _was_written_before_the_marker(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    known_folder = any(fnmatch.fnmatchcase(folder, pattern) for pattern in KNOWN_FOLDERS)
    return known_folder and any(fnmatch.fnmatchcase(file, pattern) for pattern in KNOWN_FILES)
