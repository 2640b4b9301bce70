# What the run_*.sh scripts share. `setup_env` makes a virtual environment with bench in it on first use and leaves its
# interpreter in $python; the *_overrides functions turn the user's variables into overrides of `bench run`.
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
    case ${dtype:-} in *int[458]* | *fp[468]* | *nf4*) # low-bit formats need the libraries that convert weights
        extras+=${extras:+,}torchao,bitsandbytes
        [ "$kind" = cuda ] || extras+=,auto-round ;;
    esac
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

args=()
sweep=()
add() { # KEY VALUE: one value, or a sweep over several that are separated by commas
    [ -n "$2" ] || return 0
    args+=("$1=$2")
    [[ $2 != *,* ]] || sweep=(-m)
}
list() { # KEY VALUES: an inner axis, which takes a list
    [ -n "$2" ] || return 0
    args+=("$1=[${2// /,}]")
}

model_overrides() { # model dtype device; the argument is the model when the user names none
    local precision=${dtype:-}
    precision=${precision//bfloat16/bf16}
    precision=${precision//float16/fp16}
    precision=${precision//float32/fp32}
    add model "${model:-$1}"
    add precision "$precision"
    add device "${device:-}"
}
latency_overrides() { # beam bs input output iter warmup
    list num_beams "${beam:-}"
    list batch_size "${bs:-}"
    [ -z "${input:-}${output:-}" ] || args+=("lengths=${input:-1024}/${output:-128}")
    [ -z "${iter:-}" ] || args+=("iterations=$iter")
    [ -z "${warmup:-}" ] || args+=("warmup=$warmup")
}
accuracy_overrides() { # task limit bs
    add workload accuracy
    list accuracy.task "${task:-}"
    [ -z "${limit:-}" ] || args+=("accuracy.limit=$limit")
    [ -z "${bs:-}" ] || args+=("accuracy.batch_size=$bs")
}
rank_overrides() { # nproc tp hostfile hosts ppn
    add launcher mpirun
    add world_size "${nproc:-2}"
    add tp "${tp:-deepspeed}"
    [ -z "${hostfile:-}" ] || args+=("launcher.hostfile=$(realpath "$hostfile")")
    [ -z "${hosts:-}" ] || args+=("launcher.hosts='$hosts'")
    [ -z "${ppn:-}" ] || args+=("launcher.ppn=$ppn")
}
