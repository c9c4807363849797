"""The page as a reader gets it: by an HTML parser, and by a browser."""

import contextlib
import dataclasses
from html import parser
import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from ecos_jax import config as config_lib
from ecos_jax import pipeline
from ecos_jax.report import collect
from ecos_jax.report import page
from tests.report.conftest import HOSTILE

_VOID = {"meta", "link", "img", "br"}
# Also looked for by .ci/run.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
_FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
  *("--no-first-run", "--disable-background-networking"),
  *("--disable-component-update", "--disable-sync"),
)


class _Page(parser.HTMLParser):
  """Checks that tags are closed in order, and collects what they hold."""

  def __init__(self, html: str):
    super().__init__()
    self.open, self.ids, self.images, self.tags = [], [], [], set()
    self.data, self.text = {}, ""
    self.feed(html)
    self.close()
    assert not self.open

  def handle_startendtag(self, tag, attributes):
    self._seen(tag, dict(attributes))

  def handle_starttag(self, tag, attributes):
    self._seen(tag, dict(attributes))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.text += data

  def _seen(self, tag, attributes):
    self.tags.add(tag)
    # Nothing runs, and nothing is fetched.
    assert not any(name.startswith("on") for name in attributes)
    if "id" in attributes:
      self.ids.append(attributes["id"])
    if tag == "img":
      self.images.append(attributes["src"])
    if tag == "data":
      key = attributes["data-run"], attributes["data-field"]
      assert (
        self.data.setdefault(key, attributes["value"]) == (attributes["value"])
      )


def _parsed(*paths) -> _Page:
  html = page.render([collect.read(path) for path in paths])
  parsed = _Page(html)
  assert len(set(parsed.ids)) == len(parsed.ids)
  assert all(src.startswith("data:image/webp;base64,") for src in parsed.images)
  assert parsed.tags.isdisjoint({"script", "iframe", "object"})
  assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace(
    "http-equiv", ""
  )
  for place, path in enumerate(paths):
    summary = json.loads((path / "summary.json").read_bytes())
    for (run, field), value in parsed.data.items():
      if run == f"run{place}":
        assert value == str(summary[field]), field
  return parsed


def test_one_run(ecos):
  parsed = _parsed(ecos)
  fields = {field for _, field in parsed.data}
  assert fields >= {
    *("accuracy", "proxy_size", "proxy_client_share", "pool_client_share"),
    *("epsilon", "scores_epsilon", "paper_epsilon", "delta"),
    *("bytes_down", "bytes_up"),
  }
  # 24 of the proxy, and some of each of the 8 clusters.
  assert len(parsed.images) > 24 + 8
  assert "24 of 120 public samples" in parsed.text
  assert "This is a simulation" in parsed.text
  assert HOSTILE in parsed.text


def test_two_runs_side_by_side(ecos, random):
  parsed = _parsed(ecos, random)
  assert HOSTILE in parsed.text
  assert "sampling.method" in parsed.text
  accuracies = [
    json.loads((path / "summary.json").read_bytes())["accuracy"]
    for path in (ecos, random)
  ]
  gain = 100 * (accuracies[0] - accuracies[1])
  told = {True: "more than", False: "less than"}[gain > 0]
  if not gain:
    told = "as many as"
  assert told in " ".join(parsed.text.split())


def test_a_ring_is_explained_where_one_is_drawn(ecos):
  run = collect.read(ecos)
  model = run.stages["model"]
  result = model["result"] | {"accuracy": None}
  untested = dataclasses.replace(
    run,
    summary=dataclasses.replace(run.summary, accuracy=None),
    stages=run.stages | {"model": model | {"result": result}},
  )
  for runs in ([run], [run, untested], [untested], [untested, untested]):
    html = page.render(runs)
    assert ('<i class="ring">' in html) == (runs[0] is run)
    assert ('class="final ' in html) == (runs[0] is run)


def test_nothing_of_the_client_is_read(ecos, configure, tmp_path):
  copy = tmp_path / ecos.name
  shutil.copytree(ecos, copy)
  shutil.rmtree(copy / "client")
  private = Path(configure().data.client_data.removeprefix("images:"))
  hidden = private.with_suffix(".away")
  private.rename(hidden)
  try:
    other = page.render([collect.read(copy)])
  finally:
    hidden.rename(private)
  assert other.replace(str(copy), str(ecos)) == page.render(
    [collect.read(ecos)]
  )


def test_a_pool_that_is_away_leaves_out_the_clusters(ecos, configure):
  pool = Path(configure().data.sources[1].removeprefix("images:"))
  hidden = pool.with_suffix(".away")
  pool.rename(hidden)
  try:
    parsed = _parsed(ecos)
  finally:
    hidden.rename(pool)
  assert len(parsed.images) == 24
  assert "the pool cannot be read" in parsed.text


@pytest.fixture
def report(start_job):
  """Returns a function that runs the command to its end."""

  def run(*flags):
    job = start_job(*map(str, flags), module="ecos_jax.report")
    return job.wait(), job.out, job.err

  return run


def test_the_command_prints_the_table_and_names_the_page(
  report, random, tmp_path
):
  code, out, err = report(f"--workdir={random}", f"--out={tmp_path}/page.html")
  assert code == 0, err
  header, row, _, last = out.splitlines()
  assert header.startswith("run ")
  assert row.startswith(f"{random}  random")
  assert last == f"report    {tmp_path}/page.html"
  html = (tmp_path / "page.html").read_text()
  assert html == page.render([collect.read(random)])
  assert len(list(tmp_path.iterdir())) == 1


def test_a_page_that_cannot_be_written_is_one_line(report, random, tmp_path):
  code, _, err = report(f"--workdir={random}", f"--out={tmp_path}/no/page.html")
  assert code == 1
  [line] = err.splitlines()
  assert line.startswith(f"error: --out={tmp_path}/no/page.html cannot be")


def test_a_damaged_artefact_is_one_line_that_says_what_redoes_it(
  report, random, tmp_path
):
  copy = tmp_path / "run"
  shutil.copytree(random, copy)
  file = copy / "proxy/indices.npy"
  np.save(file, np.load(file) + 1)
  code, out, err = report(f"--workdir={copy}")
  assert code == 1
  assert err.splitlines() == [
    f"error: {file} is damaged: delete the folder {copy}/proxy to redo it with "
    "python -m ecos_jax.train, and run this again"
  ]
  assert not out and not (copy / "report.html").exists()


@contextlib.contextmanager
def _browser():
  if _BROWSER is None:
    pytest.skip(f"none of {', '.join(_NAMES)} on PATH")
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=_BROWSER, args=_FLAGS)
    try:
      yield browser
    finally:
      browser.close()


def _look(browser, file: Path, width: int, scheme: str) -> bytes:
  """Returns the background; all that the page must not do is refused."""
  tab = browser.new_page(
    viewport={"width": width, "height": 800}, color_scheme=scheme
  )
  said, asked = [], []
  tab.on("console", lambda message: said.append(message.text))
  tab.on("pageerror", lambda error: said.append(str(error)))
  tab.on("request", lambda request: asked.append(request.url))
  tab.goto(file.as_uri())
  tab.evaluate(
    "document.querySelectorAll('details').forEach(d => d.open = true)"
  )
  tab.screenshot(
    path=file.with_name(f"{file.stem}-{width}-{scheme}.png"), full_page=True
  )
  assert said == []
  assert [url for url in asked if not url.startswith("data:")] == [
    file.as_uri()
  ]
  assert (
    tab.evaluate(
      "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    == 0
  )
  assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
  background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
  tab.close()
  return background


def _looked_at(tmp_path, *pages) -> None:
  with _browser() as browser:
    for place, paths in enumerate(pages):
      file = tmp_path / f"page{place}.html"
      file.write_text(page.render([collect.read(path) for path in paths]))
      light = _look(browser, file, 1100, "light")
      dark = _look(browser, file, 390, "dark")
      assert light != dark


def test_in_a_browser(ecos, random, tmp_path):
  _looked_at(tmp_path, [ecos, random])


def _kinds(configure):
  """Yields the other kinds of runs."""
  for method in ("kcenter", "mak", "all", "local"):
    config = configure()
    config.sampling.method = config_lib.Method(method)
    yield method, config
  for task in ("client", "distill"):
    config = configure()
    config.train.task = config_lib.Task(task)
    config.data.classes = ("a", "b", "c")
    labelling = config.labelling
    labelling.neighbours, labelling.threshold = 20, 0.0
    labelling.sigma_screen, labelling.sigma_vote = 10.0, 5.0
    yield task, config
  config = configure()
  config.privacy.insecure_noise_seed = 1
  config.data.test_data = None
  yield "seeded", config


@pytest.mark.slow
def test_every_kind_of_run_in_a_browser(configure, ecos, tmp_path):
  paths = []
  for name, config in _kinds(configure):
    paths.append(tmp_path / name)
    pipeline.run(config, paths[-1])
    _parsed(paths[-1])
  _looked_at(tmp_path, *([path] for path in paths), [ecos, *paths])
