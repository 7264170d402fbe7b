"""The vocabulary that ddump and ddump-worker share.

Formats, the HTTP contract, units and errors; no sockets, no event loop, no threads.
"""

from __future__ import annotations

from . import api, errors, pcap, pcapng, text, tls, units
from .api import *
from .errors import *
from .pcap import *
from .pcapng import *
from .text import *
from .tls import *
from .units import *

__all__ = [
    *api.__all__,
    *errors.__all__,
    *pcap.__all__,
    *pcapng.__all__,
    *text.__all__,
    *tls.__all__,
    *units.__all__,
]
__version__ = "0.1.0"
