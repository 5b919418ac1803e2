"""Verify, repair, compact, convert and merge caches."""
