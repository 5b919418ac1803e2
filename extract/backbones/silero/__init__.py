"""The encoder of silero-vad."""
