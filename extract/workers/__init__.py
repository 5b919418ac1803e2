"""Extraction shared between processes and between machines."""
