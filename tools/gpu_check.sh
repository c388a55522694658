#!/usr/bin/env bash
# In under 8 minutes, what only a GPU shows, as one table: table.md and table.json in $OUT or runs/gpu_check.
#   tools/gpu_check.sh                        on a machine with one NVIDIA GPU; needs no network
#   tools/gpu_check.sh --device cpu --small   the same steps at a toy scale, anywhere
# Python is that of .venv where there is one, else python3; PYTHON=... names another. It needs torch, torchvision,
# numpy, OpenCV, SciPy, Matplotlib and PyYAML. What else sld uses may be carried along: `make gpu-bundle` packs it
# into build/gpu_check on a machine with network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-}
[[ $python ]] || { [[ -x .venv/bin/python ]] && python=.venv/bin/python || python=python3; }
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
if [[ -e build/gpu_check/packages.tar.xz ]]; then
  # what this Python has already is not replaced
  "$python" - build/gpu_check/packages.tar.xz "$packages" <<'END'
import importlib.util, sys, tarfile
with tarfile.open(sys.argv[1]) as bundle:
    for member in bundle:
        package = (member.name.removeprefix("./").split("/")[0]).split(".libs")[0]
        if not package.isidentifier() or importlib.util.find_spec(package) is None:
            bundle.extract(member, sys.argv[2], filter="data")
END
fi

export PYTHONPATH=$PWD:$PWD/tools${PYTHONPATH:+:$PYTHONPATH}:$packages PYTHONUNBUFFERED=1
"$python" -m gpu_check.check "$@"
