"""Groups of commands that take the options which say where the server is before the command as well as after it."""

from __future__ import annotations

import rich_click as click


class Group(click.RichGroup):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, options_after_command(args))


def options_after_command(args: list[str]) -> list[str]:
    """``--url URL jobs`` as ``jobs --url URL``. Without a command they stay where they are, for Click to complain of."""
    at = 0
    while at < len(args):
        name, given, _ = args[at].partition("=")
        if name in ("--url", "--token"):
            at += 1 if given else 2
        elif args[at] == "--json":
            at += 1
        else:
            return [args[at], *args[:at], *args[at + 1 :]]
    return args
