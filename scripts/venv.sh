# Makes virtual environments in the repository root. The other scripts source this file there.

# make_venv REQUIREMENT…: makes .venv with this checkout and the requirements. PYTHON names another interpreter.
make_venv() {
    new_venv .venv "${PYTHON:-python3}" PYTHON
    echo "installing $* into .venv (a few minutes and 6 GB the first time: torch comes with CUDA)"
    install_fast .venv "$@"
}

# new_venv FOLDER PYTHON VARIABLE: makes an environment of that interpreter, unless FOLDER is one already. The error
# message names VARIABLE as the way to choose another interpreter.
new_venv() {
    if ! "$2" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: $2 is not a Python 3.10 or newer" >&2
        echo "fix: install one, and name it: $3=python3.12 $0" >&2
        exit 2
    fi
    if [ ! -x "$1/bin/pip" ] && ! "$2" -m venv "$1"; then
        echo "error: $2 can't make a virtual environment" >&2
        echo "fix: install its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 2
    fi
}

# install_into FOLDER REQUIREMENT…: installs this checkout and the requirements.
install_into() {
    # Python compiles modules on first use, unless it may not write bytecode.
    local compile=--no-compile
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile
    "$1/bin/pip" install --quiet --disable-pip-version-check "$compile" --editable "${@:2}"
}

# install_fast FOLDER REQUIREMENT…: like install_into, by uv if pip can install it; about twice as fast.
# uv doesn't see the packages that another environment shares, so share_packages needs install_into.
install_fast() {
    "$1/bin/pip" install --quiet --disable-pip-version-check uv 2> /dev/null || { install_into "$@"; return; }
    local compile=--no-compile-bytecode
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile-bytecode
    (
        eval "$(pip_settings "$1")"
        "$1/bin/uv" pip install --quiet --python "$1/bin/python" "$compile" --editable "${@:2}"
    ) || install_into "$@"
}

# pip_settings FOLDER: prints commands that pass pip's indexes, constraints and certificates to uv, which doesn't read
# pip's settings.
pip_settings() {
    "$1/bin/pip" config list | "$1/bin/python" -c '
import ast, shlex, sys

variables = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}
print("export UV_INDEX_STRATEGY=unsafe-best-match")  # the newest release of all indexes, like pip
for line in sys.stdin:
    name, _, value = line.strip().partition("=")
    variable = variables.get(name.rpartition(".")[2])
    if variable:
        separator = "," if variable == "UV_FIND_LINKS" else " "
        print(f"export {variable}={shlex.quote(separator.join(ast.literal_eval(value).split()))}")
'
}

# share_packages FROM TO: lets the environment in TO import packages of FROM, which has the same Python.
# pip counts these as installed. If it needs another version, it installs that in TO, where it takes precedence.
share_packages() {
    local packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$1/bin/python" -c "$packages" > "$("$2/bin/python" -c "$packages")/shared.pth"
}

# find_python MAJOR.MINOR: prints an interpreter of that version, from PATH or pyenv; fails if there is none.
find_python() {
    local each
    for each in "python$1" "${HOME:-}/.pyenv/versions/$1"*/bin/python; do
        # The interpreter must also start: pyenv puts shims on PATH for versions that aren't active.
        if "$each" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null; then
            echo "$each"
            return
        fi
    done
    return 1
}
