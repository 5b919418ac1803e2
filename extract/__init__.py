"""Stage 1: find and decode media, run a backbone over it, fill a feature cache."""

import os

import cache as _cache

_ours = os.path.join(os.path.dirname(os.path.realpath(__path__[0])), "cache")
_found = getattr(_cache, "__file__", None) or next(iter(getattr(_cache, "__path__", ["without a file"])))
if os.path.realpath(os.path.dirname(_found)) != os.path.realpath(
    _ours
):  # `emi.neighbours` says the same for all of emi's modules
    raise ImportError(
        f"extract needs emi's module 'cache' ({_ours}), and Python finds another one of that name ({_found}); "
        "rename that one, or start Python where it is not found",
        name="cache",
    )
