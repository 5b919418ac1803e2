"""Mel-frequency cepstral coefficients and their changes."""
