"""What runs beside the private data; the only code that touches them."""
