"""MUSE's splits, its sequential requests, long texts, and an own text (the copyright source)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT
from unlearn.config import DatasetConfig
from unlearn.data.sources import available, check, identity, load_sets, muse, source
from unlearn.data.sources import copyright as book
from unlearn.errors import UserError

CONFIGS = ROOT / "configs"
PROBES = {
    "verbmem": "verbmem/forget",
    "knowmem_forget": "knowmem/forget_qa",
    "knowmem_forget_icl": "knowmem/forget_qa_icl",
    "knowmem_retain": "knowmem/retain_qa",
    "knowmem_retain_icl": "knowmem/retain_qa_icl",
    "privleak_forget": "privleak/forget",
    "privleak_retain": "privleak/retain",
    "privleak_holdout": "privleak/holdout",
}


def write(folder: Path, split: str, rows: Sequence[Any]) -> None:
    file = folder / f"{split}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(split: str, count: int = 3) -> list[Mapping[str, str]]:
    return [{"text": f"{split} says {i}."} for i in range(count)]


@pytest.fixture
def news(tmp_path: Path) -> DatasetConfig:
    for split in ("raw/forget", "raw/retain1", "raw/retain2", "raw/holdout"):
        write(tmp_path, split, texts(split))
    for config in ("scal", "sust"):
        for fold in range(1, 5):
            write(tmp_path, f"{config}/forget_{fold}", texts(f"{config}/forget_{fold}", fold))
    for split in ("forget", "retain", "holdout"):
        write(tmp_path, f"privleak/{split}", texts(split))
    write(tmp_path, "verbmem/forget", [{"prompt": "It was", "gt": "late."}])
    for split in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        write(tmp_path, f"knowmem/{split}", [{"question": f"{split}?", "answer": "Yes."}])
    return DatasetConfig(name="muse-news", source="muse", path=str(tmp_path))


def changed(cfg: DatasetConfig, **keys: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({**cfg.model_dump(), **keys})


def test_the_sets_and_their_splits(news: DatasetConfig) -> None:
    assert muse.check(news) == []
    assert available(news) == {
        "forget": "raw/forget",
        "retain": "raw/retain1",
        "full": "raw/forget+raw/retain1+raw/retain2",
        "holdout": "raw/holdout",
        **PROBES,
    }
    sets = load_sets(news, [*PROBES, "holdout"])
    assert (sets["verbmem"][0].question, sets["verbmem"][0].answer) == ("It was", "late.")
    assert (sets["knowmem_retain_icl"][0].question, sets["knowmem_retain_icl"][0].answer) == (
        "retain_qa_icl?",
        "Yes.",
    )
    assert [(e.id, e.question, e.answer) for e in sets["privleak_holdout"][:1]] == [
        ("privleak/holdout/0", None, "holdout says 0.")
    ]
    assert [e.id for e in sets["holdout"]] == ["raw/holdout/0", "raw/holdout/1", "raw/holdout/2"]


def test_training_reads_a_split_as_one_text(news: DatasetConfig) -> None:
    (whole,) = load_sets(news, ["forget"])["forget"]
    assert (whole.id, whole.question) == ("raw/forget", None)
    assert whole.answer == "raw/forget says 0.\n\nraw/forget says 1.\n\nraw/forget says 2."
    assert [e.id for e in load_sets(news, ["full"])["full"]] == ["raw/forget", "raw/retain1", "raw/retain2"]
    separate = changed(news, options={"joined": False})
    assert [e.id for e in load_sets(separate, ["retain"])["retain"]] == [f"raw/retain1/{i}" for i in range(3)]
    assert len(load_sets(separate, ["full"])["full"]) == 9
    cut = changed(news, forget="raw/forget@1:", limit=1)
    assert load_sets(cut, ["forget"])["forget"][0].answer == "raw/forget says 1."


def test_every_fold_has_the_same_target(news: DatasetConfig) -> None:
    both = "+raw/retain1+raw/retain2"
    for fold in (1, 3):
        grown = available(changed(news, forget=f"scal/forget_{fold}"))
        assert grown["full"] == f"scal/forget_4{both}"  # the others are in it
        later = available(changed(news, forget=f"sust/forget_{fold}"))
        assert later["full"] == "+".join(f"sust/forget_{i}" for i in range(1, 5)) + both


def test_the_target_is_of_the_config_train_where_that_is(news: DatasetConfig) -> None:
    assert muse.retain_model(news) == "raw/retain1+raw/retain2"
    for split in ("forget", "retain1", "retain2"):
        write(Path(news.path or ""), f"train/{split}", texts(split))
    assert available(news)["full"] == "train/forget+train/retain1+train/retain2"
    assert muse.retain_model(news) == "train/retain1+train/retain2"
    assert available(changed(news, full="raw/retain1"))["full"] == "raw/retain1"


@pytest.mark.parametrize(
    ("forget", "earlier"),
    [
        (None, []),
        ("raw/forget", []),
        ("scal/forget_3", []),
        ("sust/forget_1", []),
        ("sust/forget_3", ["sust/forget_1", "sust/forget_2"]),
        ("sust/forget_2@:10", ["sust/forget_1"]),
    ],
)
def test_requests_before_a_request(news: DatasetConfig, forget: str | None, earlier: list[str]) -> None:
    cfg = changed(news, forget=forget)
    assert muse.before(cfg) == earlier
    assert muse.check(cfg) == []


def test_what_is_missing_is_named(news: DatasetConfig) -> None:
    folder = Path(news.path or "")
    (problem,) = muse.check(changed(news, forget="scal/forgot_2"))
    assert "dataset.forget=scal/forgot_2: no such split" in problem
    assert "scal/forget_2" in problem
    (folder / "sust/forget_1.jsonl").unlink()
    (problem,) = muse.check(changed(news, forget="sust/forget_2"))
    assert "request sust/forget_1 comes before it" in problem
    (folder / "knowmem/retain_qa_icl.jsonl").unlink()
    (problem,) = muse.check(news)
    assert "knowmem/retain_qa but not knowmem/retain_qa_icl" in problem
    write(folder, "verbmem/forget", [{"prompt": "It was"}])
    with pytest.raises(UserError, match=r"verbmem/forget\.jsonl, row 0 \(line 1\): column 'gt' is missing"):
        load_sets(news, ["verbmem"])
    write(folder, "raw/forget", [{"text": "fine"}, {"body": "not so"}])
    with pytest.raises(UserError, match=r"raw/forget\.jsonl, row 1 \(line 2\): column 'text' is missing"):
        load_sets(news, ["forget"])
    for path, words in ((None, "is not set"), (str(folder / "gone"), "no such folder")):
        (problem,) = muse.check(changed(news, path=path))
        assert words in problem
    (problem,) = check(changed(news, options={"join": True}))
    assert problem.startswith("dataset.options.join=True: source muse has no option join (did you mean")


def test_a_folder_without_probes_has_no_such_sets(tmp_path: Path) -> None:
    write(tmp_path, "raw/forget", texts("raw/forget"))
    cfg = DatasetConfig(name="mine", source="muse", path=str(tmp_path))
    assert available(cfg) == {"forget": "raw/forget"}
    (problem,) = muse.check(changed(cfg, retain="raw/retain1"))
    assert "dataset.retain=raw/retain1" in problem


def test_the_hub_is_known_by_heart() -> None:
    cfg = DatasetConfig.model_validate(yaml.safe_load((CONFIGS / "dataset/muse-books.yaml").read_text()))
    assert muse.check(cfg) == []
    assert available(cfg)["full"] == "train/forget+train/retain1+train/retain2"
    (problem,) = muse.check(changed(cfg, forget="scal/forget_1"))
    assert "muse-bench/MUSE-Books" in problem  # requests that grow or follow each other are of News alone
    cfg = DatasetConfig.model_validate(yaml.safe_load((CONFIGS / "dataset/muse-news.yaml").read_text()))
    assert muse.check(changed(cfg, forget="sust/forget_4")) == []
    known = yaml.safe_load((CONFIGS / "model/llama-2-7b.yaml").read_text())["published"]
    for name in ("muse-news", "muse-books"):
        assert set(known[name]) == {"target", available(cfg)["retain"]}


def test_a_download_of_the_hub_and_lists_of_strings(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "raw").mkdir()
    table = pa.Table.from_pylist([{"text": "from the shard"}])
    pq.write_table(table, tmp_path / "raw" / "forget-00000-of-00001.parquet")
    (tmp_path / "raw" / "holdout.json").write_text(json.dumps(["one", "two"]))
    cfg = DatasetConfig(name="mine", source="muse", path=str(tmp_path))
    assert muse.check(cfg) == []
    sets = load_sets(cfg, ["forget", "holdout"])
    assert [e.answer for e in sets["forget"]] == ["from the shard"]
    assert [e.answer for e in sets["holdout"]] == ["one", "two"]
    assert identity(cfg, ["forget"])["files"]["forget"] != []


def test_identity_follows_the_content(news: DatasetConfig) -> None:
    before = identity(news, ["forget", "verbmem"])
    assert str(news.path) not in json.dumps(before)
    write(Path(news.path or ""), "raw/retain1", texts("other"))
    assert identity(news, ["forget", "verbmem"]) == before
    assert identity(changed(news, options={"joined": False}), ["forget", "verbmem"]) != before
    assert identity(changed(news, options={"joined": False}), ["verbmem"]) == identity(news, ["verbmem"])
    write(Path(news.path or ""), "raw/forget", texts("other"))
    assert identity(news, ["forget", "verbmem"]) != before


# -- an own text ---------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> DatasetConfig:
    (tmp_path / "book.txt").write_text("\n".join(f"w{i}  x{i}" for i in range(20)), encoding="utf-8")
    return DatasetConfig(
        name="copyright",
        source="copyright",
        path=str(tmp_path / "book.txt"),
        options={"chunks": 5, "chunk_words": 6, "prompt_words": 2},
    )


def test_passages_begin_somewhere_and_go_on_as_the_text_does(text: DatasetConfig) -> None:
    assert source(text).check(text) == []
    sets = load_sets(text, ["forget", "forget_eval", "full"])
    assert sets["forget"] == sets["forget_eval"] == load_sets(text, ["forget"])["forget"]
    words = Path(text.path or "").read_text().split()
    firsts = [int(e.id.split("/")[1]) for e in sets["forget"]]
    assert len(set(firsts)) == 5
    assert firsts == sorted(firsts)
    for first, example in zip(firsts, sets["forget"], strict=True):
        assert example.question is not None
        assert example.question.split() == words[first : first + 2]
        assert example.answer.split() == words[first + 2 : first + 6]
        inside = Path(text.path or "").read_text()
        assert example.question in inside  # spaces and line breaks are the text's
        assert example.answer in inside
    other = changed(text, options={**text.options, "seed": 1})
    assert [e.id for e in load_sets(other, ["forget"])["forget"]] != [e.id for e in sets["forget"]]
    # The whole text, once, the last passage shorter: 40 words in sixes.
    assert [len(e.answer.split()) for e in sets["full"]] == [6] * 6 + [4]
    assert " ".join(e.answer for e in sets["full"]).split() == words


def test_retain_texts_and_rows(text: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(" ".join(f"v{i}" for i in range(30)), encoding="utf-8")
    with_text = changed(text, retain=str(tmp_path / "other.txt"))
    sets = load_sets(with_text, ["retain", "retain_eval"])
    assert sets["retain"] == sets["retain_eval"]
    assert {len(e.answer.split()) for e in sets["retain"]} == {4}
    write(tmp_path, "rows", [{"question": "q?", "answer": "a"}, {"text": "t"}])
    with_rows = changed(text, retain=str(tmp_path / "rows.jsonl@1:"))
    assert [(e.id, e.question, e.answer) for e in load_sets(with_rows, ["retain"])["retain"]] == [
        ("rows/1", None, "t")
    ]
    assert "retain" not in available(text)
    assert identity(with_text, ["forget"]) == identity(text, ["forget"])
    assert identity(with_text, ["retain"]) != identity(with_rows, ["retain"])
    assert str(tmp_path) not in json.dumps(identity(with_rows, ["forget_eval", "retain", "full"]))


def test_what_a_text_cannot_give(text: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="book has 40 words, in which 0 passages of 50 words begin"):
        load_sets(changed(text, options={"chunk_words": 50, "prompt_words": 2}), ["forget"])
    with pytest.raises(UserError, match=r"35 passages of 6 words begin: lower dataset\.options\.chunks=36"):
        load_sets(changed(text, options={**text.options, "chunks": 36}), ["forget"])
    assert len(load_sets(changed(text, options={**text.options, "chunks": 35}), ["forget"])["forget"]) == 35
    wrong = {
        "path": "gone.txt",
        "forget": "x",
        "retain": str(tmp_path / "a.csv"),
        "options": {"prompt_words": 9, "chunk_words": 9},
    }
    (tmp_path / "a.csv").write_text("x")
    problems = book.check(changed(text, **wrong))
    assert [p.split("=")[0].split(":")[0] for p in problems] == [
        "dataset.forget", "dataset.options.prompt_words", "dataset.path", "dataset.retain",
    ]  # fmt: skip
    assert "dataset.path is not set" in book.check(changed(text, path=None))[0]
    assert check(changed(text, options={"chunk": 1}))[0].startswith("dataset.options.chunk=1: ")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt, line 1: not text in UTF-8"):
        load_sets(changed(text, path=str(tmp_path / "latin.txt")), ["forget"])
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"blank\.txt: the file is empty"):
        load_sets(changed(text, path=str(tmp_path / "blank.txt")), ["full"])
