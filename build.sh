#!/usr/bin/env bash
# One door to the project: set up, run, check, test.
set -euo pipefail
started="$PWD"
cd "$(dirname "$0")"

UV_VERSION=0.13.9

usage() {
  cat <<'TEXT'
usage: ./build.sh COMMAND

  run [--port N]    set up, train a digit classifier, export it, serve it, ask it; the port also from $AIP_HTTP_PORT
  test [PYTEST…]    set up and run the test suite
  check             set up, run the linters and the type checker, and build docs/ with its links checked
  docs [--serve]    build the documentation site into build/site, or serve it and build it on each change
  coverage          measure how much of the packages the tests reach that start no processes
  wheel             build the wheel, install it into an environment of its own and use it there
  gpucheck [BUNDLE --target CARD[,CARD]]
                    compile a bundle for GPUs that are not here, or test that: sets up build/gpucheck, 1 GB, with XLA's CUDA plugin
  engines [beam|ray] [PYTEST…]
                    test the handlers of Apache Beam and of Ray, each in an environment of its own, build/engines, 1 GB
  image [OPTION…]   build a container image of the server with docker, podman or buildah
  setup             make .venv with what uv.lock pins
  protos            make server/protos/inference_pb2.py from inference.proto

  test --all        that, and build the container image and run it; as root on Debian
  test --jax V      the same on another jax, such as 0.11.2
  test --matrix     bundles of the oldest and the newest jax, each read by the other; batch predictions killed 150 times

  image [cpu|cuda12|cuda13] [--bundle DIR] [--tag T] [--native] [--push]
                    a bundle's programs are compiled for any CPU with AVX2, with --native for this one

Python 3.12 or later is looked for in $PYTHON, on the PATH and among pyenv's versions;
where there is none, uv provides it.

An image stands on $BASE_IMAGE, a slim Python. Packages come from $UV_DEFAULT_INDEX, $UV_INDEX_URL
or $PIP_INDEX_URL, if one is set, through $HTTPS_PROXY, trusting $SSL_CERT_FILE or $PIP_CERT.
TEXT
}

say() { printf '%s\n' "$*" >&2; }

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

# Print a Python of at least 3.12, or nothing.
find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" && command -v "$PYTHON" && return
    say "error: PYTHON: expected Python 3.12 or later, got $PYTHON"
    return 1
  fi
  for candidate in python3.12 python3.13 python3.14 python3 python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
    if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
}

# Print a uv: the one on the PATH, or one in .tools that any Python can fetch.
find_uv() {
  local python
  if command -v uv >/dev/null 2>&1; then command -v uv; return; fi
  if [ ! -x .tools/bin/uv ]; then
    for python in "$@" python3 python; do
      if "$python" -m venv .tools >/dev/null 2>&1 &&
        .tools/bin/python -m pip install -q "uv==$UV_VERSION" >&2; then break; fi
      rm -rf .tools
      if "$python" -m pip install -q --target .tools "uv==$UV_VERSION" >&2; then break; fi
    done
  fi
  [ -x .tools/bin/uv ] || { say "error: expected uv or a Python with pip, found neither"; return 1; }
  echo .tools/bin/uv
}

# setup [JAX] [WITHOUT]: make the environment $venv, with another jax if one is named; without an
# extra if one is named, and without the tools of the documentation, unless they are there already.
setup() {
  local jax="${1:-}" without="${2:-}" python uv wanted found
  venv=".venv${jax:+-jax-$jax}"
  # An environment knows where its sources are: a copied one is made anew.
  wanted="$(cat uv.lock pyproject.toml | cksum) $jax $PWD"
  found="$(cat "$venv/.synced" 2>/dev/null || true)"
  if [ -x "$venv/bin/python" ]; then
    if [ "$found" = "$wanted" ] || [ "$found" = "$wanted${without:+ without $without}" ]; then return; fi
  fi
  python="$(find_python)"
  # shellcheck disable=SC2086
  uv="$(find_uv $python)"
  say "setting up $venv with ${python:-a Python that uv provides}"
  # Every command is a fresh process; without bytecode importing jax takes three times as long.
  UV_PROJECT_ENVIRONMENT="$venv" "$uv" sync -q --frozen --compile-bytecode --all-extras \
    ${without:+--no-extra "$without" --no-group docs} --python "${python:-3.12}"
  if [ -n "$jax" ]; then
    "$uv" pip install -q --python "$venv/bin/python" "jax==$jax" "jaxlib==$jax"
  fi
  echo "$wanted${without:+ without $without}" >"$venv/.synced"
}

# Words that say nothing to an engineer who has not seen this code; docs/glossary.md has the terms.
private_words='pump|entrances?|joiners?|departure|patient|lingers?|flying|board|letting_in|step_aside|tells?|told|telling|nobody|whoever|somebody|anybody|held|lies|stuck|slug|_?MOST_[A-Z]+'

check_words() {
  local found
  found="$(grep -rnwE "$private_words" --include='*.py' export hloserve runtime server ||
    [ $? = 1 ])"
  found+="$(grep -rnE '^ +"""(Give|Say|Tell|Hold) ' --include='*.py' \
    export hloserve runtime server bench deploy examples tests || [ $? = 1 ])"
  if [ -n "$found" ]; then
    say "$found"
    say "error: expected the terms of docs/glossary.md, and docstrings that begin with Return or Whether, got these"
    return 1
  fi
}

# stage NAME COMMAND…: run a command, and print the minutes that it took.
stage() {
  local name="$1" start="$SECONDS" tenths
  shift
  "$@"
  tenths=$(((SECONDS - start) * 10 / 60))
  say "$(printf '%4d.%d min  %s' $((tenths / 10)) $((tenths % 10)) "$name")"
}

check() {
  check_words
  stage setup setup
  stage "ruff check" "$venv/bin/ruff" check --output-format concise .
  stage "ruff format" "$venv/bin/ruff" format --check .
  stage mypy "$venv/bin/mypy"
  stage "import contracts" "$venv/bin/lint-imports"
  stage interrogate "$venv/bin/interrogate" -q tests
  stage hadolint "$venv/bin/hadolint" Dockerfile
  stage "front yard" check_front_yard
  stage docs docs
}

# Files that GitHub and Compose read, against their published schemas.
check_front_yard() {
  local schema="$venv/bin/check-jsonschema --no-cache -q --builtin-schema"
  $schema vendor.github-workflows .github/workflows/*.yml
  $schema vendor.dependabot .github/dependabot.yml
  $schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
  $schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/{bug,feature}.yml
  $schema vendor.compose-spec compose.yaml
}

# docs [--serve]: build the documentation site. A broken link or anchor ends it.
docs() {
  case "${1:-}" in
  "")
    setup
    "$venv/bin/python" -m scripts.troubleshooting --check
    "$venv/bin/python" -m scripts.openapi --check
    "$venv/bin/zensical" build --clean --strict 2>&1 | sed "s/\x1b\[[0-9;]*m//g"
    "$venv/bin/python" -m scripts.links build/site
    ;;
  --serve) setup; exec "$venv/bin/zensical" serve ;;
  *) say "error: docs: expected nothing or --serve, got $1"; return 2 ;;
  esac
}

# What starts processes is left out: it takes most of the time, and coverage sees nothing of them.
coverage() {
  setup
  "$venv/bin/python" -m pytest -q -m "not image and not e2e and not gpucheck" \
    --cov --cov-report=term:skip-covered --cov-report=html:build/coverage "$@"
}

# Build the wheel, and use it where there is nothing of this checkout, with the packages of uv.lock.
wheel() {
  local uv out=build/wheel
  setup
  uv="$(find_uv "$venv/bin/python")"
  rm -rf "$out"
  mkdir -p "$out"
  "$venv/bin/uv-build" build-wheel "$out" >/dev/null
  "$uv" export -q --frozen --no-default-groups --no-emit-project --extra export --extra server \
    --output-file "$out/requirements.txt" >/dev/null
  "$uv" venv -q --python "$venv/bin/python" "$out/venv"
  "$uv" pip install -q --python "$out/venv/bin/python" --require-hashes -r "$out/requirements.txt"
  "$uv" pip install -q --python "$out/venv/bin/python" --no-deps "$out"/*.whl
  "$out/venv/bin/python" tests/wheel.py
}

# XLA's CUDA plugin has an environment of its own: where it is installed JAX looks for a GPU at each
# start. It brings the compiler, and none of CUDA's libraries.
gpucheck() {
  local uv wanted environment="$PWD/build/gpucheck"
  setup
  wanted="$(cat uv.lock pyproject.toml | cksum) $PWD"
  if [ "$(cat "$environment/.synced" 2>/dev/null || true)" != "$wanted" ]; then
    uv="$(find_uv "$venv/bin/python")"
    say "setting up build/gpucheck"
    UV_PROJECT_ENVIRONMENT="$environment" "$uv" sync -q --frozen --compile-bytecode \
      --no-default-groups --group gpucheck --python "$venv/bin/python"
    echo "$wanted" >"$environment/.synced"
  fi
  if [ $# = 0 ]; then
    stage "compile for GPUs" "$venv/bin/python" -m pytest -q -m gpucheck tests/gpucheck
  else
    venv="$PWD/$venv"
    cd "$started"
    exec "$venv/bin/python" -m runtime compile "$@"
  fi
}

# engine NAME [PYTEST…]: test a handler with the engine's own packages, where there is no Flax. The bundles are
# exported by the project's environment.
engine() {
  local name="$1" uv wanted environment="$PWD/build/engines/$1"
  shift
  wanted="$(cksum <"tests/engines/$name/requirements.lock") $PWD"
  if [ "$(cat "$environment/.synced" 2>/dev/null || true)" != "$wanted" ]; then
    uv="$(find_uv "$venv/bin/python")"
    say "setting up build/engines/$name"
    "$uv" venv -q --clear --python "$venv/bin/python" "$environment"
    "$uv" pip install -q --compile-bytecode --require-hashes --python "$environment/bin/python" \
      -r "tests/engines/$name/requirements.lock"
    echo "$wanted" >"$environment/.synced"
  fi
  PYTHONPATH="$PWD" HLOSERVE_PYTHON="$PWD/$venv/bin/python" "$environment/bin/python" -m pytest -q \
    --rootdir . -c tests/engines/pytest.ini --confcutdir tests/engines "tests/engines/$name" "$@"
}

engines() {
  local name names=(beam ray)
  case "${1:-}" in
  beam | ray) names=("$1"); shift ;;
  "" | -*) ;;
  *) say "error: engines: expected beam, ray or options of pytest, got $1"; return 2 ;;
  esac
  setup
  for name in "${names[@]}"; do stage "$name" engine "$name" "$@"; done
}

# Fill the table of docs/compatibility.md.
run_matrix() {
  local oldest jax pythons=()
  oldest="$(sed -n 's/.*"jax>=\([0-9.]*\),.*/\1/p' pyproject.toml)"
  for jax in "$oldest" ""; do
    setup "$jax"
    pythons+=("$PWD/$venv/bin/python")
  done
  "$venv/bin/python" -m tests.skew "${pythons[@]}"
  "$venv/bin/python" -m tests.e2e.batch_kills
}

run_tests() {
  local jax=""
  if [ "${1:-}" = --matrix ]; then
    run_matrix
    return
  fi
  if [ "${1:-}" = --jax ]; then
    jax="${2:?--jax: expected a version such as 0.11.2}"
    shift 2
  fi
  if [ "${1:-}" = --all ]; then
    shift
    set -- -m "" "$@"
  fi
  stage setup setup "$jax"
  stage tests "$venv/bin/python" -m pytest "$@"
}

# Make the gRPC messages anew, in a pool of their own: clients register the same names.
protos() {
  setup
  "$venv/bin/python" -m grpc_tools.protoc --proto_path=server/protos \
    --python_out=server/protos --pyi_out=server/protos server/protos/inference.proto
  sed -i -e 's/^from google.protobuf import descriptor_pool as _descriptor_pool$/from server.protos.pool import POOL as _pool/' \
    -e 's/_descriptor_pool\.Default()/_pool/' server/protos/inference_pb2.py
}

# Print what builds images here. A docker without its engine is of no use.
find_builder() {
  local name
  if docker info >/dev/null 2>&1; then echo docker; return; fi
  for name in podman buildah; do
    if command -v "$name" >/dev/null; then echo "$name"; return; fi
  done
  say "error: expected docker with its engine running, podman or buildah, found none"
  return 1
}

image() {
  local device=cpu bundle="" tag="" push="" context builder name
  local options=() certificates="${SSL_CERT_FILE:-${PIP_CERT:-}}"
  while [ $# -gt 0 ]; do
    case "$1" in
    cpu | cuda12 | cuda13) device="$1" ;;
    --bundle | --tag)
      case "${2:-}" in "" | --*) say "error: $1: expected a value, got ${2:-none}"; return 2 ;; esac
      if [ "$1" = --bundle ]; then bundle="$2"; else tag="$2"; fi
      shift
      ;;
    --push) push=1 ;;
    --native) options+=(--build-arg "COMPILE=--threads 1,2,4") ;;
    *)
      say "error: image: expected cpu, cuda12, cuda13, --bundle DIR, --tag T, --native or --push, got $1"
      return 2
      ;;
    esac
    shift
  done
  if [ -n "$push" ] && [[ "$tag" != */* ]]; then
    say "error: --push: expected --tag REGISTRY/NAME:TAG, got ${tag:-none}"
    return 2
  fi
  tag="${tag:-hloserve:$device}"
  if [ -n "$bundle" ]; then
    case "$bundle" in /*) context="$bundle" ;; *) context="$started/$bundle" ;; esac
    [ -f "$context/manifest.json" ] || { say "error: --bundle: no manifest.json in $bundle"; return 2; }
    options+=(--build-context "bundle=$context")
  fi
  builder="$(find_builder)"
  export INDEX_URL="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-}}}"
  # By name alone, so that no password shows on the command line.
  for name in BASE_IMAGE INDEX_URL {HTTP,HTTPS,NO}_PROXY {http,https,no}_proxy; do
    if [ -n "${!name:-}" ]; then options+=(--build-arg "$name"); fi
  done
  if [ -n "$certificates" ]; then options+=(--secret "id=ca,src=$certificates"); fi
  options+=(
    --build-arg "VERSION=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' pyproject.toml)"
    --build-arg "REVISION=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || true)"
    --build-arg "CREATED=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%dT%H:%M:%SZ)"
  )
  say "building $tag with $builder"
  DOCKER_BUILDKIT=1 "$builder" build --build-arg "DEVICE=$device" "${options[@]}" --tag "$tag" .
  if [ -n "$push" ]; then "$builder" push "$tag"; fi
}

# TensorFlow is 1.9 of the environment's 3.9 GB, and 0.6 GB to download. The tests need it, since a
# SavedModel that no TensorFlow has run is not proved; a first look does not.
run_example() {
  setup "" savedmodel
  exec "$venv/bin/python" -m examples.digits.run "$@"
}

commands=(run test check docs coverage wheel gpucheck engines image setup protos)

# Print how many letters two words differ by: put in, left out, other ones, or two in turn.
distance() {
  local a="$1" b="$2" i j cost best two=() one=() row=()
  for ((j = 0; j <= ${#b}; j++)); do one[j]=$j; done
  for ((i = 1; i <= ${#a}; i++)); do
    row=("$i")
    for ((j = 1; j <= ${#b}; j++)); do
      cost=1
      if [ "${a:i-1:1}" = "${b:j-1:1}" ]; then cost=0; fi
      best=$((one[j - 1] + cost))
      if ((one[j] + 1 < best)); then best=$((one[j] + 1)); fi
      if ((row[j - 1] + 1 < best)); then best=$((row[j - 1] + 1)); fi
      if ((i > 1 && j > 1)) && [ "${a:i-2:2}" = "${b:j-1:1}${b:j-2:1}" ] &&
        ((two[j - 2] + 1 < best)); then best=$((two[j - 2] + 1)); fi
      row[j]=$best
    done
    two=("${one[@]}")
    one=("${row[@]}")
  done
  echo "${one[${#b}]}"
}

# Say which command there is not, and which was probably meant.
unknown() {
  local name nearest="" least=3 found listed
  for name in "${commands[@]}"; do
    found="$(distance "$1" "$name")"
    if ((found < least && found < ${#1})); then nearest="$name" least=$found; fi
  done
  listed="$(printf ', %s' "${commands[@]}")"
  say "error: command: expected ${listed:2}, got '$1'${nearest:+; did you mean '$nearest'?}"
}

command="${1:-}"
[ $# -gt 0 ] && shift
case "$command" in
run) run_example "$@" ;;
test) run_tests "$@" ;;
check) check ;;
docs) docs "$@" ;;
coverage) coverage "$@" ;;
wheel) wheel ;;
gpucheck) gpucheck "$@" ;;
engines) engines "$@" ;;
image) image "$@" ;;
setup) setup ;;
protos) protos ;;
-h | --help | help) usage ;;
"")
  usage >&2
  exit 2
  ;;
*)
  usage >&2
  say ""
  unknown "$command"
  exit 2
  ;;
esac
