# Sourced by demo and run: make the virtual environment, or reuse it. Sets $VENV; $PYTHON picks the Python.

VENV=${VENV:-.venv}

# install STAMP ARGUMENT...: what `pip install ARGUMENT...` says, unless the same was installed before.
# Without --no-compile, pip takes half as long again, to compile modules that nothing imports.
install() {
    stamp=$VENV/.installed-$1
    shift
    is_new='import sys; sys.exit(sys.version_info < (3, 9))'
    "${PYTHON:-python3}" -c "$is_new" || { echo "this needs Python 3.9 or newer: PYTHON=python3.11 $0" >&2; exit 1; }
    [ ! -x "$VENV/bin/python" ] || "$VENV/bin/python" -c "$is_new" || rm -rf "$VENV"
    if [ ! -x "$VENV/bin/python" ]; then
        rm -rf "$VENV"
        "${PYTHON:-python3}" -m venv "$VENV" || { rm -rf "$VENV"; exit 1; }
    fi
    wanted=$(cat requirements.txt tests/requirements*.txt)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@" >&2
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
