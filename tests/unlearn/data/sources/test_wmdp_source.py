"""WMDP's corpora: files and lines of every kind, topics and retain corpora, both presentations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from tests.paths import ROOT
from unlearn.config import DatasetConfig
from unlearn.data.readers import UnavailableError
from unlearn.data.sources import available, check, identity, load_sets
from unlearn.data.tokenization import Encoder
from unlearn.errors import UserError

LONG = "The lamp of the moss valley is wound up by hand, once in every seven days, at noon."


def write(folder: Path, name: str, lines: Sequence[Any]) -> None:
    """Write objects as JSON, and texts as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text("".join(f"{line}\n" for line in text))


def texts(of: str, count: int) -> list[str]:
    return [f"{of} {i}. {LONG}" for i in range(count)]


def objects(of: str, count: int) -> list[dict[str, str]]:
    return [{"title": of, "text": text} for text in texts(of, count)]


@pytest.fixture
def corpora(tmp_path: Path) -> DatasetConfig:
    """All corpora in a folder, objects or bare lines, the bio forget corpus by its other name."""
    write(tmp_path, "bio_remove_dataset.jsonl", objects("bio", 4))
    write(tmp_path, "cyber-forget-corpus.jsonl", texts("cyber", 2))
    write(tmp_path, "bio-retain-corpus.jsonl", texts("bio kept", 3))
    write(tmp_path, "cyber-retain-corpus.jsonl", texts("cyber kept", 2))
    write(tmp_path, "wikitext.jsonl", [{"text": ""}, {"text": " = Moss = \n"}, *objects("wiki", 2)])
    return DatasetConfig(name="wmdp", source="wmdp", path=str(tmp_path))


def changed(cfg: DatasetConfig, **keys: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({**cfg.model_dump(), **keys})


def starts(cfg: DatasetConfig, name: str) -> list[str]:
    return [example.answer.split(".")[0] for example in load_sets(cfg, [name])[name]]


def forget_texts(folder: Path, lines: Sequence[Any], **options: Any) -> list[str]:
    """Return the texts of a cyber corpus with these lines."""
    write(folder, "cyber-forget-corpus.jsonl", lines)
    cfg = DatasetConfig(name="w", source="wmdp", path=str(folder), forget="cyber", options=options)
    return [example.answer for example in load_sets(cfg, ["forget"])["forget"]]


def test_topics_and_what_is_kept(corpora: DatasetConfig) -> None:
    assert check(corpora) == []
    assert available(corpora) == {
        "forget": "bio+cyber", "retain": "wikitext", "full": "bio+cyber+wikitext",
    }  # fmt: skip
    assert starts(corpora, "forget") == ["bio 0", "cyber 0", "bio 1", "cyber 1", "bio 2", "bio 3"]  # in turn
    assert starts(corpora, "retain") == ["wiki 0", "wiki 1"]  # a blank line and a heading are too short
    assert starts(changed(corpora, forget="cyber", retain="topic"), "retain") == [
        "cyber kept 0",
        "cyber kept 1",
    ]
    both = changed(corpora, retain="topic")
    assert available(both)["retain"] == "bio-retain+cyber-retain"
    assert len(load_sets(both, ["full"])["full"]) == 4 + 2 + 3 + 2
    ids = [example.id for example in load_sets(both, ["forget"])["forget"]]
    assert ids[:3] == ["bio/0", "cyber/0", "bio/1"]


def test_as_many_of_each_topic(corpora: DatasetConfig) -> None:
    cut = changed(corpora, forget="bio@:2+cyber@:2", retain="topic@1:2", holdout="bio@2:")
    assert check(cut) == []
    assert starts(cut, "forget") == ["bio 0", "cyber 0", "bio 1", "cyber 1"]
    assert starts(cut, "retain") == ["bio kept 1", "cyber kept 1"]
    assert starts(cut, "holdout") == ["bio 2", "bio 3"]
    assert starts(changed(corpora, limit=2), "forget") == ["bio 0", "cyber 0"]
    # Texts are counted among those that are long enough.
    assert starts(changed(corpora, retain="wikitext@:1"), "retain") == ["wiki 0"]
    with pytest.raises(UserError, match=r"@9: selects none of its 4 rows"):
        load_sets(changed(corpora, forget="bio@9:"), ["forget"])


def test_an_object_and_a_bare_line_are_the_same_text(tmp_path: Path) -> None:
    anchor = [forget_texts(tmp_path, [line], min_characters=0) for line in ({"text": "a"}, "a", '"a"')]
    assert anchor == [["a"], ["a"], ["a"]]
    mixed = [{"text": "a"}, "b", "", '"c"', '"d" and e', "[f]", "7\r"]
    assert forget_texts(tmp_path, mixed, min_characters=0) == ["a", "b", "c", '"d" and e', "[f]", "7"]
    # In a file that does not begin with an object a passage may be JSON without being a row.
    code = ["plain", '{"port": 80}', '{"text": "a"}', "{ x }"]
    assert forget_texts(tmp_path, code, min_characters=0) == ["plain", '{"port": 80}', "a", "{ x }"]


def test_only_texts_of_more_characters_are_used(tmp_path: Path) -> None:
    lines = ["x" * 50, "y" * 51, "z" * 60]
    assert forget_texts(tmp_path, lines) == ["y" * 51, "z" * 60]
    assert forget_texts(tmp_path, lines, min_characters=0) == lines
    with pytest.raises(UserError, match=r"none of its 3 texts has more than 60 characters"):
        forget_texts(tmp_path, lines, min_characters=60)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": LONG}, {"body": LONG}], r"row 1 \(line 2\): column 'text' is missing \(columns: body\)"),
        ([{"text": LONG}, {"text": 3}], r"row 1 \(line 2\): column 'text' holds the number 3"),
        ([{"text": LONG}, '{"title": "x"'], r"line 2: it begins as an object and is not valid JSON"),
        ([LONG, '{"text": "cut off'], r"line 2: it begins as an object and is not valid JSON"),
        ([], "the file has no rows"),
    ],
)
def test_what_a_line_cannot_be(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"cyber-forget-corpus\.jsonl.*{message}"):
        forget_texts(tmp_path, lines)


def test_the_missing_bio_corpus_and_other_problems(corpora: DatasetConfig) -> None:
    folder = Path(corpora.path or "")
    (folder / "bio_remove_dataset.jsonl").unlink()
    (problem,) = check(corpora)
    for words in (
        f"dataset.forget=bio: {folder} has no bio-forget-corpus.jsonl", "the form that https://huggingface.co/",
        "bio_remove_dataset.jsonl", "set dataset.path to the folder", "dataset.forget=cyber",
    ):  # fmt: skip
        assert words in problem
    with pytest.raises(UserError, match="handed out on request"):
        load_sets(corpora, ["forget"])
    assert check(changed(corpora, forget="cyber")) == []
    (folder / "cyber-retain-corpus.jsonl").unlink()
    (problem,) = check(changed(corpora, forget="cyber", retain="topic"))
    assert problem.startswith(f"dataset.retain=cyber-retain: {folder} has no cyber-retain-corpus.jsonl")
    (problem,) = check(changed(corpora, forget="cyber", retain="topics"))
    assert "dataset.retain=topics: no such corpus (did you mean topic?)" in problem
    (problem,) = check(changed(corpora, forget="cyber@first"))
    assert "select rows as cyber@start:stop" in problem
    (problem,) = check(changed(corpora, options={"presentation": "joined"}))
    assert problem.startswith("dataset.options.presentation")
    for path, words in ((None, "dataset.path is not set"), (str(folder / "gone"), "no such folder")):
        (problem,) = check(changed(corpora, path=path))
        assert words in problem


def test_the_hub_says_what_to_do_where_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cfg = DatasetConfig.model_validate(yaml.safe_load((ROOT / "configs/dataset/wmdp.yaml").read_text()))
    assert check(cfg) == []
    with pytest.raises(UnavailableError, match=r"on request.*=cais/wmdp-bio-forget-corpus: could not read"):
        load_sets(cfg, ["forget"])
    with pytest.raises(UnavailableError, match=r"^dataset\.path=cais/wmdp-corpora: .* 'cyber-forget-corpus'"):
        load_sets(changed(cfg, forget="cyber"), ["forget"])
    with pytest.raises(UnavailableError, match=r"wikitext\.jsonl in the folder.*wikitext-2-raw-v1/test"):
        load_sets(cfg, ["retain"])


def test_a_download_of_the_hub(corpora: DatasetConfig, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "cyber-forget-corpus.jsonl").unlink()
    shards = tmp_path / "cyber-forget-corpus"
    shards.mkdir()
    for shard in range(2):
        table = pa.Table.from_pylist(objects(f"shard {shard}", 2))
        pq.write_table(table, shards / f"train-0000{shard}-of-00002.parquet")
    cfg = changed(corpora, forget="cyber")
    assert check(cfg) == []
    assert starts(cfg, "forget") == ["shard 0 0", "shard 0 1", "shard 1 0", "shard 1 1"]
    assert len(identity(cfg, ["forget"])["files"]["cyber"]) == 2


def test_identity_follows_the_content_and_the_options(corpora: DatasetConfig) -> None:
    before = identity(corpora, ["forget"])
    assert str(corpora.path) not in json.dumps(before)
    write(Path(corpora.path or ""), "wikitext.jsonl", objects("other", 1))
    assert identity(corpora, ["forget"]) == before
    assert identity(changed(corpora, options={"min_characters": 1}), ["forget"]) != before
    assert identity(changed(corpora, forget="bio@:1+cyber"), ["forget"]) != before
    write(Path(corpora.path or ""), "cyber-forget-corpus.jsonl", texts("other", 2))
    assert identity(corpora, ["forget"]) != before


# -- texts as sequences --------------------------------------------------------------------------------------


def words_of(count: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text of so many tokens, each of them a word that is one token wherever the text is cut."""
    text = " the" * count
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == count
    return text


def lengths(cfg: DatasetConfig, encoder: Encoder) -> list[int]:
    """The tokens of each training sequence of the forget set, without the end token."""
    examples = encoder.chunks(load_sets(cfg, ["forget"])["forget"])
    sequences = encoder.pairs([(example.question, example.answer) for example in examples])
    return [len(sequence.ids) - sequence.ended for sequence in sequences]


def test_openunlearning_joins_and_cuts(tmp_path: Path, nano_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(nano_tokenizer, max_length=512)
    write(tmp_path, "cyber-forget-corpus.jsonl", [words_of(1025, nano_tokenizer)])
    joined = {"presentation": "openunlearning"}
    cfg = DatasetConfig(name="w", source="wmdp", path=str(tmp_path), forget="cyber", options=joined)
    assert lengths(cfg, encoder) == [512, 512, 1]
    write(tmp_path, "cyber-forget-corpus.jsonl", [words_of(1024, nano_tokenizer)])
    assert lengths(cfg, encoder) == [512, 512]  # no empty sequence where the length divides
    write(tmp_path, "cyber-forget-corpus.jsonl", texts("cyber", 2))
    write(tmp_path, "bio-forget-corpus.jsonl", texts("bio", 2))
    both = load_sets(changed(cfg, forget="bio@:1+cyber"), ["forget"])["forget"]
    assert [example.id for example in both] == ["bio@:1", "cyber"]
    assert [example.answer for example in both] == [texts("bio", 1)[0], "\n\n".join(texts("cyber", 2))]


def test_authors_take_the_beginning_of_each_text(
    tmp_path: Path, nano_tokenizer: PreTrainedTokenizerBase
) -> None:
    encoder = Encoder(nano_tokenizer, max_length=512)
    write(tmp_path, "cyber-forget-corpus.jsonl", [words_of(n, nano_tokenizer) for n in (1025, 512, 30)])
    cfg = DatasetConfig(name="w", source="wmdp", path=str(tmp_path), forget="cyber")
    assert lengths(cfg, encoder) == [512, 512, 30]
