"""Results: the report of a run, its rows as a table, and what was written."""

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stitch.api.given import Output, PathLike
from stitch.api.page import Page
from stitch.errors import UsageError

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Result:
    """What a run found. In a notebook it shows its tables, in a terminal the same as text.

    `report` is the content of report.json.
    """

    def __init__(self, report: dict, page: Page):
        self.report = report
        self.page = page

    @property
    def rows(self) -> "pandas.DataFrame":
        """The rows of the report, one per scored model, indexed by name. Cross-entropies are in nats per token."""
        import pandas

        found = pandas.DataFrame(self.report.get("results", [self.report]))
        return found.set_index("name") if "name" in found else found

    def __repr__(self) -> str:
        return self.page.text()

    def _repr_html_(self) -> str:
        return self.page.html()


class FolderResult(Result):
    """A result with files in `folder`: the one that was asked for, or a temporary one, which goes with the result."""

    def __init__(self, report: dict, page: Page, output: Output, folder: Path):
        super().__init__(report, page)
        self._output = output  # a temporary folder is removed with it
        self.is_temporary = output.is_temporary
        self.folder = folder

    def save(self, folder: PathLike, *, overwrite: bool = False) -> Path:
        """Copies the files to `folder` and returns it.

        Raises: UsageError when it exists and may not be replaced; StitchError when the disk refuses.
        """
        from stitch.files.folders import appear
        from stitch.files.output import MARKER, written_by

        target = Path(folder)
        if target.resolve() == self.folder.resolve():
            raise UsageError(f"the result is in {folder} already: choose another folder.")

        def fill(new: Path) -> None:
            shutil.copytree(self.folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))

        appear(target, fill, written_by(self.folder), overwrite=overwrite)
        return target


class ModelResult(FolderResult):
    """A result whose folder holds a model."""

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model on the CPU in evaluation mode, in the dtype in which it is stored; loaded on first use."""
        return self._opened[0]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        from stitch.models.loading import open_folder

        settings = self.report.get("provenance", {}).get("settings", {})
        return open_folder(self.folder, trust_remote_code=settings.get("trust_remote_code") is True)

    def push(self, repo: str, *, private: bool = False, quiet: bool = False) -> str:
        """Uploads the model to `repo` (user/name) on the Hugging Face Hub and returns its address.

        The access token comes from HF_TOKEN or `hf auth login`.
        Raises: UsageError when `repo` is not a valid name; StitchError when the token or the network fail.
        """
        from stitch.api.sharing import push

        return push(self.folder, repo, private=private, quiet=quiet)
