"""`unlearn list`: groups and kinds, options of one's own among them."""

from __future__ import annotations

from launch.commands.plug_ins import KINDS
from launch.config_groups import groups
from tests.launch.commands import done, unlearn


def test_alone_it_shows_groups_and_kinds(tmp_path):
    shown = done(tmp_path, "list").out
    assert all(f"  {name} " in shown for name in (*groups(), *KINDS))
    assert f"{len(groups()['method'])} options  An unlearning method" in shown


def test_a_group_has_its_options_with_their_lines(tmp_path):
    file = tmp_path / "configs" / "method" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# my own\nname: mine\n")
    lines = done(tmp_path, "list", "method").out.splitlines()
    assert lines[0] == "method="
    words = {line.split()[0]: line for line in lines[1:] if line}
    assert {*words} == {*groups()["method"], "mine"}
    assert words["npo"].endswith(
        "NPO: negative preference optimisation, with a likelihood term on the retain set"
    )
    assert words["mine"].endswith("my own (configs/method/mine.yaml)")


def test_a_kind_has_its_plug_ins_with_their_lines(tmp_path):
    shown = done(tmp_path, "list", *KINDS).out
    for each in KINDS.values():
        assert f"named by {each.key}" in shown
        assert all(f"\n  {name} " in shown for name in each.kind.names())
    assert "  simnpo " in shown
    assert "NPO without a reference model (arXiv 2410.07163)." in shown


def test_a_name_of_nothing_is_refused(tmp_path):
    shown = unlearn(tmp_path, "list", "objectiv")
    assert (shown.code, shown.err) == (
        2, "objectiv: there is no such group and no such kind of plug-in (did you mean objective?)\n",
    )  # fmt: skip
