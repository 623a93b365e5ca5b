#!/bin/sh
# Run a .tflite as an ARM64 phone would, under qemu-user, and compare with this machine. Debian or Ubuntu; no root rights.
# usage: benchmarks/arm64.sh MODEL.tflite IMAGES [PYTHON [FOLDER]]
# Needs qemu-user (apt-get install qemu-user). FOLDER (default .arm64) gets an ARM64 Python from Debian and the wheels.
set -eu
model=$1 images=$2 python=${3:-python3} folder=${4:-.arm64}
# The wheels of 2.2 and 2.3 end in a segmentation fault under qemu 7.2 as soon as they make an interpreter.
litert=${LITERT:-ai-edge-litert>=2.1,<2.2}
command -v qemu-aarch64 >/dev/null || { echo "qemu-aarch64 is missing: apt-get install qemu-user" >&2; exit 2; }

if [ ! -e "$folder/ready" ]; then
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/root"
    : >"$folder/status"
    here=$(cd "$folder" && pwd)
    fetch() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$here/lists" \
            -o Dir::State::status="$here/status" -o Dir::Cache="$here/cache" "$@"
    }
    fetch update
    fetch install -y --no-install-recommends --download-only python3 libpython3-stdlib libstdc++6
    for package in "$folder"/cache/archives/*.deb; do dpkg -x "$package" "$folder/root"; done
    version=$(basename "$(ls "$folder"/root/usr/bin/python3.[0-9]* | head -1)")
    "$python" -m pip install --quiet --disable-pip-version-check --target "$folder/site" --only-binary=:all: \
        --python-version "${version#python}" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 "$litert" numpy pillow pycocotools
    echo "$version" >"$folder/ready"
fi

# An emulated picture takes a minute or so.
"$python" -m benchmarks.runtimes "$model" "$images" --count="${COUNT:-1}" --save="$folder/here.npz"
PYTHONPATH="$folder/site:." qemu-aarch64 -cpu cortex-a76 -L "$folder/root" "$folder/root/usr/bin/$(cat "$folder/ready")" \
    -m benchmarks.runtimes "$model" "$images" --count="${COUNT:-1}" --against="$folder/here.npz" \
    --tolerance="${TOLERANCE:-1e-3}"
