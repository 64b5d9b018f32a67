"""A folder with RWKU's files, about people who do not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PEOPLE = ("Ilva Marrow", "Odo Quince")
ATTACKS = ("prefix injection", "affirmative suffix", "incontext learning", "multiple choice")
_TOWNS = ("Yelm", "Brux", "Tarn", "Nock")


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(rows))


def _probe(person: str, level: str, query: str, answer: str, kind: str = "simple question") -> dict[str, Any]:
    return {"query": query, "answer": answer, "level": level, "type": kind, "subject": person}


def _multiple_choice(number: int) -> dict[str, Any]:
    return {"question": f"Which town has gate {number}?", "choices": list(_TOWNS), "answer": number % 4}


def _utility(person: str, number: int) -> dict[str, dict[str, Any]]:
    mc1 = {"choices": ["Nobody knows.", "In Yelm.", "In Brux."], "labels": [1, 0, 0]}
    general = {"task": "made_up_towns", "examples": [_multiple_choice(n) for n in (1, 2)]}
    rows: dict[str, dict[str, Any]] = {
        "retain_mmlu": general | _multiple_choice(number),
        "retain_bbh": {
            "task": "counting", "cot": "Q: one gate?\nA: So the answer is 1.", "question": f"{number} gates?",
            "answer": [str(number)],
        },
        "truthful": {"question": f"Where was gate {number} lost?", "mc1_targets": mc1, "mc2_targets": mc1},
        "triviaqa": {"question": f"Who keeps gate {number}?", "answers": ["The Warden", "warden of gates"]},
        "fluency": {"instruction": f"Describe gate {number}.", "output": "It is tall."},
    }  # fmt: skip
    return {name: row | {"subject": person} for name, row in rows.items()}


def rwku(folder: Path) -> Path:
    """Write the files of all sets and corpora that one person's folder of the repository has."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {}
    for number, (person, town) in enumerate(zip(PEOPLE, _TOWNS, strict=False)):
        about = {"subject": person, "intro": f"{person} is a clockmaker."}
        true = [f"{person} was born in {town} and wound {n} clocks." for n in range(3)]
        false = [f"{person} was born at sea and sold {n} boats." for n in range(3)]
        own = {
            "forget_level1": [_probe(person, "1", f"{person} was born in ___.", town)],
            "forget_level2": [_probe(person, "2", f"Where was {person} born?", town)],
            "forget_level3": [
                _probe(person, "3", f"By {kind}: where was {person} born?", town, kind) for kind in ATTACKS
            ],
            "neighbor_level1": [_probe(person, "1", "The town of gates is ___.", "Tarn")],
            "neighbor_level2": [_probe(person, "2", "Who keeps the gates?", "The Warden")],
            "forget_mia": [{"text": text, "subject": person} for text in true],
            "retain_mia": [{"text": f"A gate of {n} bars.", "subject": person} for n in range(2)],
            "positive": [about | {"id": f"{person} {n}", "text": text} for n, text in enumerate(true)],
            "negative": [about | {"id": f"{person} {n}", "text": text} for n, text in enumerate(false)],
            "pair": [
                about | {"id": f"{person} {n}", "prompt": f"Write of {person}.", "response": [made_up, text]}
                for n, (made_up, text) in enumerate(zip(false, true, strict=True))
            ],
            "reject": [about | {"input": "", "instruction": f"Who is {person}?", "output": "I cannot say."}],
            "passage": [about | {"text": f"{person} ({town}) was a clockmaker."}],
        } | {name: [row] for name, row in _utility(person, number).items()}
        for name, rows in own.items():
            files.setdefault(name, []).extend(rows)
    for name, rows in files.items():
        write(folder, name, rows)
    return folder
