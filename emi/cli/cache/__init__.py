"""The commands of `emi cache`."""
