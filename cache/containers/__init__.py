"""Where a cache lies: a Zarr group or an HDF5 file."""
