# For the scripts beside it, which source it: where things are, and a .venv that is finished before it is used.
# A stamp in .venv repeats this checkout's path and pyproject.toml, and is written last: whatever was interrupted before
# has no stamp and is done again, and whatever has one costs milliseconds.
# shellcheck shell=bash

root=$(readlink -f "${BASH_SOURCE[0]}")
root=${root%/scripts/*}
venv=$root/.venv
pip_log=$venv/install.log

trap 'exit 130' INT # else what comes next would start after a Ctrl-C

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# With --help as the first argument, print the comment at the top of the script, and leave.
help_if_asked() {
    [[ ${1:-} == --help ]] || return 0
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
}

# By running it: a shim of pyenv exists, and fails, where that version is not installed.
is_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n ${LLMSESSION_PYTHON:-} ]]; then
        is_python "$LLMSESSION_PYTHON" || die "LLMSESSION_PYTHON=$LLMSESSION_PYTHON is no working Python 3.11 or newer"
        python=$LLMSESSION_PYTHON
        return
    fi
    while IFS= read -r candidate; do
        if is_python "$candidate"; then python=$candidate; return; fi
    done < <(type -aP python3 python3.14 python3.13 python3.12 python3.11; printf '%s\n' "$venv/bin/python")
    die "Python 3.11 or newer is needed: install it, or name one with LLMSESSION_PYTHON=/path/to/python"
}

# The lock on fd 9 ends with the last process that holds it: a pip that outlives a killed script keeps it. The command
# flock is not on every system; Python is.
lock_fd_9() {
    trap 'exit 130' INT # in the subshell that installs; pip's own end after Ctrl-C looks like any failure
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
    say "waiting for another script that is installing here"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || die "cannot take the lock file of the installation"
}

# make_venv FOLDER LOG: a virtual environment with a working pip, made or mended.
make_venv() {
    if [[ -e $1/making-pip || ! -s $1/pyvenv.cfg ]] || ! is_python "$1/bin/python"; then
        say "making $1 with $("$python" --version)"
        "$python" -m venv --clear --without-pip "$1" >&2 || die "$python cannot make $1"
    elif "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    : >"$1/making-pip"
    # Debian's Python comes without ensurepip, but its own pip can install one.
    "$1/bin/python" -I -m ensurepip >"$2" 2>&1 ||
        "$python" -m pip --python "$1/bin/python" install pip >>"$2" 2>&1 ||
        die "$python cannot put pip into $1: install its venv module (Debian and Ubuntu: apt install python3-venv)"
    rm "$1/making-pip"
}

# pip_install PYTHON LOG ARGUMENTS…: its output goes to the log, its milestones to stderr.
pip_install() {
    local log=$2 line offline=
    "$1" -m pip --disable-pip-version-check --no-input --retries 3 install --progress-bar off "${@:3}" 2>&1 </dev/null |
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$log"
            case $line in
            *" Downloading "*" MB)") say "downloading ${line##*Downloading }" ;;
            "Installing collected packages: "*,*) say "installing the packages" ;;
            *"Retrying (Retry("*)
                [[ -n $offline ]] || say "no connection: pip tries again"
                offline=1
                ;;
            esac
        done && return
    if grep -qE 'Retry\(total=0|Max retries exceeded|NewConnectionError|NameResolutionError' "$log"; then
        die "pip could not reach its package index: connect to the internet and start this again (details: $log)"
    fi
    grep -E '^ *(ERROR|error):' "$log" >&2 || tail -n 5 "$log" >&2
    die "pip failed: all it said is in $log"
}

# The requirements by themselves, so that what already runs from this checkout is not uninstalled under its user.
requirements() {
    "$venv/bin/python" -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(line for name in sys.argv[2:] for line in extras[name]), sep="\n")
' "$root/pyproject.toml" "$@"
}

is_installed() {
    [[ -x $venv/bin/python && -x $venv/bin/llmsession && -e $venv/installed-$1 ]] &&
        [[ $(<"$venv/installed-$1") == "$wanted" ]]
}

mark_installed() {
    printf '%s\n' "$wanted" >"$venv/installed-$1.new"
    mv "$venv/installed-$1.new" "$venv/installed-$1"
}

install_extras() {
    local name=$1
    shift
    make_venv "$venv" "$venv/make.log"
    say "installing llmsession's requirements for $* into .venv (the first time takes a minute)"
    : >"$pip_log"
    "$venv/bin/python" -I "$root/scripts/drop_half_installed.py" || die "cannot look through $venv"
    requirements "$@" >"$venv/requirements.txt" || die "cannot read pyproject.toml"
    pip_install "$venv/bin/python" "$pip_log" --requirement "$venv/requirements.txt"
    if ! is_installed project; then
        pip_install "$venv/bin/python" "$pip_log" --no-deps --editable "$root"
        mark_installed project
    fi
    mark_installed "$name"
}

# ensure_installed EXTRA…: .venv has this checkout, and what these extras of it require.
ensure_installed() {
    local name wanted
    name=$(IFS=-; printf '%s' "$*")
    wanted=$root$'\n'$(<"$root/pyproject.toml")
    is_installed "$name" && return
    find_python
    (
        lock_fd_9
        is_installed "$name" || install_extras "$name" "$@"
    ) 9>"$root/.venv.lock"
}
