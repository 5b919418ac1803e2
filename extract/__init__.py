"""Stage 1: find and decode media, run a backbone over it, fill a feature cache."""

import os

import cache as _cache

_OURS = os.path.join(os.path.dirname(os.path.realpath(__path__[0])), "cache")
_FOUND = getattr(_cache, "__file__", None) or str([*getattr(_cache, "__path__", ["without a file"])][0])
if os.path.dirname(os.path.realpath(_FOUND)) != _OURS:  # `emi.neighbours` says the same for all of emi's modules
    raise ImportError(
        f"extract needs emi's module 'cache' ({_OURS}), and Python finds another one of that name ({_FOUND}); rename that "
        "one, or start Python where it is not found",
        name="cache",
    )
