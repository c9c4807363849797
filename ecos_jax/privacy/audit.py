"""`python -m ecos_jax.privacy.audit` runs `ecos_jax.client.audit`.

The audit attacks the client's real answer, so its code lives with the client;
this name is kept for scripts.
"""

import runpy

if __name__ == "__main__":
  runpy.run_module("ecos_jax.client.audit", run_name="__main__")
