import uuid

import pytest


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
  """A folder, and a bucket."""
  if request.param == "local":
    return tmp_path / "bank"
  return f"memory://{uuid.uuid4().hex}/bank"
