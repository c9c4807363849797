#!/usr/bin/env bash
# Gathers the wheels, this package's too, that a machine without a network lacks
# to run `python -m ecos_jax.gpu_check`: Linux on x86-64, Python 3.12, JAX with
# CUDA. INSTALLED is what `pip list --format=freeze` printed there (names alone
# suffice); without it, only JAX and what it brings are taken as installed.
#
#   launch/gpu_wheels.sh FOLDER [INSTALLED]
#
# There: pip install --no-index --no-deps --target=SITE FOLDER/*.whl, then
# PYTHONPATH=SITE python3 -m ecos_jax.gpu_check in a checkout.
set -euo pipefail
folder=${1:?usage: launch/gpu_wheels.sh FOLDER [INSTALLED]}
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${BIN:-$root/.venv/bin}
platforms=(manylinux_2_{39,34,31,28,27,24,17}_x86_64 manylinux2014_x86_64 manylinux1_x86_64)

names() {
  sed 's/[ =@;].*//; s/_/-/g' "$@" | tr '[:upper:]' '[:lower:]' | sort -u
}

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
resolve=("$bin/uv" pip compile --quiet --no-header --no-annotate
  --python-version 3.12 --python-platform x86_64-manylinux_2_28)
if (($# > 1)); then
  names "$2" >"$work/installed"
else
  echo jax | "${resolve[@]}" - | names >"$work/installed"
fi
"${resolve[@]}" --extra digits "$root/pyproject.toml" >"$work/all"
while read -r line; do
  name=$(names <<<"$line")
  if grep -qx -- "$name" "$work/installed"; then continue; fi
  "$bin/python" -m pip download --quiet --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]/#/--platform=}" \
    --dest "$folder" "$line" 2>/dev/null ||
    # Published as source alone, and pure Python.
    "$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$line"
done <"$work/all"
"$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$root"
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sm "$folder" | cut -f1) MB in $folder"
