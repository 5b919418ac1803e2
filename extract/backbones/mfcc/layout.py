"""Sizes of the mfcc backbone."""

COEFFICIENTS, BANDS, WINDOW, DELTA_WINDOW = 13, 40, 400, 5
DIM = 3 * COEFFICIENTS
"""The coefficients, how they change, and how that changes."""
HOP_SECONDS = 0.01
LAYOUT = f"torchaudio MFCC {COEFFICIENTS} of {BANDS} bands, window {WINDOW}, log, deltas {DELTA_WINDOW} twice"
