"""What the documentation says of commands, files and errors is so."""

import ast
import doctest
import importlib
import importlib.util
from pathlib import Path
import re
import subprocess

import pytest

from ecos_jax import cli
from ecos_jax import config
from ecos_jax.study import plan

_ROOT = Path(__file__).parents[1]
_PAGES = [
  _ROOT / "README.md",
  _ROOT / "CONTRIBUTING.md",
  _ROOT / "launch/README.md",
  *sorted((_ROOT / "docs").glob("*.md")),
]
_TEXTS = [page.read_text() for page in _PAGES]
_NAMES = [str(page.relative_to(_ROOT)) for page in _PAGES]
_SOURCES = sorted((_ROOT / "ecos_jax").rglob("*.py"))
_each_page = pytest.mark.parametrize("text", _TEXTS, ids=_NAMES)


def _blocks(text: str) -> list[str]:
  """Returns the blocks of shell."""
  fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  return [block for language, block in fences if language in ("", "bash")]


@_each_page
def test_shell_blocks_are_shell(text):
  for block in _blocks(text):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@_each_page
def test_commands_fields_and_files_exist(text):
  cli.check_overrides(
    re.findall(r"--config\.[a-z_]+\.[a-z_]+|--config\.seed", text)
  )
  for module in re.findall(r"python -m (ecos_jax[a-z_.]*)", text):
    assert importlib.util.find_spec(module.rstrip(".")), module
  files = r"\b((?:configs|ecos_jax|launch|tests|docs)/[\w/.-]*\w\.\w+)"
  for file in re.findall(files, text):
    assert (_ROOT / file).exists(), file
  makefile = (_ROOT / "Makefile").read_text()
  for target in re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", text, re.M):
    assert f"\n{''.join(target)}:" in makefile, target


@_each_page
def test_python_imports_what_exists(text):
  blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  for block in blocks + re.findall(
    r"python -c \"\n(.*?)^\"$", text, re.S | re.M
  ):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.ImportFrom):
        exec(ast.unparse(node), {})


@_each_page
def test_options_of_commands_exist(text):
  """Of any command of the package: modules define some for others."""
  pattern = r"(?:DEFINE_|define_path)\w*\(\s*\"(\w+)\""
  defined = set(re.findall(pattern, _source()))
  for block in _blocks(text):
    for command in block.replace("\\\n", " ").splitlines():
      _, found, options = command.partition("python -m ecos_jax")
      if found:
        options = options.partition("#")[0]
        for option in re.findall(r"\s--(\w+)(?:=|\s|$)", options):
          assert option in defined | {"help", "version"}, option


def _source() -> str:
  return "\n".join(file.read_text() for file in _SOURCES)


@pytest.mark.parametrize("page", _PAGES, ids=_NAMES)
def test_links(page):
  """Files exist and addresses are well-formed; mkdocs looks at anchors."""
  for link in re.findall(r"\]\(([^)]*)\)", page.read_text()):
    if ":" in link:
      assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w.~/#%-]*)?", link), link
    else:
      assert (page.parent / link.partition("#")[0]).exists(), link


def test_results_introduce_each_study_as_its_configuration_does():
  text = (_ROOT / "docs/results.md").read_text()
  for file in sorted((_ROOT / "configs/studies").glob("*.py")):
    study = plan.read(str(file))
    assert f"## {study.title}\n\n{study.about.strip()}\n" in text, file
    if study.paper is not None:
      assert f"\nThe paper's figures: {study.paper.text}\n" in text, file


def _said() -> list[str]:
  """Returns every text of the sources, with `...` for what is filled in."""
  found = []
  for file in _SOURCES:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.JoinedStr):
        found.append(
          "".join(
            part.value if isinstance(part, ast.Constant) else "..."
            for part in node.values
          )
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  # A command shows a flag for each argument that a library names.
  return [re.sub(r"`([a-z_.]+)`", _flag, text) for text in found]


def _flag(name: re.Match) -> str:
  field = name[1] in config.flatten(config.Config())
  return f"--config.{name[1]}" if field else f"--{name[1]}"


def test_errors_in_troubleshooting_occur_in_the_source():
  text = (_ROOT / "docs/troubleshooting.md").read_text()
  quotes = re.findall(r"^\*\*`(.*)`\*\*$", text, re.MULTILINE)
  assert len(quotes) > 25
  said = _said()
  unknown = [
    quote for quote in quotes if not any(quote in text for text in said)
  ]
  assert not unknown


_WITH_EXAMPLES = [
  ".".join(file.relative_to(_ROOT).with_suffix("").parts)
  for file in _SOURCES
  if ">>>" in file.read_text()
]


@pytest.mark.parametrize("name", _WITH_EXAMPLES)
def test_examples_in_docstrings_run(name):
  module = importlib.import_module(name.removesuffix(".__init__"))
  result = doctest.testmod(module)
  assert result.attempted and not result.failed
