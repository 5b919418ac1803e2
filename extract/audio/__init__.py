"""Decode media to waveforms."""
