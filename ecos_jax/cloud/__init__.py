"""What runs beside the accelerators; it never sees private data."""
