# Sourced by the run_*.sh scripts: a virtual environment with bench in it, made on first use. Leaves its interpreter in
# $python.
#
#   TORCH=xpu|cuda|cpu   which build of torch; by default what the hardware here can use
#   VENV=DIR             where the environment goes (default .venv beside the scripts)
#   BENCH_PYTHON=PATH    use this interpreter as it is and install nothing
#   EXTRAS=NAME,...      optional dependencies of pyproject.toml
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

# What this machine has: the PCI vendor of a render node tells Intel from others.
torch_kind() {
    if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] && command -v nvidia-smi >/dev/null; then echo cuda; return; fi
    if grep -qs 0x8086 /sys/class/drm/renderD*/device/vendor; then echo xpu; return; fi
    echo cpu
}

install_torch() {
    case $1 in
        cuda) "$python" -m pip install -q torch ;; # the default build
        xpu) "$python" -m pip install -q uv && "$python" -m uv pip install -q --python "$python" --torch-backend=xpu torch ;;
        cpu)
            # Where pip has been told where to find packages, it is left alone; elsewhere the default build for Linux
            # would bring gigabytes of CUDA.
            if [ -n "${PIP_FIND_LINKS:-}${PIP_INDEX_URL:-}${PIP_NO_INDEX:-}" ]; then
                "$python" -m pip install -q -c "$root/constraints-cpu.txt" torch
            else
                "$python" -m pip install -q uv &&
                    "$python" -m uv pip install -q --python "$python" --torch-backend=cpu -c "$root/constraints-cpu.txt" torch
            fi ;;
        *) die "TORCH=$1 is none of xpu, cuda, cpu" ;;
    esac
}

setup_env() {
    if [ -n "${BENCH_PYTHON:-}" ]; then
        python=$BENCH_PYTHON
        export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
        return
    fi
    local venv=${VENV:-$root/.venv} kind=${TORCH:-$(torch_kind)} extras=${EXTRAS:-}
    local base=${PYTHON:-python3} wanted constraint=()
    python=$venv/bin/python
    wanted=$(cat "$root/pyproject.toml" "$root/constraints-cpu.txt" - <<<"$kind $extras" | sha256sum)
    if grep -qsxF "$wanted" "$venv/.bench-ready"; then return; fi
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        die "$base is not Python 3.10 or newer: set PYTHON to one that is"
    say "installing into $venv (torch for $kind); this happens once"
    [ -x "$python" ] || "$base" -m venv "$venv" || die "cannot create $venv: install the venv module of $base"
    [ "$kind" = cpu ] && constraint=(-c "$root/constraints-cpu.txt")
    install_torch "$kind" || die "torch could not be installed; see the messages above, or set BENCH_PYTHON"
    "$python" -m pip install -q "${constraint[@]}" -e "$root${extras:+[$extras]}" ||
        die "bench could not be installed; see the messages above"
    echo "$wanted" >>"$venv/.bench-ready" # a line for each set of extras
}
