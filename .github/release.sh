#!/usr/bin/env bash
# Make the files of a release from a tag or a commit, byte for byte the same each time:
#
#     .github/release.sh v3.0.0 dist
#
# They are the script, the lock file of its packages, a CycloneDX SBOM of these, and SHA256SUMS.
# Needs git, Python 3.11 or newer with venv (PYTHON=python3.13 chooses one), and PyPI for the tool
# that makes the SBOM.
set -euo pipefail
if [ $# != 2 ]; then
    echo "usage: $0 TAG-OR-COMMIT FOLDER" >&2
    exit 2
fi
mkdir -p "$2"
folder=$(cd "$2" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "$2 is not empty" >&2
    exit 1
fi
cd "$(dirname "$0")/.."
commit=$(git rev-parse --verify "$1^{commit}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

git show "$commit:duo_collector.py" >"$folder/duo_collector.py"
git show "$commit:deploy/requirements.lock" >"$folder/requirements.lock"
git show "$commit:.github/sbom.lock" >"$scratch/sbom.lock"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$folder/duo_collector.py")
if [[ $1 = v[0-9]* && $1 != "v$version" ]]; then
    echo "tag $1 is on version $version" >&2
    exit 1
fi

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$scratch/sbom.lock"
printf '[project]\nname = "duo_collector"\nversion = "%s"\nlicense = "Apache-2.0"\n' "$version" >"$scratch/pyproject.toml"
# With --output-reproducible there is no serial number, and the time is the commit's. The warning is
# that a lock file does not say which packages are required directly.
SOURCE_DATE_EPOCH=$(git show --no-patch --format=%ct "$commit") PYTHONWARNINGS=ignore \
    "$scratch/venv/bin/cyclonedx-py" requirements --index-url https://pypi.org/simple --output-reproducible \
    --pyproject "$scratch/pyproject.toml" --output-file "$folder/duo_collector.cdx.json" "$folder/requirements.lock"
(cd "$folder" && sha256sum duo_collector.cdx.json duo_collector.py requirements.lock >SHA256SUMS)
cat "$folder/SHA256SUMS"
