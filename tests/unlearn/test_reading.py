"""The files that a user names: paths, encodings, JSON, rows and columns, and the words of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.variants import relearning
from unlearn.config import DatasetConfig, MethodConfig, ModelConfig, RunConfig
from unlearn.data import alternatives
from unlearn.data.annotations import load_annotations, read_annotations
from unlearn.data.columns import optional_text, text_of, texts_of
from unlearn.data.readers import read_rows, slice_hint
from unlearn.data.sources import check, load_sets
from unlearn.errors import UserError
from unlearn.paths import file_problem, folder_problem, is_file, is_folder, repository_problem, user_path
from unlearn.reading import describe, lines_of, parse_json, read_text

RUN = RunConfig(
    model=ModelConfig(name="m"), dataset=DatasetConfig(name="d", source="authors"),
    method=MethodConfig(name="none"),
)  # fmt: skip

ROW = '{"question": "q?", "answer": "a"}'


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    return str(refused.value)


def rows_of(tmp_path: Path, content: bytes | str, name: str = "rows.jsonl") -> Any:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(file).rows


# -- paths -------------------------------------------------------------------------------------------------


def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("x")
    Path("folder.jsonl").mkdir()
    Path("circle").symlink_to("circle")
    Path("broken").symlink_to("gone.jsonl")
    for path, words in {
        "gone.jsonl": "there is no such file",
        "afile/x.jsonl": "there is no such file: afile is a file, not a folder",
        "folder.jsonl": "this is a folder, not a file",
        "circle": "its symbolic links are circular",
        "broken": "the symbolic link leads to gone.jsonl, which does not exist",
        "x" * 300: "the name is longer than the file system allows",
        "a\0b": "it has a character that paths cannot have",
        "\ud800": "it has a character that paths cannot have",
        "~nobody-here/x": "there is no such file",
        "/dev/null": "not a regular file",
    }.items():
        assert words in (file_problem(path) or ""), path
        assert not is_file(path)
        if path != "folder.jsonl":
            assert folder_problem(path) is not None
            assert not is_folder(path)
    assert file_problem("afile") is None
    assert folder_problem("folder.jsonl") is None
    assert folder_problem("afile") == "this is a file, not a folder"


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(ROW)
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests' own user may be allowed everything
    assert file_problem(file) == "there is no permission to read this file"
    assert folder_problem(tmp_path) == "there is no permission to read this folder"
    assert refusal(read_text, file) == f"{file}: there is no permission to read this file"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path("~nobody-here/a") == Path("~nobody-here/a")
    (tmp_path / "f.jsonl").write_text(f"{ROW}\n")
    (tmp_path / "a.txt").write_text("I do not know.\n")
    (tmp_path / "spans.json").write_text('{"f/0": []}')
    for keys in ({"path": "~", "forget": "f.jsonl"}, {"forget": "~/f.jsonl"}):
        cfg = DatasetConfig(name="custom", source="custom", **keys)
        assert check(cfg) == []
        (example,) = load_sets(cfg, ["forget"])["forget"]
    assert load_annotations("~/spans.json", [example]) == [[]]
    assert alternatives.read_answers("~/a.txt") == ["I do not know."]
    assert relearning.check(relearning.Options(text="~/a.txt"), RUN) == []


def test_a_folder_or_an_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("x")
    Path("broken").symlink_to("gone")
    assert repository_problem("locuslab/TOFU") is None
    assert repository_problem(str(tmp_path)) is None
    for path in ("./gone", "~/gone", "/gone", "a/b/c", "a/", "x" * 300):
        assert "no such folder" in (repository_problem(path) or ""), path
    assert repository_problem("afile") == "this is a file, not a folder"
    assert "leads to gone" in (repository_problem("broken") or "")


# -- text and JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_in_a_newline_and_in_nothing_else(tmp_path: Path, ending: str, mark: str) -> None:
    odd = "one\u2028two\u2029three\u0085four\x0cfive\x1csix"
    rows = [{"answer": odd}, {"answer": "b"}]
    text = ending.join(json.dumps(row, ensure_ascii=False) for row in rows) + ending
    assert rows_of(tmp_path, mark + text.replace("\x0c", "\\f").replace("\x1c", "\\u001c")) == rows
    assert rows_of(tmp_path, mark + json.dumps(rows, ensure_ascii=False), "list.json") == rows
    assert [number for number, _ in lines_of("a\u2028b\n\nc\x0cd\n")] == [1, 3]


NO_TEXT = {
    "latin-1": (
        '{"answer":\n"Köln"}'.encode("latin-1"),
        "line 2: not text in UTF-8 (byte 0xf6 at offset 13)",
    ),
    "utf-16": (ROW.encode("utf-16"), "this is text in UTF-16; save it as UTF-8"),
    "utf-16 without a mark": (ROW.encode("utf-16-le"), "line 1: holds a NUL character"),
    "utf-32": (ROW.encode("utf-32"), "this is text in UTF-32"),
    "gzip": (b"\x1f\x8b\x08\0\0", "this is a gzip file; unpack it first"),
    "zip": (b"PK\x03\x04\0\0", "this is a zip file"),
    "parquet": (b"PAR1\x15\x04", "this is a parquet file; its name has to end in .parquet"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "mark and latin-1": (b"\xef\xbb\xbf\xfc", "(byte 0xfc at offset 3)"),
}


@pytest.mark.parametrize("case", NO_TEXT)
@pytest.mark.parametrize("reader", ["rows", "answers", "annotations", "relearned", "book"])
def test_no_reader_takes_what_is_no_text_in_utf_8(tmp_path: Path, case: str, reader: str) -> None:
    content, words = NO_TEXT[case]
    file = tmp_path / ("a.json" if reader in ("rows", "annotations") else "a.txt")
    file.write_bytes(content)
    book = DatasetConfig(name="b", source="copyright", path=str(file))
    message = {
        "rows": lambda: refusal(read_rows, file, "dataset.forget"),
        "answers": lambda: refusal(alternatives.read_answers, file),
        "annotations": lambda: refusal(read_annotations, file),
        "relearned": lambda: relearning.check(relearning.Options(text=str(file)), RUN)[0],
        "book": lambda: refusal(load_sets, book, ["forget"]),
    }[reader]()
    assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1: not JSON (expecting property name"),
        ('{"a": 1}{"a": 2}', "more than one value; the second begins at column 9"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "an object has the key 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "not JSON"),
        ('{"a": "b\tc"}', "invalid control character"),
    ],
)
def test_what_is_no_json(text: str, words: str) -> None:
    message = refusal(parse_json, text, "file.json")
    assert message.startswith("file.json")
    assert words in message


def test_logs_may_hold_nan() -> None:
    assert parse_json('{"a": Infinity}', "log.json", constants=True) == {"a": float("inf")}


# -- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file has no rows"),
        ("\n \n", "the file has no rows"),
        ("[]", "the file has no rows"),
        (f"{ROW}\n\n3\n", "row 1 (line 3): expected a JSON object, found the number 3"),
        (f"{ROW}\nnull", "row 1 (line 2): expected a JSON object, found null"),
        (f"[{ROW}, [1, 2]]", "row 1: expected a JSON object, found a list of 2"),
        (f"[{ROW}", "line 1: not JSON"),
        ('{"question": "q"\n', "line 1: not JSON"),
        (f"[{ROW}]\n[{ROW}]", "line 2: not JSON (more than one value"),
        ('{"question": ["q"], "answer": ["a"]}', "one JSON object of columns (question, answer)"),
        ('{"question": {"0": "q"}, "answer": {"0": "a"}}', "orient='records'"),
        ('{\n "version": "1",\n "data": [{"question": "q"}]\n}', "with a list in 'data'"),
        ('{"version": "1", "data": [{"question": "q"}]}', "with a list in 'data'"),
        ('{\n "question": "q",\n "answer": "a"\n}', "one JSON object over several lines: put it in a list"),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', "put objects over several lines in a list"),
        ("question,answer\nq,a\n", "is it a CSV file?"),
    ],
)
def test_files_without_rows(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(rows_of, tmp_path, text)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}")
    assert words in message


def test_a_text_alone_is_a_row(tmp_path: Path) -> None:
    assert rows_of(tmp_path, '["a", {"text": "b"}]', "x.json") == [{"text": "a"}, {"text": "b"}]
    assert rows_of(tmp_path, '"a"\n"b"\n') == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "f.json").write_text('["one", "two"]')
    cfg = DatasetConfig(name="c", source="custom", path=str(tmp_path), forget="f.json")
    for options in ({}, {"columns": {"text": "body"}}):
        sets = load_sets(cfg.model_copy(update={"options": options}), ["forget"])
        assert [(e.question, e.answer) for e in sets["forget"]] == [(None, "one"), (None, "two")]


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"] * 50, "answer": ["a"] * 50}), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    assert len(rows_of(tmp_path, whole, "same.parquet")) == 50
    for content in (b"", b"PAR1 not really", whole[: len(whole) // 2], whole[:8] + b"\xff" * 80 + whole[88:]):
        assert "cannot be read as parquet" in refusal(rows_of, tmp_path, content, "bad.parquet")
    names = ["question", "answer", "answer"]
    pq.write_table(pa.table([["q"], ["a"], ["b"]], names=names), tmp_path / "twice.parquet")
    assert "it has the column 'answer' twice" in refusal(read_rows, tmp_path / "twice.parquet")
    (tmp_path / "a=b").mkdir()  # a folder's name is no column
    assert rows_of(tmp_path, whole, "a=b/same.parquet")[0].keys() == {"question", "answer"}
    pq.write_table(pa.table({"answer": pa.array([b"a"])}), tmp_path / "bytes.parquet")
    table = read_rows(tmp_path / "bytes.parquet")
    assert "column 'answer' holds bytes" in refusal(text_of, table.rows[0], "answer", table.where(0))
    pq.write_table(pa.table({"answer": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert "has no rows" in refusal(read_rows, tmp_path / "empty.parquet")


def test_slices(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(f"{ROW}\n" * 5)
    table = read_rows(tmp_path / "f.jsonl")
    assert [number for number, _, _ in table.cut(slice(3, None))] == [3, 4]
    for start, stop in ((90, 95), (3, 1), (None, 0)):
        assert "selects none of its 5 rows" in refusal(table.cut, slice(start, stop))
    for odd in ("f.jsonl@x:y", "f.jsonl@5", "f.jsonl@-1:", "f.jsonl@1:2:3"):
        assert "f.jsonl@start:stop" in slice_hint(odd)
        cfg = DatasetConfig(name="c", source="custom", path=str(tmp_path), forget=odd)
        assert [odd in p and "f.jsonl@0:100" in p for p in check(cfg)] == [True]
    for fine in ("f.jsonl", "f.jsonl@1:2", "a@b.jsonl@1:"):
        assert slice_hint(fine) == ""


# -- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (42, "holds the number 42, but must be a text: put it in quotes"),
        (1.5, "holds the number 1.5"),
        (True, "holds true, but must be a text"),
        (None, "holds null"),
        (["a"], "holds a list of 1"),
        ({"text": "a"}, "holds an object with text"),
        ("", "is empty"),
        (" \n\u3000", "holds only white space"),
        ("a\ud800", r"holds half of a surrogate pair (\ud800) at character 1"),
    ],
)
def test_a_column_of_text(value: object, words: str) -> None:
    message = refusal(text_of, {"answer": value, "id": 3}, "answer", "f.jsonl, row 7")
    assert message.startswith("f.jsonl, row 7: column 'answer' ")
    assert words in message
    assert words in refusal(texts_of, {"wrong": ["a", value]}, "wrong", "f.jsonl, row 7")
    assert "column 'wrong', item 1" in refusal(texts_of, {"wrong": ["a", value]}, "wrong", "f.jsonl, row 7")


def test_columns_that_may_be_absent() -> None:
    assert optional_text({}, "template", "") is optional_text({"template": None}, "template", "") is None
    assert texts_of({}, "wrong", "") == texts_of({"wrong": None}, "wrong", "") == ()
    assert texts_of({"wrong": ["a", "b"]}, "wrong", "") == ("a", "b")
    for value in ("Ninety.", 3, {"a": "b"}):
        assert "but must be a list of texts" in refusal(texts_of, {"wrong": value}, "wrong", "row 0")
    assert "(columns: awnser) (did you mean awnser?)" in refusal(text_of, {"awnser": "a"}, "answer", "row 0")


def test_a_value_is_named_as_json_has_it() -> None:
    values = [None, True, 3, float("nan"), [], [1], {}, {"a": 1, "b": 2, "c": 3, "d": 4}, "x" * 50, b"x"]
    assert [describe(value) for value in values] == [
        "null", "true", "the number 3", "NaN", "an empty list", "a list of 1", "an object with nothing",
        "an object with a, b, c …", f"the text {'x' * 39 + '…'!r}", "bytes \"b'x'\"",
    ]  # fmt: skip


def test_null_question_with_a_text(tmp_path: Path) -> None:
    rows = [{"text": "t", "question": None, "answer": None}, {"text": None, "question": "q?", "answer": "a"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    cfg = DatasetConfig(name="c", source="custom", path=str(tmp_path), forget="f.parquet")
    assert [(e.question, e.answer) for e in load_sets(cfg, ["forget"])["forget"]] == [
        (None, "t"),
        ("q?", "a"),
    ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"question": "q"}, "neither 'q' and 'answer' nor 'text' (columns: prompt, response)"),
        ({"question": "prompt"}, "row 0 (line 1): column 'answer' is missing (columns: prompt, response)"),
        ({"text": "body"}, "neither 'question' and 'answer' nor 'body' (columns: prompt, response)"),
        (
            {"question": "prompt", "answer": "response", "template": "refusal"},
            "dataset.options.columns.template=refusal: ",
        ),
    ],
)
def test_named_columns_that_the_file_does_not_have(tmp_path: Path, columns: Any, words: str) -> None:
    (tmp_path / "f.jsonl").write_text('{"prompt": "q", "response": "a"}\n')
    cfg = DatasetConfig(
        name="c", source="custom", path=str(tmp_path), forget="f.jsonl", options={"columns": columns}
    )
    message = refusal(load_sets, cfg, ["forget"])
    assert words in message
    assert "(columns: prompt, response)" in message


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("custom", {"columns": {"anwser": "r"}}, "columns.anwser=r: source custom has no option anwser (did"),
        ("custom", {"columns": "text"}, "dataset.options.columns='text': "),
        ("custom", {"columns": {"question": 3}}, "dataset.options.columns.question=3: "),
        (
            "custom",
            {"column": {}},
            "dataset.options.column={}: source custom has no option column (did you mean",
        ),
        ("tofu", {"joined": True}, "dataset.options.joined=True: source tofu has no option joined"),
        ("lume", {"a": 1}, "dataset.options.a=1: source lume has no option a"),
        ("muse", {"joined": "maybe"}, "dataset.options.joined='maybe': "),
        ("copyright", {"chunks": 0}, "dataset.options.chunks=0: "),
        ("authors", {"authors": "abc"}, "dataset.options.authors='abc': "),
        ("authors", {"authors": 5000}, "authors requested"),
        ("authors", {"authors": -1}, "dataset.options.authors=-1: input should be greater than 0"),
        (
            "authors",
            {"authors": 1},
            "dataset.forget=forget10 with dataset.options.authors=1: forget=10 percent",
        ),
    ],
)
def test_options_of_sources(source: str, options: Any, words: str) -> None:
    path = None if source == "authors" else "org/data"
    problems = check(DatasetConfig(name=source, source=source, path=path, options=options))
    assert any(words in problem for problem in problems), problems
