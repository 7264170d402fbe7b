"""The daemon ``ddump-worker``: captures packets on a host and streams them over HTTP.

This module stays empty of imports: the helper process that compiles filters goes
through it, and has to start within milliseconds.
"""

__all__ = ["__version__"]
__version__ = "0.1.0"
