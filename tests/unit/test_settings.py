"""Settings: four places, one order, and errors that say which setting and where from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from miniflow.errors import SettingsError
from miniflow.settings import BY_NAME, FILE, SETTINGS, Settings, load


def write_toml(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text, encoding="utf-8")


def test_the_struct_is_the_table() -> None:
    """Settings has the fields of SETTINGS, in their order, with their defaults; no name is there twice."""
    fields = msgspec.structs.fields(Settings)
    assert [field.name for field in fields] == [setting.name for setting in SETTINGS]
    assert {field.name: field.default for field in fields} == {setting.name: setting.default for setting in SETTINGS}
    assert len(BY_NAME) == len(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_default_is_a_value_that_would_be_taken(setting: Any) -> None:
    assert msgspec.convert(setting.default, setting.kind) == setting.default
    assert setting.help
    assert not setting.help.endswith(".")


def test_without_anything_given_the_defaults_hold(tmp_path: Path) -> None:
    assert load({}, environ={}, folder=tmp_path) == Settings()


def test_the_first_place_that_has_it_wins(tmp_path: Path) -> None:
    """A flag before the environment, the environment before the file, the file before the default."""
    write_toml(tmp_path, "workers = 5\ngrace = 6\nport = 7000\n")
    environ = {"MINIFLOW_WORKERS": "8", "MINIFLOW_GRACE": "9"}
    settings = load({"workers": "11", "grace": None}, environ=environ, folder=tmp_path)
    assert (settings.workers, settings.grace, settings.port) == (11, 9.0, 7000)
    assert settings.async_slots == BY_NAME["async_slots"].default


def test_a_flag_of_none_was_not_given(tmp_path: Path) -> None:
    assert load(dict.fromkeys(BY_NAME), environ={}, folder=tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True),
        ("true", True),
        ("Yes", True),
        ("on", True),
        ("0", False),
        ("FALSE", False),
        ("no", False),
        ("off", False),
    ],
)
def test_switches_in_the_environment(tmp_path: Path, text: str, value: bool) -> None:
    assert load({}, environ={"MINIFLOW_RELOAD": text}, folder=tmp_path).reload is value


def test_other_variables_of_the_environment_are_left_alone(tmp_path: Path) -> None:
    assert load({}, environ={"MINIFLOW_HOME": "x", "PORT": "1", "WORKERS": "x"}, folder=tmp_path) == Settings()


BAD = [
    ("port", "many"),
    ("port", "-1"),
    ("port", "65536"),
    ("workers", "-1"),
    ("workers", "1.5"),
    ("workers", ""),
    ("async_slots", "0"),
    ("grace", "soon"),
    ("grace", "-0.1"),
    ("log_level", "loud"),
    ("reload", "maybe"),
    ("durability", "some"),
    ("max_queue", "0"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_names_the_setting_and_where_it_came_from(tmp_path: Path, name: str, value: str) -> None:
    variable, flag = f"MINIFLOW_{name.upper()}", f"--{name.replace('_', '-')}"
    with pytest.raises(SettingsError, match=f"^{variable}: .* {name} ") as of_environment:
        load({}, environ={variable: value}, folder=tmp_path)
    with pytest.raises(SettingsError, match=f"^{flag}: .* {name} "):
        load({name: value}, environ={}, folder=tmp_path)
    assert repr(value) in str(of_environment.value)
    assert "\n" not in str(of_environment.value)


@pytest.mark.parametrize(
    "line", ["workers = '4'", "workers = true", "port = 80.5", "db = 1", "reload = 'yes'", "grace = '3'"]
)
def test_the_file_has_types(tmp_path: Path, line: str) -> None:
    """TOML can tell a number from a text, so a text is not taken for a number there."""
    write_toml(tmp_path, line)
    name = line.split()[0]
    with pytest.raises(SettingsError, match=f"^{FILE}: .* {name} "):
        load({}, environ={}, folder=tmp_path)


def test_the_file_may_say_whole_seconds(tmp_path: Path) -> None:
    write_toml(tmp_path, "grace = 5")
    assert load({}, environ={}, folder=tmp_path).grace == 5


def test_an_unknown_key_in_the_file_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_toml(tmp_path, "worker = 3\n")
    with pytest.raises(SettingsError, match=f"{FILE}: worker is no setting; there are .*workers"):
        load({}, environ={}, folder=tmp_path)


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    write_toml(tmp_path, "workers: 3\n")
    with pytest.raises(SettingsError, match=f"{FILE} cannot be read: .*line 1"):
        load({}, environ={}, folder=tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=f"{FILE} cannot be read"):
        load({}, environ={}, folder=tmp_path)


def test_queues_are_served_in_the_order_given(tmp_path: Path) -> None:
    assert load({"queues": " high, default ,*"}, environ={}, folder=tmp_path).queue_order == ["high", "default", "*"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("queues", " , ", "names no queue"),
        ("queues", "a,b,a", "names a queue twice"),
        ("token", "short", "shorter than 16"),
    ],
)
def test_values_that_only_look_right(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}.*{words}"):
        load({name: value}, environ={}, folder=tmp_path)


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS if isinstance(setting.default, float)])
@pytest.mark.parametrize("value", ["nan", "inf", "1e12"])
def test_a_duration_is_a_number_with_an_end(tmp_path: Path, name: str, value: str) -> None:
    """Python takes "nan" and "inf" for floats; no clock can count up to them."""
    with pytest.raises(SettingsError, match=name):
        load({name: value}, environ={}, folder=tmp_path)
