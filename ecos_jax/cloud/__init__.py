"""The cloud's side, which never sees private data."""
