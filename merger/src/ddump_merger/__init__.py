"""The command ``ddump``: many workers' captures, merged by time into one.

Importing this package is light: no event loop, no HTTP library, no libpcap.
"""

from __future__ import annotations

__all__ = ["__version__"]
__version__ = "0.1.0"
