"""Import and export: NumPy, Parquet, pickles, CSV."""
