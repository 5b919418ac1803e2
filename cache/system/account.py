"""A process whose user has no account, as in `docker run --user 12345`, or no home folder that can be written."""

import getpass
import os


def name_the_user() -> None:
    """Give a user without an account a name, in USER: torch asks for one when it is imported, and would fail.

    Call it before torch is imported; child processes inherit the name.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # Python 3.13 raises OSError; ImportError: no pwd module, on Windows
        os.environ["USER"] = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "user"
