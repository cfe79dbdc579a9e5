from __future__ import annotations

import json
from pathlib import Path

import pytest

from hymirec.artifacts import MANIFEST, Step, list_files, read_json, verify, write_atomic, write_manifest
from hymirec.errors import ArtifactDamagedError, ArtifactMissingError


def make(directory: Path) -> Path:
    (directory / "sub").mkdir(parents=True)
    (directory / "a.bin").write_bytes(b"\x00\x01\x02")
    (directory / "sub" / "b.txt").write_text("b")
    return directory


def test_equal_files_have_equal_manifest_ids_wherever_they_lie(tmp_path: Path) -> None:
    one = write_manifest(make(tmp_path / "one"), "kind", "inputs", {"n": 1})
    two = write_manifest(make(tmp_path / "two"), "kind", "inputs", {"n": 1})
    assert one.id == two.id
    assert verify(tmp_path / "one").id == one.id


def test_a_flipped_bit_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    write_manifest(make(tmp_path / "a"), "kind")
    (tmp_path / "a" / "a.bin").write_bytes(b"\x00\x01\x03")
    with pytest.raises(ArtifactDamagedError, match=r"a\.bin is damaged"):
        verify(tmp_path / "a")


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    write_manifest(make(tmp_path / "a"), "kind")
    (tmp_path / "a" / "sub" / "b.txt").unlink()
    with pytest.raises(ArtifactMissingError, match=r"b\.txt is named in the manifest"):
        verify(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}'])
def test_a_manifest_that_is_no_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactDamagedError):
        verify(tmp_path)


def test_logs_checkpoints_and_times_are_no_part_of_an_artifact(tmp_path: Path) -> None:
    make(tmp_path / "a")
    for name in ("logs/x", "checkpoints/y", "tensorboard/z", "work/inputs"):
        write_atomic(tmp_path / "a" / name, b"1")
    write_atomic(tmp_path / "a" / "timing.json", b"{}")
    assert set(list_files(tmp_path / "a")) == {"a.bin", "sub/b.txt"}


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_that_is_absent_or_broken_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArtifactDamagedError):
        read_json(tmp_path / "broken.json")


class TestStep:
    def run(self, tmp_path: Path, inputs: dict[str, object], content: str = "x") -> Step:
        step = Step(tmp_path, "data", inputs)
        write_atomic(step.begin() / "out.txt", content.encode())
        step.commit({"rows": 1})
        return step

    def test_a_committed_step_is_done_for_its_inputs_only(self, tmp_path: Path) -> None:
        self.run(tmp_path, {"a": 1})
        assert Step(tmp_path, "data", {"a": 1}).done() is not None
        assert Step(tmp_path, "data", {"a": 2}).done() is None

    def test_a_step_without_manifest_keeps_its_work_for_the_same_inputs(self, tmp_path: Path) -> None:
        write_atomic(Step(tmp_path, "data", {"a": 1}).begin() / "part-0", b"done")
        again = Step(tmp_path, "data", {"a": 1})
        assert again.done() is None
        assert (again.begin() / "part-0").exists()

    def test_work_for_other_inputs_is_removed(self, tmp_path: Path) -> None:
        write_atomic(Step(tmp_path, "data", {"a": 1}).begin() / "part-0", b"done")
        assert not (Step(tmp_path, "data", {"a": 2}).begin() / "part-0").exists()

    def test_a_damaged_finished_step_is_rebuilt_from_nothing(self, tmp_path: Path) -> None:
        step = self.run(tmp_path, {"a": 1})
        (step.dir / "out.txt").write_text("y")
        assert step.done() is None
        assert not (step.begin() / "out.txt").exists()

    def test_a_damaged_manifest_is_not_done(self, tmp_path: Path) -> None:
        step = self.run(tmp_path, {"a": 1})
        (step.dir / MANIFEST).write_text(json.dumps({"kind": "data"}))
        assert step.done() is None

    def test_a_step_takes_over_the_files_of_another_run_with_the_same_inputs(self, tmp_path: Path) -> None:
        other = Step(tmp_path / "other", "step", {"a": 1})
        make(other.begin())
        write_atomic(other.dir / "timing.json", b"{}")
        made = other.commit({"n": 1})
        mine = Step(tmp_path / "mine", "step", {"a": 1})
        (mine.begin() / "half.bin").write_bytes(b"unfinished")
        assert mine.adopt(other.dir).id == made.id
        done = mine.done()
        assert done is not None
        assert done.id == made.id
        assert not (mine.dir / "half.bin").exists()
        assert (mine.dir / "timing.json").is_file()
        assert (mine.dir / "a.bin").samefile(other.dir / "a.bin")

    def test_a_step_takes_over_nothing_made_from_other_inputs(self, tmp_path: Path) -> None:
        other = Step(tmp_path / "other", "step", {"a": 1})
        make(other.begin())
        other.commit()
        with pytest.raises(ArtifactDamagedError, match="holds no step of the same inputs"):
            Step(tmp_path / "mine", "step", {"a": 2}).adopt(other.dir)
