"""Reads the tensors of PyTorch's files without PyTorch, and runs no code.

A `.pth` file is a pickle, which may call any function by its name. Here it may
name only the storage types, the ordered dict, and the function that makes a
tensor, which here only notes its arguments. The numbers are then read from the
file after a check of those arguments. It reads both formats: the legacy one
(until PyTorch 1.5) and the zip archive.
"""

import collections
import io
import math
from pathlib import Path
import pickle
from typing import Any, NamedTuple
import zipfile

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "LongStorage": np.dtype("<i8"),
}


class _Storage(NamedTuple):
  """Numbers in another place of the file."""

  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _describe(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
  """Stands for `torch._utils._rebuild_tensor_v2`."""
  numbers = (offset, *shape, *strides)
  if (
    not isinstance(storage, _Storage)
    or len(shape) != len(strides)
    or not all(type(n) is int and 0 <= n < 2**40 for n in numbers)
  ):
    raise pickle.UnpicklingError("a tensor is described wrongly")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


# In Python: the one in C allocates as much as an index in the file says.
class _Unpickler(pickle._Unpickler):
  """Knows the names in state dicts, and no others."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns the replacement for a name in the file.

    Raises:
      UnpicklingError: State dicts do not use this name.
    """
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _describe
    if module == "torch" and name in _DTYPES:
      return _DTYPES[name]
    raise pickle.UnpicklingError(
      f"it wants to call {module}.{name}, which is not part of weights: refused"
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage that an identifier in the file stands for.

    Raises:
      UnpicklingError: It is none.
    """
    if (
      not isinstance(pid, tuple)
      or len(pid) < 5
      or pid[0] != "storage"
      or not isinstance(pid[1], np.dtype)
      or not isinstance(pid[2], str)
      or type(pid[4]) is not int
      or not 0 <= pid[4] < 2**40
    ):
      raise pickle.UnpicklingError("a storage is described wrongly")
    return _Storage(pid[2], pid[1], pid[4])


def _legacy(data: bytes) -> tuple[Any, dict[str, memoryview]]:
  """Returns the content and the storages of a file in the legacy format."""
  file = io.BytesIO(data)
  magic = _Unpickler(file).load()
  if magic != _MAGIC:
    raise ValueError("it is no file of PyTorch")
  for _ in range(2):  # the version of the format, the sizes of C's types
    _Unpickler(file).load()
  content = _Unpickler(file).load()
  described = {
    tensor.storage.key: tensor.storage
    for tensor in _dict(content).values()
    if isinstance(tensor, _Tensor)
  }
  storages = {}
  for key in _Unpickler(file).load():
    if key not in described:
      raise ValueError(f"nothing uses the storage {key!r}")
    size = int.from_bytes(file.read(8), "little")
    start = file.tell()
    stop = start + size * described[key].dtype.itemsize
    file.seek(stop)
    storages[key] = memoryview(data)[start:stop]
  return content, storages


def _archive(file: Path) -> tuple[Any, dict[str, memoryview]]:
  """Returns the content and the storages of a file in the zip format."""
  with zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
      raise ValueError("it is compressed, which PyTorch's own files are not")
    (pickled,) = (n for n in names if n.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    content = _Unpickler(io.BytesIO(archive.read(pickled))).load()
    storages = {
      name.removeprefix(f"{folder}data/"): memoryview(archive.read(name))
      for name in names
      if name.startswith(f"{folder}data/")
    }
  return content, storages


def _dict(content: Any) -> dict[Any, Any]:
  if not isinstance(content, dict):
    raise ValueError("it holds no dict of tensors")
  return content


def _array(tensor: _Tensor, storages: dict[str, memoryview]) -> np.ndarray:
  storage, offset, shape, strides = tensor
  numbers = np.frombuffer(storages[storage.key], storage.dtype)
  last = offset + sum(
    (n - 1) * stride for n, stride in zip(shape, strides, strict=True)
  )
  if max(math.prod(shape), last + 1) > len(numbers):
    raise ValueError("a tensor is larger than its storage: it is cut off")
  return np.lib.stride_tricks.as_strided(
    numbers[offset:],
    shape,
    [stride * numbers.itemsize for stride in strides],
    writeable=False,
  )


def read(path: Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a state dict, by name.

  Args:
    path: A file that `torch.save` wrote.

  Raises:
    ValueError: It is none, is damaged, or holds anything but tensors.
  """
  # What a damaged pickle raises is any of a dozen classes of exception.
  try:
    if zipfile.is_zipfile(path):
      content, storages = _archive(path)
    else:
      content, storages = _legacy(path.read_bytes())
    tensors = {}
    for name, tensor in _dict(content).items():
      if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise ValueError(f"{name!r} is no tensor")
      tensors[name] = _array(tensor, storages)
  except OSError:
    raise
  except Exception as error:
    raise ValueError(str(error) or type(error).__name__) from error
  return tensors
