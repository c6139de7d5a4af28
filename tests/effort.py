"""How long property tests look for a counterexample: seconds while one works, minutes before a change is taken.

``pytest --hypothesis-profile=thorough`` asks for the latter; ``tests/conftest.py`` makes that profile known.
"""

from __future__ import annotations

from hypothesis import settings

THOROUGH = "thorough"


def register() -> None:
    """Make the profile known, before hypothesis looks for the one that was asked for."""
    settings.register_profile(THOROUGH)


def examples(quick: int, *, thorough: int) -> int:
    """How many examples a test tries. Asked when its module is imported: the profile is chosen by then."""
    return thorough if settings.get_current_profile_name() == THOROUGH else quick
