"""`unlearn list [GROUP]`: the groups with their options, and the kinds of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch.commands.output import columns, write
from launch.commands.places import shown
from launch.commands.plug_ins import KINDS, line
from launch.compose import CONFIGS, describe, groups, option_file
from unlearn.arguments import Parser
from unlearn.config import RunConfig
from unlearn.errors import UserError, did_you_mean
from unlearn.guard import tool

_EXAMPLES = ("", "method", "objective", "dataset eval")
_DESCRIPTION = """\
List the groups of the configuration and the kinds of plug-ins; with a name, its options. Options of your
own, in configs/ of this folder, are among them, with their files."""
_EXPERIMENT = "studies: options of the other groups, their values, and what a sweep runs over"


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("list", _EXAMPLES, _DESCRIPTION)
    made.add_argument(
        "names", nargs="*", metavar="GROUP", help="a group or a kind of plug-in; default: all names"
    )
    return made


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Run `unlearn list`."""
    names = parser().parse_args(arguments).names
    known = groups()
    for name in names:
        if name not in known and name not in KINDS:
            near = did_you_mean(name, [*known, *KINDS])
            raise UserError(f"{name}: there is no such group and no such kind of plug-in{near}")
    lines = [each for name in names for each in _of(name)] if names else _overview()
    write(lines)


def _overview() -> list[str]:
    heads = {name: f"{len(options)} options" for name, options in groups().items()}
    about = {name: _about(name) for name in heads}
    kinds = {name: f"named by {each.key}" for name, each in KINDS.items()}
    return [
        "groups (GROUP=OPTION; unlearn list GROUP)",
        *columns((name, heads[name], about[name]) for name in heads),
        "",
        "plug-ins (unlearn list KIND)",
        *columns(kinds.items()),
    ]


def _about(group: str) -> str:
    field = RunConfig.model_fields.get(group)
    section = field.annotation if field else None
    return " ".join((section.__doc__ or "").split("\n\n")[0].split()) if section else _EXPERIMENT


def _of(name: str) -> Iterator[str]:
    if name in groups():
        yield f"{name}="
        yield from columns((option, _line(name, option)) for option in groups()[name])
        yield ""
    if name in KINDS:
        kind = KINDS[name].kind
        yield f"{name}: named by {KINDS[name].key}"
        yield from columns((each, line(kind.find(each, each))) for each in kind.names())
        yield ""


def _line(group: str, option: str) -> str:
    file = option_file(group, option)
    own = "" if file.is_relative_to(CONFIGS) else f" ({shown(file)})"
    return f"{describe(group, option)}{own}"
