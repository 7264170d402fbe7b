"""The vocabulary that ddump and ddump-worker share.

Formats, the HTTP contract, units and errors; no sockets, no event loop, no threads.
The surface is what the modules list in ``__all__``. It is not gathered here: whoever
needs an error is not to wait for TLS.
"""

from __future__ import annotations

__all__ = ["__version__"]
__version__ = "0.1.0"
