"""Checks what a GPU computes, and how fast, in some minutes.

  python -m ecos_jax.gpu_check --output=gpu_check.json

Each item is a check, which passes or fails, or a timing. They run in an order
in which the most important come first, print their result at once, and write it
to the file. The exit code is 1 if a check failed.

`--dry_run` runs every item at tiny shapes, on any platform: it shows that the
items work, and its times say nothing.
"""
