import io
import os
from pathlib import Path
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest

from ecos_jax.models import torch_file

FOLDER = Path(__file__).parent
KINDS = ("legacy", "zip")


class _Calls:
  """Pickled, it is a call of any function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def _legacy(*pickles, storages=b""):
  head = (torch_file._MAGIC, 1001, {"little_endian": True})
  return b"".join(pickle.dumps(p, 2) for p in (*head, *pickles)) + storages


def _zip(content, **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **options) as archive:
    archive.writestr("archive/data.pkl", content)
    archive.writestr("archive/data/0", bytes(64))
  return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_saved_is_read(kind):
  tensors = torch_file.read(FOLDER / f"state_{kind}.pth")
  numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
  expected = {
    "whole": numbers,
    "transposed": numbers.T,
    "part": numbers[1:, 2:],
    "half": np.arange(3, dtype=np.float16),
    "count": np.array(7),
  }
  assert list(tensors) == list(expected)
  for name, array in expected.items():
    assert tensors[name].dtype == array.dtype
    np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["alone", "first", "within"])
def test_a_hostile_pickle_runs_nothing(kind, where, tmp_path):
  trace = tmp_path / "trace"
  evil = _Calls(os.system, f"touch {trace}")
  content = {"weight": evil} if where == "within" else evil
  if kind == "zip":
    data = _zip(pickle.dumps(content, 2))
  elif where == "first":
    data = pickle.dumps(evil)
  else:
    data = _legacy(content, [])
  path = tmp_path / "evil.pth"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"(posix|nt)\.system.*refused"):
    torch_file.read(path)
  assert not trace.exists()
  # It would have done harm.
  pickle.loads(pickle.dumps(evil))
  assert trace.exists()


@pytest.mark.parametrize(
  "name",
  [
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"ctorch\nload\n",
    b"ccollections\nOrderedDict.fromkeys\n",
    b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93",
  ],
)
def test_no_other_name_is_known(name, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(_zip(b"\x80\x04" + name + b"."))
  with pytest.raises(ValueError, match="refused"):
    torch_file.read(path)


def _tensor(
  offset="K\x00", shape="K\x02\x85", strides="K\x01\x85", size="K\x02"
):
  """Returns the pickle of {'w': a tensor}, with some numbers replaced."""
  parts = (
    "\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((",
    "X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000",
    f"X\x03\x00\x00\x00cpu{size}tQ{offset}{shape}{strides}",
    "\x89NtRs.",
  )
  return "".join(parts).encode("latin-1")


def test_the_pickle_of_the_next_test_is_a_tensor(tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(_zip(_tensor()))
  np.testing.assert_array_equal(torch_file.read(path)["w"], [0, 0])


@pytest.mark.parametrize(
  "changes",
  [
    {"offset": "K\x0f"},
    {"offset": "J\xff\xff\xff\xff"},  # -1
    {"shape": "K\x11\x85"},
    {"shape": "J\x00\x00\x00\x7f\x85"},
    {"strides": "K\x10\x85"},
    {"strides": "J\xff\xff\xff\xff\x85"},
    {"strides": "K\x01K\x01\x86"},
    # One number, repeated without end.
    {"shape": "J\x00\x00\x00\x7f\x85", "strides": "K\x00\x85"},
    {"size": "X\x01\x00\x00\x00a"},
  ],
)
def test_numbers_that_lie_are_refused(changes, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(_zip(_tensor(**changes)))
  with pytest.raises(ValueError, match=r"wrongly|cut off"):
    torch_file.read(path)


def test_a_storage_that_lies_about_its_size_is_refused(tmp_path):
  data = (FOLDER / "state_legacy.pth").read_bytes()
  path = tmp_path / "x.pth"
  path.write_bytes(data[:-20])
  with pytest.raises(ValueError):
    torch_file.read(path)
  huge = struct.pack("<q", 2**40)
  at = data.index(struct.pack("<q", 12) + np.arange(3, dtype="<f4").tobytes())
  path.write_bytes(data[:at] + huge + data[at + 8 :])
  with pytest.raises(ValueError):
    torch_file.read(path)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"no pickle",
    pickle.dumps({}),
    _legacy([1, 2], []),
    _legacy({"w": 3}, []),
    _zip(pickle.dumps({"w": 3}, 2)),
    _zip(_tensor(), compression=zipfile.ZIP_DEFLATED),
    _zip(_tensor())[:100],
  ],
  # Not the bytes: a zip holds the time at which it was made.
  ids=[
    "nothing",
    "text",
    "empty",
    "list",
    "number",
    "number in a zip",
    "compressed",
    "cut",
  ],
)
def test_what_is_no_state_dict_is_refused(data, tmp_path):
  path = tmp_path / "x.pth"
  path.write_bytes(data)
  with pytest.raises(ValueError):
    torch_file.read(path)


def test_an_index_that_is_too_high_takes_no_memory(tmp_path):
  # LONG_BINPUT: the memo of pickle's implementation in C would take 16 GiB.
  path = tmp_path / "weights.pth"
  path.write_bytes(_zip(b"\x80\x02]r\xff\xff\xff\x7f."))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ValueError):
    torch_file.read(path)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 1 << 20
