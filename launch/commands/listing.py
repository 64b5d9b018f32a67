"""`unlearn list [GROUP]`: the groups with their options, and the kinds of plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch.commands.output import columns, write
from launch.commands.places import shown
from launch.commands.plug_ins import KINDS, line
from launch.config_groups import CONFIGS, describe, groups, option_file
from unlearn import entry_points
from unlearn.arguments import Parser
from unlearn.config import RunConfig
from unlearn.errors import ConfigError, UserError, did_you_mean
from unlearn.guard import tool
from unlearn.plugins import Kind

_EXAMPLES = ("", "method", "objective", "dataset eval")
_DESCRIPTION = """\
List the groups of the configuration and the kinds of plug-ins; with a name, its options. Options of your
own are among them, with their files, and plug-ins of installed packages."""
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
        yield from columns((each, _about_plug_in(kind, each)) for each in kind.listed())
        yield ""


def _about_plug_in(kind: Kind, name: str) -> str:
    package = entry_points.find(kind.word, name)
    own = f" ({entry_points.package_of(package)})" if package else ""
    try:
        return f"{line(kind.find(name, name))}{own}"
    except ConfigError as error:  # of an installed package: the others are listed all the same
        return f"{'; '.join(error.problems)}{own}"


def _line(group: str, option: str) -> str:
    file = option_file(group, option)
    own = "" if file.is_relative_to(CONFIGS) else f" ({shown(file)})"
    return f"{describe(group, option)}{own}"
