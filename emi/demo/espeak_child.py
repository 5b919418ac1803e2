"""Child process that speaks with the espeak-ng library: JSON lines in, PCM out.

Run by ``emi.demo.espeak`` as ``python -I espeak_child.py LIBRARY DATA_FOLDER SEED``; it needs nothing but the
standard library. A process of its own is what makes the demo repeatable: espeak-ng keeps the phase of its flutter
and of its noise in static variables that no call resets, so the same sentence spoken twice differs, while a fresh
process speaking the same sentences in the same order does not.
"""

import ctypes
import json
import sys
from typing import Any

# Constants of espeak-ng's speak_lib.h.
OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
PARAMETERS = {"rate": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def main() -> None:
    """Answer each request line with a header line (``samples``, ``rate`` or ``error``) and the PCM bytes."""
    library_path, data_path, seed = sys.argv[1:4]
    library = ctypes.CDLL(library_path)
    rate = library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, data_path.encode(), INITIALIZE_DONT_EXIT)
    if rate > 0 and hasattr(library, "espeak_ng_SetRandSeed"):
        library.espeak_ng_SetRandSeed(ctypes.c_long(int(seed)))
    blocks: list[bytes] = []

    def collect(samples: int, count: int, _events: int) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = SynthCallback(collect)  # kept alive here for as long as the library may call it
    library.espeak_SetSynthCallback(callback)
    for line in sys.stdin.buffer:
        blocks.clear()
        error = f"espeak_Initialize failed on {data_path}" if rate <= 0 else _speak(library, json.loads(line))
        pcm = b"" if error else b"".join(blocks)
        header = {"error": error} if error else {"samples": len(pcm) // 2, "rate": rate}
        sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + pcm)
        sys.stdout.buffer.flush()


def _speak(library: ctypes.CDLL, request: dict[str, Any]) -> str | None:
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        return f"espeak-ng has no voice {request['voice']!r}"
    for name, value in request["settings"].items():
        if library.espeak_SetParameter(PARAMETERS[name], value, 0) != 0:
            return f"espeak-ng refused {name}={value}"
    text = request["text"].encode() + b"\0"
    if library.espeak_Synth(text, len(text), 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None) != 0:
        return f"espeak-ng could not speak {request['text']!r}"
    return None


if __name__ == "__main__":
    main()
