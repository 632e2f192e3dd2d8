"""Files are complete or absent."""

from pathlib import Path

import pytest

from stitch.files.durable import flush_tree, replacing


def test_a_file_is_replaced_only_when_writing_succeeds(tmp_path: Path):
    target = tmp_path / "file"
    with replacing(target) as temporary:
        temporary.write_text("first")
        assert not target.exists()

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and target.read_text() == "first"


def test_everything_in_a_folder_is_flushed_before_the_folder(tmp_path: Path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("x")
    (tmp_path / "file").write_text("y")
    flushed: list[Path] = []
    monkeypatch.setattr("stitch.files.durable.flush", flushed.append)
    flush_tree(tmp_path)
    assert set(flushed) == {tmp_path, *tmp_path.rglob("*")} and flushed[-1] == tmp_path
