"""How long property tests look for a counterexample: seconds while one works, minutes before a change is taken.

``pytest --hypothesis-profile=thorough`` asks for the latter; ``tests/conftest.py`` makes that profile known.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUICK, THOROUGH = "quick", "thorough"


def register() -> None:
    """Make the profiles known, before hypothesis looks for the one that was asked for. In both it holds no example against a
    clock: how long one takes is up to the machine."""
    usual = settings.get_profile(settings.get_current_profile_name())
    for name in (THOROUGH, QUICK):
        settings.register_profile(name, usual, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile(QUICK)


def examples(quick: int, *, thorough: int) -> int:
    """How many examples a test tries. Asked when its module is imported: the profile is chosen by then."""
    return thorough if settings.get_current_profile_name() == THOROUGH else quick
