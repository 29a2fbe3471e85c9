# Sourced by the other scripts, in the repository root: one virtual environment, .venv, for all of them.

# make_venv REQUIREMENT…: .venv with this checkout and what it asks for. PYTHON names another interpreter.
make_venv() {
    local python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: $python is not a Python 3.10 or newer" >&2
        echo "fix: install one, and name it: PYTHON=python3.12 $0" >&2
        exit 2
    fi
    if [ ! -x .venv/bin/pip ] && ! "$python" -m venv .venv; then
        echo "error: $python can't make a virtual environment" >&2
        echo "fix: install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 2
    fi
    echo "installing $* into .venv (a few minutes and 6 GB the first time: torch comes with CUDA)"
    # Modules are compiled when they are first used, unless nothing may be written then.
    local compile=--no-compile
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile
    .venv/bin/pip install --quiet --disable-pip-version-check "$compile" --editable "$@"
}
