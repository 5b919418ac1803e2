"""Caches made of others: frames pooled, features projected, and the recipe that says how."""
