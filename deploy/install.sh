#!/bin/sh
# Install metricunet from this bundle into a folder, without a network:   ./install.sh DIR
#
# DIR/bin/metricunet is the program. A later bundle is installed into the folder of an earlier one: the environment of
# the new bundle is complete before bin/metricunet leads to it, and models and settings that are there stay as they are.
# An installation that broke off is made good by calling this again.
# PYTHON names the interpreter (default: python3), which must have the version that the bundle was made for.
set -eu
umask 022

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

[ $# -eq 1 ] || fail "expected the folder to install into, such as ./install.sh /opt/metricunet"
here=$(cd "$(dirname "$0")" && pwd)
read -r version < "$here/VERSION"
read -r tag < "$here/PYTHON"
python=${PYTHON:-python3}
case $1 in
    *[!A-Za-z0-9_./-]* | -* | "") fail "$1: expected a path of letters, digits and . _ - / alone; choose another folder" ;;
esac
command -v "$python" > /dev/null || fail "there is no $python; install Python, or say PYTHON=/path/to/python3"
found=$("$python" -c 'import sys, sysconfig
print(f"cp{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}")') || fail "$python does not run"
[ "$found" = "$tag" ] || fail "$python is $found, and this bundle is for $tag; say PYTHON=/path/to/that/python3"
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "files of the bundle are damaged or missing; copy it again"

mkdir -p "$1"
folder=$(cd "$1" && pwd)
if [ -e "$folder/bin" ] && [ ! -L "$folder/current" ] && [ -n "$(ls -A "$folder/bin")" ]; then
    fail "$folder: holds something else in bin; choose another folder"
fi
exec 9> "$folder/.lock"
flock -n 9 || fail "$folder: another installation is at work there; wait for its end"
hashed() {
    sha256sum < "$1" | cut -c 1-12
}
# The requirements hold the hash of every wheel, so another bundle of the same version has an environment of its own.
environment=$folder/env-$version-$(hashed "$here/requirements.txt")
if [ -e "$environment/complete" ]; then
    echo "$environment is there already"
else
    rm -rf "$environment" # of an installation that was interrupted
    "$python" -m venv "$environment" || fail "$python cannot make an environment; on Debian: apt install python3-venv"
    PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 "$environment/bin/python" -m pip install \
        --quiet --isolated --no-index --no-cache-dir --no-deps --require-hashes --only-binary :all: \
        --find-links "$here/wheels" --requirement "$here/requirements.txt"
    "$environment/bin/python" -m pip --isolated check > /dev/null || fail "packages of the bundle do not fit each other"
    "$environment/bin/metricunet" --version > /dev/null
    touch "$environment/complete"
fi

mkdir -p "$folder/models"
for model in "$here"/models/*; do
    target=$folder/models/$(basename "$model")
    # An earlier model stays under its name, so that a new bundle changes no contour until the settings name its model.
    if [ -e "$target" ] && ! cmp -s "$model" "$target"; then
        target=${target%.safetensors}-$version-$(hashed "$model").safetensors
        echo "the model of this bundle: $target"
    fi
    cp "$model" "$target.partial"
    mv "$target.partial" "$target"
done
for part in pages licences; do
    rm -rf "$folder/$part-$version"
    cp -R "$here/$part" "$folder/$part-$version"
    ln -sfn "$part-$version" "$folder/.partial-$part"
    mv -T "$folder/.partial-$part" "$folder/$part"
done
for name in node.yaml metricunet-node.service; do
    [ ! -e "$folder/$name" ] || continue
    sed "s#/opt/metricunet\([/ ]\)#$folder\1#g" "$here/$name" > "$folder/.partial-$name"
    mv "$folder/.partial-$name" "$folder/$name"
done
ln -sfn "$(basename "$environment")" "$folder/.partial-current"
mv -T "$folder/.partial-current" "$folder/current"
mkdir -p "$folder/bin" # last: a folder that has it and no current is somebody else's
ln -sfn ../current/bin/metricunet "$folder/bin/metricunet"
"$folder/bin/metricunet" --version
echo "the program: $folder/bin/metricunet; how to go on: $folder/pages/node.html"
