"""`unlearn new method|benchmark|dataset NAME`: the files of a plug-in of your own, which run as they are."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.commands.output import write
from launch.commands.places import shown
from launch.commands.plug_ins import KINDS
from launch.config_groups import groups, option_file
from unlearn.arguments import Parser
from unlearn.errors import UserError
from unlearn.files import check_writable
from unlearn.guard import tool

_EXAMPLES = ("method my-method", "benchmark my-benchmark", "dataset my-dataset")
_DESCRIPTION = """\
Write the two files of a method, a benchmark or a dataset of your own into this folder: NAME.py with a small
example to change, and configs/GROUP/NAME.yaml. They run as they are. No file is overwritten."""


@dataclass(frozen=True)
class Scaffold:
    """The group of the YAML file, and the kind of plug-in that the Python file is."""

    group: str
    word: str


SCAFFOLDS = {
    "method": Scaffold("method", "objective"),
    "benchmark": Scaffold("eval", "benchmark"),
    "dataset": Scaffold("dataset", "source"),
}


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("new", _EXAMPLES, _DESCRIPTION)
    made.add_argument("what", choices=SCAFFOLDS, help="what the files are to be")
    made.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    return made


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn new`."""
    options = parser().parse_args(arguments)
    files = make(options.what, options.name)
    choice = f"{SCAFFOLDS[options.what].group}={options.name}"
    write(
        [
            *(f"written: {file}" for file in files),
            f"try it: unlearn {choice} dry_run=true, then unlearn {choice}",
        ]
    )


def make(what: str, name: str) -> list[Path]:
    """Write the files into the working directory and return their paths.

    Raises:
        UserError: the name cannot be used, or a file exists.
    """
    scaffold, module = SCAFFOLDS[what], name.replace("-", "_")
    if problem := _problem(scaffold, name, module):
        raise UserError(f"{what} {name}: {problem}")
    files = {"py": Path(f"{module}.py"), "yaml": Path("configs", scaffold.group, f"{name}.yaml")}
    for file in files.values():
        if file.exists():
            raise UserError(f"{file}: exists, and is not overwritten; choose another name")
        check_writable(file.parent, f"{file}")
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    for kind, file in files.items():
        text = templates.get_template(f"{what}.{kind}.j2").render(option=name, module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as fresh:
            fresh.write(text)
    return list(files.values())


def _problem(scaffold: Scaffold, name: str, module: str) -> str:
    """Say why a name cannot be used, "" where it can."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or keyword.iskeyword(module):
        return "a name has small letters, digits, - and _, begins with a letter, and is no word of Python's"
    if name in groups()[scaffold.group]:
        file = shown(option_file(scaffold.group, name))
        return f"{scaffold.group}={name} exists ({file}); choose another name"
    if module in KINDS[scaffold.word].kind.names():
        return f"{module} is the name of one of the project's {scaffold.word}s; choose another name"
    if not Path(f"{module}.py").exists() and find_spec(module) is not None:
        return f"Python has a module {module}, which would be found instead; choose another name"
    return ""
