"""Importing task files from a directory, and importing them again.

Each ``*.py`` in the directory becomes the module ``miniflow_tasks.<name>``; one whose name starts with ``_`` is a helper,
imported only when another file asks for it. Files reach each other as ``from miniflow_tasks.other import x`` or, as scripts
do, by a plain ``import other``; both give the same module.

Python's own import is made for files that don't change. A finder of our own, in front of the others and only for this
directory, makes a reload exact: source is compiled each time (a ``.pyc`` is trusted by second and size, and misses a quick
edit), every module that came from the directory is forgotten first, and what a file registers counts only once the whole
file has run.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniflow.contract import Declared
from miniflow.errors import SettingsError
from miniflow.registry import Registry, TaskSpec, collecting, duplicate

PACKAGE = "miniflow_tasks"


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file that could not be loaded; ``traceback`` has only the frames that its author can do something about."""

    path: Path
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Loaded:
    registry: Registry
    failures: list[LoadFailure]
    files: list[Path]

    def __repr__(self) -> str:
        return f"<Loaded [{len(self.registry)} tasks from {len(self.files)} files, {len(self.failures)} failed]>"


def load_tasks(directory: Path) -> Loaded:
    """Import every task file of ``directory``, afresh. One that fails is listed and does not stop the others."""
    directory = Path(os.path.abspath(directory))
    files = _task_files(directory)
    with _lock:
        session = _Session(directory)
        _finder.begin(session)
        failures = [failure for path in files if (failure := _load(path, session)) is not None]
        for spec in _outside:
            if spec.name not in session.registry:
                session.registry.add(spec)
        for declared in _outside.schedules:
            session.registry.declare(declared)
    return Loaded(session.registry, failures, files)


def _task_files(directory: Path) -> list[Path]:
    if not directory.exists():
        raise SettingsError(
            f"the directory of tasks {directory} does not exist; `miniflow init` makes one with samples"
        )
    if not directory.is_dir():
        raise SettingsError(
            f"tasks are loaded from a directory, and {directory} is a file; name the directory it is in"
        )
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".py") and not name.startswith(("_", "."))]
    except OSError as error:
        raise SettingsError(f"the directory of tasks {directory} cannot be read: {error}") from error
    return [directory / name for name in sorted(names)]


def _load(path: Path, session: _Session) -> LoadFailure | None:
    linecache.cache.pop(str(path), None)  # or a traceback would quote the lines of the file's former self
    try:
        if "." in path.stem:
            raise ImportError(f"{path.name} is no name for a module; rename it without the dot")
        importlib.import_module(f"{PACKAGE}.{path.stem}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file of tasks does not decide when the server ends
        return LoadFailure(path, *_describe(error, session))
    return None


def _describe(error: BaseException, session: _Session) -> tuple[str, str]:
    """The error in one line, and its traceback without the frames of MiniFlow, of the import system and of libraries."""
    trace = traceback.TracebackException.from_exception(error)
    _trim(trace, session)
    if isinstance(error, SyntaxError):  # its own first line is the file's name, and its text says the line too
        return f"{type(error).__name__}: {error}", "".join(trace.format())
    return next(trace.format_exception_only()).splitlines()[0], "".join(trace.format())


def _trim(trace: traceback.TracebackException, session: _Session) -> None:
    trace.stack = traceback.StackSummary.from_list([frame for frame in trace.stack if session.owns(frame.filename)])
    for other in (trace.__cause__, trace.__context__):
        if other is not None:
            _trim(other, session)


# ---------------------------------------------------------------------------------------------------- one pass over the files


class _Session:
    """One load: the directory, and the tasks of the files that ran to their end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.registry = Registry()

    def owns(self, filename: str | None) -> bool:
        return filename is not None and Path(os.path.abspath(filename)).is_relative_to(self.directory)

    def run(self, module: types.ModuleType, execute: Callable[[types.ModuleType], None]) -> None:
        """Run a module's code; its tasks are taken if it comes to its end. One file may import another in the middle."""
        with collecting(_FileRegistry(self)) as found:
            execute(module)
        for spec in found:
            self.registry.add(spec)
        for declared in found.schedules:
            self.registry.declare(declared)


class _FileRegistry(Registry):
    """The tasks of one file while it runs. A name that another file took is refused on the line that says it again."""

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self._session = session

    def add(self, spec: TaskSpec) -> None:
        other = self._session.registry.find(spec.name)
        if other is not None and other.function is not spec.function:
            raise duplicate(spec, other)
        module = getattr(spec.function, "__module__", None)
        if module is not None and module not in _finder.names:
            # A task of an installed package, which a reload does not import again: keep it for the loads to come.
            _outside.add(spec)
        else:
            super().add(spec)

    def declare(self, new: Declared) -> None:
        if new.definition.task in _outside:
            _outside.declare(new)
        else:
            super().declare(new)


_outside = Registry()
_lock = threading.RLock()


# ---------------------------------------------------------------------------------------------------- the import machinery


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles from source, always, and writes no ``.pyc``."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        code: types.CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: types.ModuleType) -> None:
        session = _finder.session
        if session is None:
            super().exec_module(module)
        else:
            session.run(module, super().exec_module)


class _SameModule:
    """Loads ``other`` as the very module ``miniflow_tasks.other``, so that no file runs twice under two names."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: Any = None

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just put the second name's there


class _Finder:
    """Finds what is in the directory of tasks; for anything else the import goes on to the next finder."""

    def __init__(self) -> None:
        self.session: _Session | None = None
        self.names: set[str] = set()
        """The modules that came from the directory."""

    def begin(self, session: _Session) -> None:
        """Forget all modules that came from here, and look into the directory of ``session`` from now on."""
        for name in self.names:
            sys.modules.pop(name, None)
        self.names = {PACKAGE}
        self.session = session
        package = types.ModuleType(PACKAGE, "The files of tasks, as modules.")
        package.__path__ = [str(session.directory)]
        sys.modules[PACKAGE] = package
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        importlib.invalidate_caches()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        session = self.session
        if session is None:
            return None
        directory = str(session.directory)
        if path is None:
            # A sibling comes last, as if the directory stood at the end of sys.path: a task file called email.py must not
            # take the place of the standard library's email.
            spec = importlib.machinery.PathFinder.find_spec(fullname, [directory])
            if spec is None or fullname in sys.stdlib_module_names or _is_elsewhere(fullname, directory):
                return None
            if _is_source(spec) and spec.submodule_search_locations is None:
                self.names.add(fullname)
                return importlib.machinery.ModuleSpec(fullname, _SameModule(f"{PACKAGE}.{fullname}"))  # type: ignore[arg-type]
        else:
            if fullname.rpartition(".")[0] not in self.names:
                return None
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if spec is None:
                return None
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _FreshLoader(fullname, spec.loader.path)
            spec.cached = None
        self.names.add(fullname)
        return spec


def _is_source(spec: importlib.machinery.ModuleSpec) -> bool:
    return isinstance(spec.loader, importlib.machinery.SourceFileLoader)


def _is_elsewhere(name: str, directory: str) -> bool:
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != directory]
    spec = importlib.machinery.PathFinder.find_spec(name, others)
    return spec is not None and spec.loader is not None  # no loader: just a directory of that name somewhere


_finder = _Finder()
