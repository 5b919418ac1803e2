"""Speak sentences with espeak-ng, whose library and voices come in the wheel ``espeakng-loader``."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from emi.demo.settings import DemoDependencyError, SpeechError

CHILD = Path(__file__).with_name("espeak_child.py")
SETTINGS = ("rate", "pitch", "pitch_range", "word_gap")
"""How a sentence is spoken: words per minute, 80 to 450; pitch, 0 to 99, where 50 is the voice's own; pitch range, 0
(monotone) to 99, likewise; extra pause between words in units of 10 ms at the normal rate."""


class Speaker:
    """A running espeak-ng that answers the same for the same seed and the same order of sentences.

    Use it as a context manager. It lives in a child process (see ``espeak_child.py`` for why), which also keeps a
    crash of the C library away from the caller.

    Args:
        seed: sets espeak-ng's random numbers (breath and whisper noise).

    Raises:
        DemoDependencyError: if the wheel is not installed.
    """

    def __init__(self, *, seed: int = 0) -> None:
        library_path, data_path = _find_espeak()
        self._variants = Path(data_path) / "voices" / "!v"
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), library_path, data_path, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def say(self, voice: str, text: str, **settings: int) -> tuple[NDArray[np.float32], int]:
        """Speak one sentence.

        Args:
            voice: language voice plus variant, such as ``en-us+f2``.
            text: the sentence.
            **settings: of `SETTINGS`; one that is left out stays as in the sentence before.

        Returns:
            The waveform, float32 of shape (samples,) in [-1, 1), and its sample rate in Hz (22050).

        Raises:
            SpeechError: if espeak-ng knows no such voice, refuses a setting or dies.
        """
        assert self._child.stdin is not None  # a PIPE, as is stdout
        assert self._child.stdout is not None
        variant = voice.partition("+")[2]
        if variant and not (self._variants / variant).is_file():  # espeak-ng would speak without it and say nothing
            raise SpeechError(f"espeak-ng has no voice variant {variant!r} in {self._variants}")
        request = {"voice": voice, "text": text, "settings": settings}
        with contextlib.suppress(BrokenPipeError):  # the empty answer below says that the child is gone
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SpeechError(f"espeak-ng ended (exit code {self._child.wait()}) while speaking {text!r} as {voice}")
        header = json.loads(line)
        if "error" in header:
            raise SpeechError(header["error"])
        pcm = self._child.stdout.read(2 * header["samples"])
        return np.frombuffer(pcm, dtype="=i2").astype(np.float32) / 32768.0, int(header["rate"])


def _find_espeak() -> tuple[str, str]:
    try:
        import espeakng_loader  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise DemoDependencyError(
            "making demo data needs the package 'espeakng-loader'; install it with: pip install 'emi-mimicry[demo]'"
        ) from error
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())
