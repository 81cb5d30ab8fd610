"""The only package that opens or saves Zarr, Parquet and CSV files."""
