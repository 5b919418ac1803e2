"""The program that takes the place of `python` in tests; see `warm_python`. It imports little, to start fast."""

import contextlib
import os
import signal
import socket
import sys

ADDRESS = "EMI_TESTS_WARM_PYTHON"
"""Environment variable with the path of the server's socket."""
MESSAGE_BYTES = 1 << 17


def main() -> int:
    """Run the arguments in a process that the server forks, and end as it does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    connection.connect(os.environ[ADDRESS])
    opened = [int(name) for name in os.listdir("/proc/self/fd")]
    numbers = [number for number in opened if number != connection.fileno() and is_open(number)]
    message = repr((sys.argv[1:], dict(os.environ), os.getcwd(), numbers)).encode()
    socket.send_fds(connection, [message], numbers)
    pid = int(connection.recv(64))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda got, _: os.kill(pid, got))
    status = int(connection.recv(64) or -signal.SIGKILL)
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def is_open(number: int) -> bool:
    """Whether a file descriptor is open."""
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
