"""Sizes of the layers of silero-vad's encoder at 16 kHz."""

WINDOW = 512
"""Samples per frame: 32 ms."""
CONTEXT = 64
"""Samples of the previous window before each window; zeros before the first."""
STFT_SIZE, STFT_HOP, BINS = 256, 128, 129
CHANNELS = (BINS, 128, 64, 64, 128)
STRIDES = (1, 2, 2, 1)
HIDDEN = 128
DIM = CHANNELS[-1] + 2 * HIDDEN
"""Output of the convolutions (128), then the LSTM's h (128) and c (128)."""
MODEL_TYPE = "silero-vad"
"""In the config.json of fine-tuned weights."""
LAYOUT = f"window {WINDOW} context {CONTEXT} stft {STFT_SIZE}/{STFT_HOP} conv {CHANNELS}/{STRIDES} lstm {HIDDEN}"
