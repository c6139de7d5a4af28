"""What ``miniflow init`` writes: the sample tasks, and a ``miniflow.toml`` with every setting commented out.

The samples are the files of the top-level folder ``tasks``. A wheel carries them as ``miniflow/samples``; a checkout (an
editable install) has them where they are written. The settings file is made from ``settings.SETTINGS`` each time.
"""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from miniflow.errors import SettingsError
from miniflow.settings import ENV_PREFIX, FILE, SETTINGS

TASKS = "tasks"


def samples() -> list[tuple[str, str]]:
    """The sample task files: (name, text), sorted by name."""
    entries = _samples_folder().iterdir()
    return sorted((entry.name, entry.read_text("utf-8")) for entry in entries if entry.name.endswith(".py"))


def _samples_folder() -> Traversable:
    package = files("miniflow")
    installed = package / "samples"
    if installed.is_dir():
        return installed
    checkout = Path(str(package)).parent
    if not (checkout / "pyproject.toml").is_file():  # `tasks` beside some installed package would be a stranger's
        raise SettingsError("this installation has no sample tasks; install MiniFlow from a wheel or a checkout")
    return checkout / TASKS


def settings_file() -> str:
    """The text of a ``miniflow.toml`` that says every default, each commented out."""
    lines = [
        "# Settings of MiniFlow. What is commented out is the default.",
        f"# A flag (--db) or an environment variable ({ENV_PREFIX}DB) wins over this file.",
    ]
    for setting in SETTINGS:
        lines += ["", f"# {setting.help}", f"# {setting.name} = {json.dumps(setting.default)}"]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> list[tuple[Path, bool]]:
    """Write what is missing below ``folder``: each path, and whether it was written (False: it existed and was kept)."""
    contents = [(folder / TASKS / name, text) for name, text in samples()] + [(folder / FILE, settings_file())]
    try:
        (folder / TASKS).mkdir(parents=True, exist_ok=True)
        return [(path, _write_new(path, text)) for path, text in contents]
    except OSError as exc:
        where = exc.filename or folder
        raise SettingsError(f"{where} cannot be written: {exc.strerror or exc}; choose another folder") from exc


def _write_new(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def next_steps(folder: Path) -> str:
    """What to do with it, as commands to copy."""
    here = folder.resolve() == Path.cwd()
    return "\n".join(
        [
            "",
            "Next:",
            *([] if here else [f"  cd {shlex.quote(str(folder))}"]),
            "  miniflow serve",
            "and in another terminal:",
            "  curl -X POST http://127.0.0.1:8000/submit -H 'Content-Type: application/json' \\",
            """    -d '{"task": "example_task", "payload": {"text": "hello"}}'""",
        ]
    )
