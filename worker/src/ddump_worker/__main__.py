"""``python -m ddump_worker``."""

from .cli import main

main()
