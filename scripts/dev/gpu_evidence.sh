#!/usr/bin/env bash
# Collects evidence from a GPU in steps of less than nine minutes, each of which can be continued.
#
# Use: scripts/dev/gpu_evidence.sh OUT SOURCE [STEP ...]
#
# OUT is the folder for everything; OUT/results gets what to keep: eight small files. SOURCE is the
# unpacked Dubai set, with images/ and masks/. Without STEP, all steps are taken, in this order:
#   data       tiles of Dubai
#   segmenter  the segmenter by which agreement is measured
#   checks     short trainings in every precision, layout, compiled, under DDP; a generation
#   benchmark  scripts/dev/benchmark.py with three sizes of batches
#   gan128     experiment=recommended at 128 px, evaluated, with samples: mask, real, generated
#   gan256     the same at 256 px
#   refine     experiment=refine after gan256, evaluated
#   trial      a trial with a shared generator; takes several calls
# A step that is done is skipped; remove OUT/done/STEP and what it made to repeat it. Where the time
# of a step is up, the same call again continues it. A check that fails stops nothing, but makes the
# exit code 1; the same call again repeats it.
#
# The machine needs torch with its torchvision, and no network. Other packages come from a folder of
# wheels, which take the place of other versions. With the machine's version of Python, elsewhere:
#   grep -vE '^(#|torch(vision)?==|triton==|nvidia-|cuda-)' constraints.txt > needed.txt
#   python -m pip wheel --no-deps --wheel-dir WHEELS -r needed.txt
# With another one, and pip wheel for the few packages that publish no wheels:
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --dest WHEELS \
#       --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 NAME==VERSION ...
#
# Environment: PYTHON (python3), WHEELS (that folder), COMMIT (where there is no git), LIMIT (seconds
# of a step), MINUTES (of a generator's training), BENCHMARK (options of benchmark.py), and settings
# that come last: EXTRA of all commands, GAN_EXTRA of generators' trainings, SEGMENTER_EXTRA,
# EVALUATE_EXTRA, TRIAL_EXTRA. Values are divided at spaces.
set -euo pipefail

STEPS=(data segmenter checks benchmark gan128 gan256 refine trial)
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-500} MINUTES=${MINUTES:-6}
COMMIT=${COMMIT:-$(git -C "$REPO" rev-parse HEAD 2> /dev/null || echo unknown)}
BENCHMARK=${BENCHMARK:---seconds 2 --rounds 5}
for name in BENCHMARK EXTRA GAN_EXTRA SEGMENTER_EXTRA EVALUATE_EXTRA TRIAL_EXTRA; do
    read -ra "${name?}" <<< "${!name:-}"
done

die() {
    echo "error: $*" >&2
    exit 1
}

# Runs a script of the repository within what is left of the step's time. The exit code is 124 where
# that is up, also where the script had to be killed.
run() {
    local left=$((LIMIT - SECONDS)) code=0
    timeout --foreground --kill-after=30 $((left > 1 ? left : 1)) \
        "$PYTHON" "$REPO/scripts/$1" "${@:2}" || code=$?
    [[ $code != 137 || $SECONDS -lt $LIMIT ]] || code=124
    return "$code"
}

train() {
    run train.py data=dubai data_root="$OUT/data" data.cache=ram keep_checkpoints=1 \
        "$@" "${EXTRA[@]}" "${GAN_EXTRA[@]}"
}

# The newest generator of a run's folder.
generator() {
    find "$1" -name 'G_e*.pt' | sort | tail -n 1
}

# Writes results/NAME.json: facts about the machine, and the JSON files given as KEY=FILE.
record() {
    "$PYTHON" - "$COMMIT" "$OUT/results/$1.json" "${@:2}" << 'END'
import json, platform, sys
from pathlib import Path
import torch
from geoseg_gan.utils.files import write_json

commit, target, *parts = sys.argv[1:]
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
machine = {"gpu": gpu, "cpu": platform.machine(), "threads": torch.get_num_threads()}
versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
files = dict(part.split("=", 1) for part in parts)
found = {key: json.loads(Path(path).read_text()) for key, path in files.items()}
write_json(Path(target), {"machine": machine | versions, "commit": commit, **found})
END
}

# Runs one check where that has not passed: `check NAME COMMAND ...`. A run ends by itself where a
# loss is not finite.
check() {
    local at=$OUT/checks/$1 outcome=pass code=0 message="" started=$SECONDS
    [[ ! -e $at.json ]] || grep -q '"fail"' "$at.json" || return 0
    rm -rf "${at:?}"
    "${@:2}" > "$at.log" 2>&1 || code=$?
    [[ $code != 124 ]] || exit 124
    if [[ $code != 0 ]]; then
        message=$(tail -n 1 "$at.log" | tr -cd '[:print:]' | tr -d '"\\')
        [[ $message == *"needs a GPU"* ]] && outcome=refused || outcome=fail
    fi
    echo "Check $1: $outcome."
    printf '{"outcome": "%s", "seconds": %d, "message": "%s"}\n' \
        "$outcome" $((SECONDS - started)) "$message" > "$at.json"
}

step_data() {
    run prepare.py data=dubai source="$SOURCE" data_root="$OUT/data"
}

step_segmenter() {
    run train_segmenter.py data=dubai data_root="$OUT/data" data.cache=ram resume=true epochs=20 \
        out_dir="$OUT/segmenter" "${EXTRA[@]}" "${SEGMENTER_EXTRA[@]}"
}

step_checks() {
    local at=$OUT/checks entry name files=()
    mkdir -p "$at"
    for entry in fp32:precision=32-true fp16:precision=16-mixed bf16:precision=bf16-mixed \
        channels_first:speed.channels_last=false "compile:speed.compile=[generator]" \
        ddp:trainer.strategy=ddp_find_unused_parameters_true; do
        name=${entry%%:*}
        check "$name" train experiment=recommended image_size=128 epochs=1 epoch_steps=20 \
            out_dir="$at/$name" "${entry#*:}"
        files+=("$name=$at/$name.json")
    done
    check generate run generate.py gen_ckpt="$(generator "$at/fp32")" num_samples=32 \
        save_dir="$at/generate" "${EXTRA[@]}"
    files+=("generate=$at/generate.json")
    record checks "${files[@]}"
    if grep -q '"fail"' "$OUT/results/checks.json"; then
        echo "Some checks failed: see $OUT/results/checks.json. Call again to repeat them." >&2
        PASSED=false STATUS=1
    fi
}

step_benchmark() {
    local size batch name files=()
    for name in 128px_8 256px_8 256px_32; do
        size=${name%px_*} batch=${name#*px_}
        files+=("$name=$OUT/benchmark_$name.json")
        [[ ! -e $OUT/benchmark_$name.json ]] || continue
        run dev/benchmark.py "${BENCHMARK[@]}" --json "$OUT/benchmark_$name.json" data=dubai \
            data_root="$OUT/data" data.cache=ram experiment=recommended image_size="$size" \
            bs="$batch" "${EXTRA[@]}" "${GAN_EXTRA[@]}"
    done
    record benchmark "${files[@]}"
}

# Trains a generator for MINUTES and evaluates it: `gan NAME SETTING ...`.
gan() {
    local at=$OUT/$1
    train out_dir="$at" epochs=1000 epoch_steps=500 max_minutes="$MINUTES" resume=true "${@:2}"
    run evaluate.py gen_ckpt="$(generator "$at")" segmenter_ckpt="$OUT/segmenter/segmenter.pt" \
        out_dir="$at/evaluation" controls=false "${EXTRA[@]}" "${EVALUATE_EXTRA[@]}"
    cp "$at/evaluation/samples.png" "$OUT/results/$1.png"
    record_runs
}

# Writes results/runs.json: the figures of all trainings, evaluations and the trial, so far.
record_runs() {
    local file files=()
    for file in "$OUT"/{gan128,gan256,refine}/{result,evaluation/evaluation}.json \
        "$OUT/trial/trial.json"; do
        [[ ! -e $file ]] || files+=("${file#"$OUT/"}=$file")
    done
    record runs "${files[@]}"
}

step_gan128() {
    gan gan128 experiment=recommended image_size=128
}

step_gan256() {
    gan gan256 experiment=recommended image_size=256
}

step_refine() {
    gan refine experiment=refine image_size=256 init_from="$(generator "$OUT/gan256")"
}

step_trial() {
    run trial.py data=dubai data_root="$OUT/data" data.cache=ram out_dir="$OUT/trial" \
        image_size=128 model=unet_oasis train.crops=balanced share_gan=true seeds=3 \
        "ratios=[0.25]" "arms=[real,copy_paste,synthetic_0.25]" train.epochs=30 \
        train.precision=null generate.num_samples=600 train_segmenter.epochs=10 \
        "${EXTRA[@]}" "${TRIAL_EXTRA[@]}"
    cp "$OUT"/trial/trial.{md,png} "$OUT/results"
    record_runs
}

# The package as it is here, with its configs, in a folder of its own: it need not be installed.
make_site() {
    mkdir -p "$OUT/results" "$OUT/done" "$OUT/site/geoseg_gan"
    ln -sfn "$REPO"/geoseg_gan/* "$REPO/configs" "$OUT/site/geoseg_gan"
    export PYTHONPATH=$OUT/site${PYTHONPATH:+:$PYTHONPATH}
    [[ -n ${WHEELS:-} ]] || return 0
    ls "$WHEELS"/*.whl > /dev/null 2>&1 || die "WHEELS=$WHEELS: no wheels in this folder."
    local missing
    missing=$("$PYTHON" - "$WHEELS" << 'END'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for wheel in Path(sys.argv[1]).glob("*.whl"):
    name, brought = wheel.name.split("-")[:2]
    try:
        is_there = version(name) == brought
    except PackageNotFoundError:
        is_there = False
    if not is_there:
        print(wheel.resolve())
END
    )
    [[ -z $missing ]] || xargs -d '\n' "$PYTHON" -m pip install --quiet --no-index --no-deps \
        --target "$OUT/site" <<< "$missing"
}

at_exit() {
    local code=$?
    if [[ $code == 124 ]]; then
        echo "The time of step $STEP is up: call again, and it goes on." >&2
    elif [[ $code != 0 && -n $STEP ]]; then
        echo "Step $STEP failed with exit code $code." >&2
    fi
}

[[ $# -ge 2 ]] || die "use: scripts/dev/gpu_evidence.sh OUT SOURCE [STEP ...]"
OUT=$(realpath -m "$1") SOURCE=$(realpath -m "$2") STEP="" STATUS=0
shift 2
[[ $# -gt 0 ]] || set -- "${STEPS[@]}"
for step in "$@"; do
    [[ " ${STEPS[*]} " == *" $step "* ]] || die "no step $step: use ${STEPS[*]}."
done
make_site
trap at_exit EXIT
for STEP in "$@"; do
    if [[ -e $OUT/done/$STEP ]]; then
        echo "Step $STEP is done."
        continue
    fi
    echo "Step $STEP starts."
    SECONDS=0 PASSED=true
    "step_$STEP"
    ! $PASSED || touch "$OUT/done/$STEP"
done
STEP=""
exit "$STATUS"
