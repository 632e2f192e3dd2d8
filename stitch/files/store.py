"""What was made once, kept between runs under a hash of all that decides it: activations and SAEs.

Every entry is a folder with its files and `entry.json`, which has their sizes and checksums. Entries appear whole by a rename and
are linked where file systems allow, so that two runs may use one store and an entry may be removed while it is in use.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from sae.checksums import checksum, names_in
from stitch.files.cache import cache_folder

RECORD = "entry.json"
DEFAULT_SIZE = 10 * 2**30  # bytes
LEFT_FREE = 0.05  # of the disk
UNSEEN = 1 / 32  # of the limit that is put before all entries are looked through again: other runs may have added some


@dataclass(frozen=True)
class Entry:
    """What is kept: `about` says in words of what, `used` when it was last needed (seconds since 1970)."""

    kind: str
    key: str
    about: str
    bytes: int
    used: float
    folder: Path


class Store:
    """Entries below `folder`, at most `limit` bytes of them: those not needed for longest go first."""

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_SIZE):
        self.folder = folder or cache_folder() / "store"
        self.limit = limit
        self.reused: dict[str, int] = {}  # entries found again by this object, and looked for in vain, by kind
        self.missed: dict[str, int] = {}
        self._room = 0.0  # bytes that may be put before entries are looked through

    def get(self, kind: str, key: str, target: Path) -> bool:
        """Puts the files of an entry into the place `target` (a file, or a folder of several); False where there is none.

        An entry with a wrong checksum is removed and counts as missing.
        """
        found = self.take(kind, key, target)
        counts = self.reused if found else self.missed
        counts[kind] = counts.get(kind, 0) + 1
        return found

    def counts(self) -> dict:
        """What a report says of this object's work: entries found again and others that had to be made, by kind."""
        return {"reused": dict(self.reused), "made": dict(self.missed)}

    def has(self, kind: str, key: str) -> bool:
        """Whether there is such an entry; its checksums are not read."""
        return (self._place(kind, key) / RECORD).exists()

    def has_about(self, kind: str, about: str) -> bool:
        """Whether some entry is said to be of this. It need not be the one that a run looks for."""
        return any(entry.kind == kind and entry.about == about for entry in self._entries())

    def take(self, kind: str, key: str, target: Path) -> bool:
        """As `get`, without counting."""
        entry = self._place(kind, key)
        if not (entry / RECORD).exists():
            return False
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            return False
        try:
            _put_files(entry / "content", target)
            os.utime(entry / RECORD)
        except OSError:  # another run has removed it
            shutil.rmtree(target, ignore_errors=True)
            target.unlink(missing_ok=True)
            return False
        return True

    def put(self, kind: str, key: str, source: Path, about: str) -> None:
        """Keeps the file or folder `source`. What does not fit the limit or the disk is not kept."""
        if (size := _size(source)) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.free - size < LEFT_FREE * disk.total:
                return
            new = Path(mkdtemp(prefix="new-", dir=self.folder))
        except OSError:
            return
        try:
            _put_files(source, new / "content")
            files = {name: [_size(new / name), checksum(new / name)] for name in names_in(new)}
            (new / RECORD).write_text(json.dumps({"about": about, "files": files}))
            place = self._place(kind, key)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(new, place)
        except OSError:  # a full disk, or the entry of another run that was faster
            shutil.rmtree(new, ignore_errors=True)
        self._room -= size
        if self._room < 0:
            self._prune()

    def entries(self) -> list[Entry]:
        """All entries, the one needed last first."""
        return sorted(self._entries(), key=lambda entry: -entry.used)

    def remove(self, entry: Entry) -> None:
        shutil.rmtree(entry.folder, ignore_errors=True)

    def damaged(self) -> list[Entry]:
        """Entries whose files have other sizes or checksums than when they were kept."""
        return [entry for entry in self._entries() if not _is_whole(entry.folder)]

    def _place(self, kind: str, key: str) -> Path:
        return self.folder / kind / key

    def _entries(self) -> Iterator[Entry]:
        for folder in (entry for kind in _folders(self.folder) for entry in _folders(kind)):
            record = folder / RECORD
            try:
                content = json.loads(record.read_text())
                size = sum(bytes for bytes, _ in content["files"].values())
                yield Entry(
                    record.parent.parent.name, record.parent.name, content["about"], size, record.stat().st_mtime, record.parent
                )  # fmt: skip
            except (OSError, ValueError, KeyError):  # removed by another run, or damaged
                continue

    def _prune(self) -> None:
        for left in (folder for folder in _folders(self.folder) if folder.name.startswith("new-")):
            with suppress(OSError):  # another run has just put it in its place
                if time.time() - left.stat().st_mtime > 24 * 3600:  # of a run that was killed
                    shutil.rmtree(left, ignore_errors=True)
        total = left = 0
        for entry in self.entries():
            total += entry.bytes
            if total > self.limit:
                self.remove(entry)
            else:
                left = total
        self._room = min(self.limit - left, UNSEEN * self.limit)


def _is_whole(entry: Path) -> bool:
    try:
        files = json.loads((entry / RECORD).read_text())["files"]
        return all(_size(entry / name) == size and checksum(entry / name) == crc for name, (size, crc) in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folders(place: Path) -> list[Path]:
    """The folders in a folder; none where another run has removed it."""
    try:
        return sorted(Path(one.path) for one in os.scandir(place) if one.is_dir())
    except OSError:
        return []


def _size(place: Path) -> int:
    return (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if place.is_dir()
        else place.stat().st_size
    )


def _put_files(source: Path, target: Path) -> None:
    """A copy of a file or folder: hard links where possible. Files are never written to again, only replaced."""
    if source.is_dir():
        for name in names_in(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _link(source / name, target / name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
