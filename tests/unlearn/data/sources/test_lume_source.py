"""LUME's data: a plain folder, a copy of the hub's, and what each row becomes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.paths import ROOT, SHARED
from unlearn.config import DatasetConfig
from unlearn.data.sources import available, identity, load_sets, source
from unlearn.errors import UserError

HUB = "llmunlearningsemeval2025organization/semeval25-unlearning-dataset-public"


def rows(mark: str, count: int = 2) -> list[dict[str, str]]:
    found = []
    for i in range(count):
        task = f"Task{i % 3 + 1}"
        found.append({"id": f'"{mark}{i}"sc1', "input": f"Once {i}", "output": "upon a time", "task": task})
        found.append({"id": f"{mark}{i}qa0", "input": f"When was {i}?", "output": "Once", "task": task})
    return found


def write(path: Path, found: Sequence[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "forget.jsonl", rows("a"))
    write(tmp_path / "retain.jsonl", rows("b", 3))
    return tmp_path


def config(path: Path | str, **keys: str) -> DatasetConfig:
    return DatasetConfig(name="lume", source="lume", path=str(path), **keys)


def test_a_row_becomes_a_question_of_its_group(folder):
    sets = load_sets(config(folder), ["forget", "forget_eval", "retain_eval", "full"])
    first, second = sets["forget"][:2]
    assert (first.id, first.question, first.answer) == ("forget/a0sc1", "Once 0", "upon a time")
    assert (first.group, second.group) == ("task1/regurgitation", "task1/knowledge")
    assert sets["forget"][2].group == "task2/regurgitation"
    assert sets["forget_eval"] == sets["forget"]
    assert sets["full"] == sets["forget"] + sets["retain_eval"]
    assert "retain" not in sets
    assert len({e.id for e in sets["full"]}) == 10


def test_documents_of_the_attack_are_optional_and_come_in_pairs(folder):
    cfg = config(folder)
    assert available(cfg).keys() == {"forget", "retain", "full", "forget_eval", "retain_eval"}
    assert source(cfg).check(cfg) == []
    write(folder / "member.jsonl", [{"id": "x", "document": "seen"}])
    [problem] = source(cfg).check(cfg)
    assert "member alone" in problem
    write(folder / "nonmember.jsonl", [{"document": "unseen"}, {"document": "new"}])
    assert source(cfg).check(cfg) == []
    sets = load_sets(cfg, ["member", "nonmember"])
    assert [(e.id, e.question, e.answer) for e in sets["nonmember"]] == [
        ("nonmember/0", None, "unseen"),
        ("nonmember/1", None, "new"),
    ]
    assert sets["member"][0].group is None


def test_a_copy_of_the_hubs_folder_has_the_hubs_splits(tmp_path):
    for part in ("data", "mia_data"):
        (tmp_path / part).mkdir()
    for i, split in enumerate(("forget_train", "retain_train", "forget_validation", "retain_validation")):
        table = pa.Table.from_pylist(rows(f"s{i}-"))
        pq.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    for name in ("member", "nonmember"):
        write(tmp_path / "mia_data" / f"{name}.jsonl", [{"document": name}])
    cfg = config(tmp_path)
    assert source(cfg).check(cfg) == []
    assert (available(cfg)["forget"], available(cfg)["retain_eval"]) == ("forget_train", "retain_train")
    assert load_sets(cfg, ["member"])["member"][0].answer == "member"
    cut = config(tmp_path, forget="forget_validation@1:3")
    assert available(cut)["retain"] == "retain_validation"
    assert [e.id for e in load_sets(cut, ["forget"])["forget"]] == [
        "forget_validation/s2-0qa0",
        "forget_validation/s2-1sc1",
    ]


def test_the_retain_model_trains_on_the_retain_split_alone(folder):
    cfg = config(folder, full="retain")
    assert load_sets(cfg, ["full"])["full"] == load_sets(cfg, ["retain"])["retain"]
    assert available(cfg)["full"] == "retain"
    assert identity(cfg, ["full"])["files"].keys() == {"full"}


def test_identity_is_the_content_of_the_sets_in_question(folder):
    before = {name: identity(config(folder), [name]) for name in ("forget", "forget_eval", "retain", "full")}
    assert str(folder) not in json.dumps(before)
    write(folder / "retain.jsonl", rows("c"))
    changed = {name for name, was in before.items() if identity(config(folder), [name]) != was}
    assert changed == {"retain", "full"}
    assert identity(config(HUB), ["full"])["splits"] == {"forget": "forget_train", "retain": "retain_train"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "x7"}, ["row 0", "'x7' ends neither"]),
        ({"task": 3}, ["row 0", "column 'task' holds the number 3"]),
        ({"output": None}, ["row 0", "column 'output'"]),
    ],
)
def test_a_row_that_is_none_is_named(folder, row, words):
    write(folder / "forget.jsonl", [{**rows("a")[0], **row}])
    with pytest.raises(UserError) as refused:
        load_sets(config(folder), ["forget"])
    for word in ["forget.jsonl", *words]:
        assert word in str(refused.value)


def test_ids_are_unique(folder):
    write(folder / "forget.jsonl", [*rows("a"), {**rows("a")[0], "id": "a0sc1"}])
    with pytest.raises(UserError, match="two rows have the id a0sc1"):
        load_sets(config(folder), ["forget"])


def test_what_is_not_there_is_refused_before_anything_loads(folder):
    def problems(cfg: DatasetConfig) -> list[str]:
        found: list[str] = source(cfg).check(cfg)
        return found

    assert problems(config(HUB)) == []
    assert problems(config(HUB, forget="forget_validation")) == []
    assert "forget_train" in problems(config(HUB, forget="forget_trian"))[0]
    assert ["no such folder" in p for p in problems(config(folder / "nowhere"))] == [True]
    (folder / "retain.jsonl").unlink()
    [problem] = problems(config(folder))
    assert "dataset.retain=retain" in problem
    assert "not set" in problems(DatasetConfig(name="lume", source="lume"))[0]


def test_a_hub_that_does_not_answer_is_reported_with_the_fix(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"forget_train.*registered at .* log in with `hf auth login`"):
        load_sets(config(HUB), ["forget"])


def test_the_configuration_names_the_hubs_dataset():
    text = (ROOT / "configs" / "dataset" / "lume.yaml").read_text()
    cfg = DatasetConfig(**yaml.safe_load(text))
    assert text.startswith("# ")
    assert source(cfg).check(cfg) == []


@pytest.mark.skipif(not (SHARED / "data" / "lume").exists(), reason=f"no LUME in {SHARED} (UNLEARN_SHARED)")
def test_the_real_rows():
    cfg = config(SHARED / "data" / "lume")
    assert source(cfg).check(cfg) == []
    sets = load_sets(cfg, ["forget", "retain", "full"])
    assert len({e.id for e in sets["full"]}) == 800
    assert Counter(e.group for e in sets["forget"]) == {
        "task1/regurgitation": 48,
        "task1/knowledge": 48,
        "task2/regurgitation": 32,
        "task2/knowledge": 156,
        "task3/regurgitation": 58,
        "task3/knowledge": 58,
    }
    assert sum('"' in e.id for e in sets["full"]) == 0
