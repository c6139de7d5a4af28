"""``miniflow bench``: how fast this machine's MiniFlow is, and whether it keeps what it accepted.

Three processes: the bench itself, which watches and reports; the server, which is ``miniflow serve`` on a fresh file; and the
load generator. ``tests/bench`` is built from the same parts.
"""
