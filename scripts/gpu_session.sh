#!/usr/bin/env bash
# Ten minutes with a GPU, the most worthwhile first; each part has a time box and a log, and a failure stops none of the others.
#
#   scripts/gpu_session.sh [--out DIR] [--minutes M] [--wheels DIR] [--only PART,...] [--tiny]
#
#   --out      results (default: $OUT, else outputs/gpu-session): NAME.log of each part, window.json, summary.txt
#   --minutes  for everything (10); training goes on from the shipped weights for what is left
#   --wheels   wheels of what the machine lacks, installed without the internet before anything else
#   --only     some of: tests window sampling modes live lowmem steps training
#   --tiny     small sizes, two minutes of a CPU: to try the script itself
#
# The python that is active is used (PYTHON=... another one). Make wheels with: pip download -d DIR diffusers omegaconf hydra-core mediapipe decord ...
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python} out=${OUT:-outputs/gpu-session} minutes=10 wheels="" only="" tiny=""
while [ $# -gt 0 ]; do
  case $1 in
    --tiny) tiny=1; shift; continue ;;
    --out | --minutes | --wheels | --only) [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; } ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  declare "${1#--}=$2"; shift 2
done
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd); : >"$out/summary.txt"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
SECONDS=0
left() { echo $((minutes * 60 - SECONDS)); }
say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME SECONDS COMMAND...: at most so long, and not beyond the end
part() {
  local name=$1 box=$2 began=$SECONDS code=0; shift 2
  [ -z "$only" ] || [[ ",$only," == *",$name,"* ]] || return 0
  [ "$(left)" -ge "$box" ] || box=$(left)
  [ "$box" -ge 10 ] || { say "$name: skipped, no time is left"; return 0; }
  timeout -s INT -k 10 "$box" "$@" >"$out/$name.log" 2>&1 || code=$?
  [ "$code" != 124 ] || code="its $box s are over"
  say "$name: exit $code after $((SECONDS - began)) s; the end of $name.log:"
  tail -n 12 "$out/$name.log" | sed 's/^/    /' | tee -a "$out/summary.txt"
}

# has PROGRAM ACTION: whether this version has it; else that is said
has() { [ -f "$1" ] && grep -q "\"$2\"" "$1" || { [ -n "$only" ] || say "$2: skipped, this version has no such program"; return 1; }; }

if [ -n "$wheels" ]; then
  "$python" -m pip install -q --no-index --find-links "$wheels" "$wheels"/*.whl >"$out/wheels.log" 2>&1 || say "wheels: not all could be installed, see wheels.log"
fi
say "$("$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' 2>&1 | tail -n 1)"
size="height=896 width=512 frames=16" sizes=sd15 recipe=dynamics device=cuda train="experiment=tiny/gpu/clips"
if [ -n "$tiny" ]; then
  size="height=64 width=64 frames=2" sizes=tiny recipe=tiny/clips device=cpu train="experiment=tiny/clips batch=2 replay.clips=0 data.workers=0"
fi
media="--ref assets/demo/reference.png --drive assets/demo/driving.npz --checkpoint xdyna-tiny device=$device"

part tests 90 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/unit tests/process
part window 200 "$python" scripts/bench.py window --sizes $sizes $size device=$device pairs=$([ -n "$tiny" ] && echo 1 || echo 5) ${tiny:+--ways naive,eager} --json "$out/window.json"
part sampling 40 "$python" scripts/bench.py sampling device=$device ${tiny:+height=64 width=64 frames=2 pairs=1}
has xdyna/cli/bench.py modes && part modes 60 "$python" scripts/bench.py modes device=$device
has xdyna/cli/main.py live && part live 30 "$python" -m xdyna live $media --overwrite --out "$out/live.mp4"
part lowmem 40 "$python" scripts/infer.py $media preset=lowmem ${tiny:+--frames 2 --steps 1} --overwrite --out "$out/lowmem.mp4"
part steps 120 "$python" scripts/bench.py train experiment=$recipe --device $device --steps $([ -n "$tiny" ] && echo 1 || echo 3)
part training "$(left)" "$python" scripts/train.py $train init=xdyna-tiny "out=$out/training" --max-minutes "$(awk "BEGIN { print ($(left) > 90 ? $(left) - 60 : 30) / 60 }")"
say "all in $out"
