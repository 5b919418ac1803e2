"""From media to waveforms."""
