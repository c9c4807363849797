import contextlib
import uuid

import fsspec
import pytest


@pytest.fixture
def bucket():
  """A URL in fsspec's file system in memory."""
  url = f"memory://{uuid.uuid4().hex}"
  yield url
  with contextlib.suppress(FileNotFoundError):
    fsspec.filesystem("memory").rm(url, recursive=True)
