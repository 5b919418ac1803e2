"""Every error `emi` raises on purpose: one sentence saying what, where, expected against got, and the next step.

The tree lives in `cache` because every other package may import it. Each class is also the builtin a caller
would naturally catch (`except FileNotFoundError`).
"""


class EmiError(Exception):
    """Root of all errors a user can mend; the command line prints it as one sentence and exits with 2."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the repr


class CacheError(EmiError):
    """Something is wrong with a feature cache."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no feature cache at the given place."""


class CacheFormatError(CacheError, ValueError):
    """The place holds something that this version cannot read or write as a feature cache."""


class StaleCacheError(CacheError, ValueError):
    """The cache was made with other settings, weights or media than those asked for now."""


class DamagedCacheError(CacheError, OSError):
    """Stored bytes no longer match their checksum, or are missing."""


class CacheLockedError(CacheError, BlockingIOError):
    """Another process is writing this cache, and its container takes one writer at a time."""


class CacheWriteError(CacheError, OSError):
    """The cache could not be written (full disk, no permission); what was committed before is intact."""


class UnknownClipError(CacheError, KeyError):
    """A clip that the cache does not hold was asked for."""


class DeriveError(CacheError, ValueError):
    """A cache cannot be derived from another as asked for."""
