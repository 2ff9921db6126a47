#!/usr/bin/env bash
# Run every command where MLX's default device is a GPU, and look for what must not be there.
#
#   benchmarks/gpu/commands.sh [FOLDER]     FOLDER: for the outputs (default: a new one in /tmp)
#
# The package has to be importable by PYTHON (default python3); mflux may be absent. Prints a line a
# command; exit status 1 if one failed.
set -u
PYTHON=${PYTHON:-python3}
out=${1:-$(mktemp -d /tmp/qwen-mfa-commands.XXXXXX)}
mkdir -p "$out"
export QWEN_MFA_CACHE_DIR=${QWEN_MFA_CACHE_DIR:-$out/cache}
failed=0

# check NAME STATUSES COMMAND…: run `qwen-mfa COMMAND…`; its exit status must be one of STATUSES.
check() {
  local name=$1 statuses=$2 start=$SECONDS status why=""
  shift 2
  timeout "${LIMIT:-120}" "$PYTHON" -m qwen_mfa "$@" >"$out/$name.txt" 2>"$out/$name.err" </dev/null
  status=$?
  case " $statuses " in *" $status "*) ;; *) why="exit status $status, not one of: $statuses" ;; esac
  grep -q Traceback "$out/$name.txt" "$out/$name.err" && why="$why; a traceback"
  grep -qwiE 'nan|float64 is not supported' "$out/$name.txt" "$out/$name.err" && why="$why; nan or float64"
  if [ -z "$why" ]; then
    printf '%-22s ok      %3d s\n' "$name" $((SECONDS - start))
  else
    failed=1
    printf '%-22s FAILED  %3d s: %s\n' "$name" $((SECONDS - start)) "${why#; }"
    tail -n 3 "$out/$name.err" | sed 's/^/    /'
  fi
}

"$PYTHON" -c 'import mlx.core as mx; d = mx.default_device(); print(d, mx.device_info(d)); assert d.type == mx.DeviceType.gpu' || {
  echo "MLX's default device is no GPU here: nothing is shown by this run" >&2
  [ "${ANY_DEVICE:-}" ] || exit 2
}

check version '0' --version
check info '0' info
check doctor '0 1' doctor
check doctor-json '0 1' doctor --json
check explain '0' explain 1 24 1124 1124 128 bfloat16
check explain-mask '0' explain 1 24 1124 1124 128 bfloat16 --mask bool
LIMIT=240 check selftest '0' selftest
check selftest-metal '0 3' selftest --metal --quick
check bench-attention '0' bench attention ${SHAPES:-qwen-512 qwen-1024} --rounds 3 --out "$out/attention.json"
check bench-masks '0' bench attention ${SHAPES:-qwen-512} --mask padding,causal --rounds 3 --no-memory
check bench-float32 '0' bench attention ${SHAPES:-qwen-512} --dtype float32 --rounds 3 --no-memory --peers
check bench-padding '0' bench padding ${FEW:+--image-tokens 60 --heads 2} --rounds 3
check bench-step '0' bench step ${SIZES:-qwen-512} --rounds 3 --out "$out/step.json"
check bench-dispatch '0' bench dispatch --rounds 5
check bench-show '0' bench show "$out/attention.json"

cat >"$out/program.py" <<'PROGRAM'
import mlx.core as mx
import mflux.models.qwen.model.qwen_transformer.qwen_attention as host

q, k, v = (mx.random.normal((1, 24, 1124, 128)).astype(mx.bfloat16) for _ in range(3))
mx.eval(host.scaled_dot_product_attention(q, k, v, scale=128**-0.5, mask=None))
PROGRAM
if "$PYTHON" -c 'import mflux' 2>/dev/null; then
  check run '0' run --json "$out/run.json" -- "$out/program.py"
else
  check run-without-mflux '2' run -- "$out/program.py"
fi

# What was measured must be possible: nothing above the device's own peak, nothing at zero.
"$PYTHON" - "$out" <<'CHECK' || failed=1
import json, sys
from pathlib import Path

wrong = 0
for name in ("attention", "step"):
    file = Path(sys.argv[1], f"{name}.json")
    for case in json.loads(file.read_text())["cases"] if file.exists() else ():
        for entry in case["entries"]:
            share = entry["of_peak"]
            if share is not None and not 0 < share < 1.1:
                wrong += 1
                print(f"{name}: {case['shape']}, {entry['contestant']}: {share:.2f} of peak")
sys.exit(wrong > 0)
CHECK

echo
grep -h 'ran\|saved\|nothing gained' "$out"/run*.err | head -n 3
echo "Outputs: $out"
exit $failed
