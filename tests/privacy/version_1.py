"""Ledgers of version 1, as ecos_jax wrote them before budgets were fixed."""

import base64
import dataclasses
import hashlib
import json


def ledger(*entries):
  """Returns the bytes of a ledger with these entries."""
  lines = []
  for entry in entries:
    fields = dataclasses.asdict(entry) | {"version": 1}
    fields["cost"] = [
      {"sigma": r.sigma, "gamma": r.gamma, "moved": r.bins, "times": r.times}
      for r in entry.cost.releases
    ]
    fields["response"] = base64.b64encode(entry.response).decode()
    text = json.dumps(fields, sort_keys=True)
    lines.append(f"{hashlib.sha256(text.encode()).hexdigest()} {text}\n")
  return "".join(lines).encode()
