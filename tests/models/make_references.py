"""Makes references.npz, what PyTorch's networks say with random weights.

And state_*.pth, a small state dict in both of PyTorch's formats.

    pip install torch torchvision timm
    python tests/models/make_references.py

The weights are functions of their names, so the file holds only their shapes
and the features, computed in float64 by timm 1.0.31 on PyTorch 2.13.0.
"""

import collections
import json
from pathlib import Path
import zlib

import numpy as np

FILE = Path(__file__).with_name("references.npz")
# timm's name, its options, and the size of the images.
CASES = {
  "efficientnet_lite0": ("tf_efficientnet_lite0", {}, 64),
  "efficientnet_lite0_odd": ("tf_efficientnet_lite0", {}, 75),
  "resnet18": ("resnet18", {}, 64),
  "resnet50": ("resnet50", {}, 64),
  "vit_s16": ("vit_small_patch16_224", {}, 224),
  "vit_s16_scaled": (
    "vit_small_patch16_224",
    {"init_values": 1.0, "dynamic_img_size": True},
    96,
  ),
}


def images(size):
  """Returns two images of coloured squares, [2, size, size, 3] uint8."""
  colours = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
  rows = np.arange(size) * 4 // size
  return colours[:, rows][:, :, rows]


def tensor(name, shape):
  """Returns the random tensor that stands for a published one, float32."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith("running_var") or (
    len(shape) == 1 and name.endswith(("weight", "gamma"))
  ):
    values = random.uniform(0.7, 1.3, shape)
  elif len(shape) > 1 and name.endswith("weight"):
    # Convolutions stand before a ReLU, which halves the variance.
    gain = 2 if len(shape) == 4 else 1
    values = random.normal(size=shape) * (gain / np.prod(shape[1:])) ** 0.5
  else:
    values = random.normal(size=shape) * 0.1
  return values.astype(np.float32)


def _write_state_dicts(torch):
  numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
  state = collections.OrderedDict(
    whole=numbers,
    transposed=numbers.T,
    part=numbers[1:, 2:],
    half=torch.arange(3, dtype=torch.float16),
    count=torch.tensor(7),
  )
  for kind in ("legacy", "zip"):
    torch.save(
      state,
      FILE.with_name(f"state_{kind}.pth"),
      _use_new_zipfile_serialization=kind == "zip",
    )


def main():
  """Writes the files."""
  import timm
  import torch

  _write_state_dicts(torch)
  arrays = {}
  for case, (name, options, size) in CASES.items():
    model = timm.create_model(name, num_classes=0, **options).double().eval()
    shapes = {
      key: list(value.shape)
      for key, value in model.state_dict().items()
      if value.is_floating_point()
    }
    tensors = {
      key: torch.from_numpy(tensor(key, shape)) for key, shape in shapes.items()
    }
    model.load_state_dict(tensors, strict=False)
    config = model.default_cfg
    mean, std = np.array(config["mean"]), np.array(config["std"])
    if case.startswith("efficientnet"):
      # As its authors have it; timm has 127.5 for both.
      mean, std = np.full(3, 127 / 255), np.full(3, 128 / 255)
    elif case.startswith("vit"):
      # timm's are of Google's weights; DINO's and DINOv2's are ImageNet's.
      mean, std = (
        np.array([0.485, 0.456, 0.406]),
        np.array([0.229, 0.224, 0.225]),
      )
    scaled = (images(size) / 255 - mean) / std
    with torch.no_grad():
      features = model(torch.from_numpy(scaled.transpose(0, 3, 1, 2)))
    arrays[case] = features.numpy().astype(np.float32)
    arrays[f"{case}_shapes"] = np.array(json.dumps(shapes))
  np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
  main()
