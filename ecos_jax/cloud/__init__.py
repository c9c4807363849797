"""What runs beside the accelerators and the public pool; never sees private data."""
