"""Where examples come from: splits, cuts, columns, and what identifies the content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from unlearn.config import DatasetConfig
from unlearn.data.readers import parse_split, read_rows
from unlearn.data.sources import available, identity, load_sets, retain_model
from unlearn.data.sources.tofu import check
from unlearn.errors import UserError


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tofu(tmp_path: Path) -> DatasetConfig:
    rows = [{"question": f"q{i}?", "answer": f"a{i}"} for i in range(10)]
    for split, part in {"full": rows, "retain90": rows[:7], "forget10": rows[7:]}.items():
        write(tmp_path / f"{split}.json", part)
    extra: dict[str, object] = {"paraphrased_answer": "so", "perturbed_answer": ["no", "nay"]}
    write(tmp_path / "forget10_perturbed.json", [{**row, **extra} for row in rows[7:]])
    for split in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write(tmp_path / f"{split}.json", [{**row, "perturbed_answer": ["x"]} for row in rows[:3]])
    return DatasetConfig(name="tofu", source="tofu", path=str(tmp_path), forget="forget10")


def test_the_retain_split_follows_from_the_forget_split(tofu):
    assert available(tofu)["retain"] == "retain90"
    assert available(tofu.model_copy(update={"forget": "forget01"}))["retain"] == "retain99"
    sets = load_sets(tofu, ["forget", "retain", "forget_eval"])
    assert [e.id for e in sets["forget"]] == ["forget10/0", "forget10/1", "forget10/2"]
    assert len(sets["retain"]) == 7
    assert "full" not in sets
    # the perturbed rows are the same examples, with more columns
    assert [(e.id, e.question, e.answer) for e in sets["forget_eval"]] == [
        (e.id, e.question, e.answer) for e in sets["forget"]
    ]
    assert sets["forget_eval"][0].perturbed_answers == ("no", "nay")


def test_the_holdout_split_follows_where_there_is_one(tofu, tmp_path):
    assert "holdout" not in available(tofu)
    assert check(tofu) == []
    assert load_sets(tofu, ["forget", "holdout"]).keys() == {"forget"}
    before = identity(tofu, ["forget", "holdout"])
    write(tmp_path / "holdout10.jsonl", [{"question": "new?", "answer": "yes"}])
    for forget in ("forget10", "forget10@0:2"):
        assert available(tofu.model_copy(update={"forget": forget}))["holdout"] == "holdout10"
    assert "holdout" not in available(tofu.model_copy(update={"forget": "forget01"}))
    assert [(e.id, e.answer) for e in load_sets(tofu, ["holdout"])["holdout"]] == [("holdout10/0", "yes")]
    assert identity(tofu, ["forget", "holdout"]) != before
    assert check(tofu) == []
    # an own split goes before, and must exist
    own = tofu.model_copy(update={"holdout": "holdout20"})
    assert available(own)["holdout"] == "holdout20"
    assert check(own) == [f"dataset.holdout=holdout20: no such split in {tmp_path} (did you mean holdout10?)"]

    hub = DatasetConfig(name="tofu", source="tofu", path="locuslab/TOFU")
    for forget in ("forget01", "forget05", "forget10"):
        splits = available(hub.model_copy(update={"forget": forget}))
        assert splits["holdout"] == forget.replace("forget", "holdout")
    assert "holdout" not in available(hub.model_copy(update={"forget": "full@0:40"}))
    assert check(hub) == []


def test_a_part_of_the_retain_split_leaves_the_retain_model_whole(tofu):
    def known(**keys):
        return retain_model(tofu.model_copy(update=keys))

    assert known() == known(retain="retain90@2:") == known(retain="@2:") == "retain90"
    assert [e.id for e in load_sets(tofu.model_copy(update={"retain": "@5:"}), ["retain"])["retain"]] == [
        "retain90/5", "retain90/6"
    ]  # fmt: skip
    assert (
        available(tofu.model_copy(update={"forget": "forget01", "retain": "@2:"}))["retain"] == "retain99@2:"
    )
    assert known(retain="full@0:5") == "full@0:5"  # what is forgotten may be in the rest
    assert known(retain="retain90@0:5", full="full@0:8") == "retain90@0:5"  # so may the target know no more


def test_a_split_can_be_cut(tofu):
    cut = tofu.model_copy(update={"retain": "full@2:5", "holdout": "full@8:"})
    sets = load_sets(cut, ["retain", "holdout"])
    assert [e.id for e in sets["retain"]] == ["full/2", "full/3", "full/4"]
    assert [e.answer for e in sets["holdout"]] == ["a8", "a9"]
    assert [len(rows) for rows in load_sets(tofu.model_copy(update={"limit": 2}), ["retain"]).values()] == [2]


def test_what_is_no_cut_is_a_name():
    assert parse_split("full@2:5") == ("full", slice(2, 5))
    assert parse_split("dir/a@b.jsonl@:5") == ("dir/a@b.jsonl", slice(None, 5))
    assert parse_split("full@x") == ("full@x", slice(None))


def test_identity_is_the_content_of_the_sets_in_question(tofu, tmp_path):
    before = identity(tofu, ["forget"]), identity(tofu, ["full"])
    write(tmp_path / "full.json", [{"question": "q", "answer": "other"}])
    assert identity(tofu, ["forget"]) == before[0]
    assert identity(tofu, ["full"]) != before[1]
    assert str(tmp_path) not in json.dumps(before)


def test_json_jsonl_and_parquet_read_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]
    write(tmp_path / "lines.jsonl", rows)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    for name in ("lines.jsonl", "list.json", "table.parquet"):
        assert read_rows(tmp_path / name).rows == rows


def test_custom_columns_and_plain_text(tmp_path):
    write(tmp_path / "forget.jsonl", [{"q": "who?", "a": "me"}])
    write(tmp_path / "retain.jsonl", [{"text": "a plain text"}])
    cfg = DatasetConfig(
        name="custom",
        source="custom",
        path=str(tmp_path),
        forget="forget.jsonl",
        retain="retain.jsonl",
        options={"columns": {"question": "q", "answer": "a"}},
    )
    sets = load_sets(cfg, ["forget", "retain", "full", "forget_eval"])
    assert (sets["forget"][0].question, sets["forget"][0].answer) == ("who?", "me")
    assert (sets["retain"][0].question, sets["retain"][0].answer) == (None, "a plain text")
    assert len(sets["full"]) == 2
    assert sets["forget_eval"] == sets["forget"]
    assert available(cfg)["retain"] == "retain.jsonl"
    with pytest.raises(UserError, match=r"row 0 \(line 1\): column 'answer' is missing \(columns: q, a\)"):
        load_sets(cfg.model_copy(update={"options": {"columns": {"question": "q"}}}), ["forget"])


def test_files_of_one_name_in_several_folders_have_ids_of_their_own(tmp_path):
    for name in ("forget", "retain"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", [{"question": "who?", "answer": name}])
    cfg = DatasetConfig(
        name="custom", source="custom", path=str(tmp_path), forget="forget/train.jsonl",
        retain="retain/train.jsonl",
    )  # fmt: skip
    sets = load_sets(cfg, ["forget", "retain"])
    assert [e.id for rows in sets.values() for e in rows] == ["forget/train/0", "retain/train/0"]


def test_authors_split_by_percent():
    cfg = DatasetConfig(name="authors", source="authors", forget="forget10", options={"authors": 10})
    sets = load_sets(cfg, ["forget", "retain", "full"])
    assert len(sets["forget"]) == 10
    assert {e.id for e in sets["forget"]} | {e.id for e in sets["retain"]} == {e.id for e in sets["full"]}
    retained = load_sets(cfg.model_copy(update={"full": "retain"}), ["full"])["full"]
    assert retained == sets["retain"]
