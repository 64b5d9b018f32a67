"""Plug-ins and options of installed packages, and what is wrong with some of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.commands import done, unlearn
from tests.paths import ROOT
from unlearn import entry_points, plugins
from unlearn.errors import ConfigError
from unlearn.rules import RULES
from unlearn.terms import OBJECTIVES

Install = Callable[..., Path]
_SOFT = """
from jaxtyping import Float
from torch import Tensor

def soft(logp: Float[Tensor, " N"], *, floor: float = -5.0) -> Float[Tensor, " N"]:
    return logp
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages of one module each, as pip leaves them."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_OWN", {})

    def one(name: str, code: str, **entries: str) -> Path:
        (folder / f"{name}.py").write_text(code)
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key.replace('__', '.')} = {value}" for key, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{entry_points.GROUP}]", *lines, ""]))
        entry_points._entries.cache_clear()
        return folder

    yield one
    entry_points._entries.cache_clear()


def test_a_plug_in_is_found_by_its_name_and_listed(install):
    install("mine", _SOFT, objective__soft="mine:soft")
    install("class_of_mine", "class Careful:\n    pass\n", rule__careful="class_of_mine")
    assert OBJECTIVES.find("soft", "here").__module__ == "mine"
    assert "soft" in OBJECTIVES.listed()
    with pytest.raises(ConfigError, match=r"here: careful has no separate, clipped, .*, which a rule needs"):
        RULES.find("careful", "here")
    with pytest.raises(ConfigError, match=r"here: no such objective \(did you mean soft\?\)"):
        OBJECTIVES.find("sofd", "here")
    assert {"npo", "soft"} <= set(OBJECTIVES.known())


_BY_DATA = {
    "one.helper": False,
    "one": False,
    "helper": True,
    "helper.helper": True,
    "installed.part": True,
    "spread.evil": False,  # a package in several folders, of which one is installed
    "wanting.part": False,  # installed, and imports what only the own folder has
}
_FINDS = """
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
import spread
from unlearn.errors import ConfigError
from unlearn.plugins import Kind, named_by_data
mark = Path("imported")
for name in sys.argv[2:]:
    with suppress(ConfigError), named_by_data() if sys.argv[1] == "data" else nullcontext():
        Kind("unlearn.objectives", "objective", "function").find(name, "here")
    print(name, mark.exists())
    mark.unlink(missing_ok=True)
    for module in ("one", "helper", "installed.part", "one.helper", "lacking"):
        sys.modules.pop(module, None)
"""


def test_data_import_no_package_of_own_folders(tmp_path):
    """A folder of a model or of runs, in the working directory, may bring a module along."""
    code = "from pathlib import Path\nPath('imported').touch()\ndef helper(logp): ...\ndef part(logp): ...\n"
    files = {
        **dict.fromkeys(("one/__init__.py", "one/helper.py", "helper.py", "spread/evil.py"), code),
        **dict.fromkeys(("lacking/__init__.py", "site/installed/part.py"), code),
        "site/spread/good.py": "",
        "site/wanting/part.py": "import lacking\ndef part(logp): ...\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site")])}

    def found(who: str) -> dict[str, bool]:
        command = [sys.executable, "-P", "-c", _FINDS, who, *_BY_DATA]
        shown = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return {name: done == "True" for name, done in map(str.split, shown.stdout.splitlines())}

    assert found("data") == _BY_DATA
    assert set(found("user").values()) == {True}


def test_a_name_that_two_have_is_refused(install):
    install("mine", _SOFT, objective__soft="mine:soft", objective__npo="mine:soft")
    install("yours", _SOFT, objective__soft="yours:soft")
    with pytest.raises(ConfigError, match=r"soft: mine and yours both have it; uninstall one"):
        OBJECTIVES.find("soft", "here")
    with pytest.raises(ConfigError, match=r"here: mine has an entry point objective.npo too: uninstall it"):
        OBJECTIVES.find("npo", "here")
    assert OBJECTIVES.find("yours.soft", "here").__module__ == "yours"


def test_what_cannot_be_imported_is_told_where_it_is_used_alone(install, tmp_path):
    install(
        "broken", "raise OSError('no such file')\n", objective__soft="broken:soft", tracker__soft="broken"
    )
    with pytest.raises(ConfigError, match=r"cannot be imported \(OSError: no such file\)"):
        OBJECTIVES.find("soft", "here")
    assert "soft" not in OBJECTIVES.known()
    assert "tracker.name=soft: cannot be imported" in done(tmp_path, "--help").out
    listed = done(tmp_path, "list", "objective").out
    assert "cannot be imported" in listed
    assert "(broken)" in listed


def test_options_of_a_package_are_found(install, tmp_path):
    folder = install("mine", _SOFT, objective__soft="mine:soft", configs__mine="options_of_mine")
    refused = unlearn(tmp_path, "--cfg", "job")
    assert refused.code == 2
    assert "entry point configs.mine of mine: there is no package options_of_mine" in refused.err
    (folder / "options_of_mine" / "method").mkdir(parents=True)
    text = "# a soft one\nname: soft\nsource: mine\nforget: {objective: soft}\n"
    (folder / "options_of_mine" / "method" / "soft.yaml").write_text(text)
    assert "floor" in done(tmp_path, "show", "method=soft").out
    assert "method: soft" in done(tmp_path, "--info", "defaults-tree", "method=soft").out
