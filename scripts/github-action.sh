#!/bin/sh
# The steps of action.yml, as a runner of GitHub or Forgejo calls them: what it hands over are the variables INPUT_* and
# GITHUB_*.
set -eu

name=sccache-dock
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
manage=$here/sccache-docker-manage.sh
folder=${RUNNER_TEMP:-/tmp}/sccache-dock

# As the runner shows errors.
fail() {
    printf '::error title=%s::%s%%0Ahint: %s\n' "$name" "$1" "$2"
    exit 1
}

# Programs of the image where the runner has none.
programs() {
    if command -v sccache >/dev/null 2>&1 && command -v sccache-dock >/dev/null 2>&1; then return; fi
    [ -n "${INPUT_IMAGE:-}" ] || fail "this runner has no sccache and sccache-dock on its PATH" \
        "name an image to take them from (image: REGISTRY/NAME:TAG), or install them"
    SCCACHE_DOCK_IMAGE=$INPUT_IMAGE "$manage" install-client "$folder/bin"
    echo "$folder/bin" >>"$GITHUB_PATH"
    PATH=$folder/bin:$PATH
    export PATH
}

# Appends the variables of the set to the job's, and hides the token in the log.
export_set() {
    mkdir -p "$folder"
    (umask 077 && "$@" >"$folder/set")
    sed -n 's/^SCCACHE_WEBDAV_TOKEN=/::add-mask::/p' "$folder/set"
    cat "$folder/set" >>"$GITHUB_ENV"
    if [ "${INPUT_PREFETCH:-false}" = true ]; then
        # Before sccache's daemon starts, which looks at its disk once; the build goes on without.
        (
            while IFS= read -r line; do export "${line?}"; done <"$folder/set"
            sccache-dock prefetch || true
        )
    fi
    endpoint=$(sed -n 's/^SCCACHE_WEBDAV_ENDPOINT=//p' "$folder/set")
    rm "$folder/set"
    echo "endpoint=$endpoint" >>"$GITHUB_OUTPUT"
    echo "the cache is at $endpoint"
}

# The token of a session, for the ID token that the job may ask for; nothing for jobs that may not.
log_in() {
    if [ -z "${ACTIONS_ID_TOKEN_REQUEST_URL:-}" ] && [ -z "${SCCACHE_ID_TOKEN:-}" ]; then
        [ -n "${INPUT_TOKEN:-}" ] || fail "this job can ask for no ID token, and there is no token" \
            "permissions: id-token: write; pull requests of forks get none: give them a token that may only read"
        echo "this job can ask for no ID token: the token is used"
        return
    fi
    set -- --format token --endpoint "$INPUT_ENDPOINT"
    [ -z "${INPUT_AUDIENCE:-}" ] || set -- "$@" --audience "$INPUT_AUDIENCE"
    INPUT_TOKEN=$(sccache-dock login --oidc "$@") || exit 1
    echo "::add-mask::$INPUT_TOKEN"
}

start() {
    [ -z "${INPUT_TOKEN:-}" ] || echo "::add-mask::$INPUT_TOKEN"
    mkdir -p "$folder"
    date +%s >"$folder/started"
    set -- --format github
    [ "${INPUT_PREFETCH:-false}" = true ] || set -- "$@" --no-disk
    [ -z "${INPUT_NAMESPACE:-}" ] || set -- "$@" --namespace "$INPUT_NAMESPACE"
    if [ -n "${INPUT_ENDPOINT:-}" ]; then
        [ -n "${INPUT_TOKEN:-}" ] || [ "${INPUT_OIDC:-false}" = true ] || fail "there is no token for $INPUT_ENDPOINT" \
            "token: \${{ secrets.SCCACHE_WEBDAV_TOKEN }}; secrets are empty in workflows of forks: if: \${{ secrets... }} leaves this step out there"
        programs
        [ "${INPUT_OIDC:-false}" != true ] || log_in
        export SCCACHE_AUTH_TOKEN="$INPUT_TOKEN"
        export_set sccache-dock client-env "$@" --endpoint "$INPUT_ENDPOINT"
        return
    fi
    [ -z "${INPUT_IMAGE:-}" ] || export SCCACHE_DOCK_IMAGE="$INPUT_IMAGE"
    [ -z "${INPUT_TOKEN:-}" ] || export SCCACHE_AUTH_TOKEN="$INPUT_TOKEN"
    [ -z "${INPUT_UPSTREAM:-}" ] || export SCCACHE_UPSTREAM="$INPUT_UPSTREAM"
    # A cache that runs already, of another job or for good, is used, and is not this job's to remove.
    rm -f "$folder/container"
    export SCCACHE_CONTAINER_ID_FILE="$folder/container"
    if [ -n "${INPUT_FOLDER:-}" ]; then
        "$manage" start persistent "$INPUT_FOLDER" >/dev/null
    else
        "$manage" start ephemeral >/dev/null
    fi
    [ ! -s "$folder/container" ] || echo "SCCACHE_DOCK_STARTED=$(cat "$folder/container")" >>"$GITHUB_ENV"
    programs
    export_set "$manage" env "$@"
}

report() {
    echo "::group::sccache"
    sccache --show-stats || true
    echo "::endgroup::"
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
        {
            echo "### Compiler cache"
            echo '```text'
            sccache --show-stats | sed -n '/^Compile requests/p; /^Cache hits/p; /^Cache misses/p; /^Cache errors/p; /^Non-cacheable/p' || true
            echo '```'
        } >>"$GITHUB_STEP_SUMMARY"
        # A runner that stays has reports of earlier jobs too.
        ended=$(sccache-dock explain --json 2>/dev/null | grep -o '"ended_unix_seconds": *[0-9]*' | head -n 1 | grep -o '[0-9]*$') || true
        if [ "${ended:-0}" -ge "$(cat "$folder/started" 2>/dev/null || echo 1)" ]; then
            sccache-dock explain --report "markdown=$GITHUB_STEP_SUMMARY"
        fi
    fi
    # What is passed on to the shared cache in the background is passed on before the job's machine goes.
    sccache --stop-server >/dev/null 2>&1 || true
    if [ -n "${SCCACHE_DOCK_STARTED:-}" ]; then
        # By its id.
        export SCCACHE_CONTAINER_NAME="$SCCACHE_DOCK_STARTED"
        echo "::group::cache"
        "$manage" status || true
        echo "::endgroup::"
        "$manage" remove
    fi
}

case ${1:-} in
start) start ;;
report) report ;;
*) fail "there is no step \"${1:-}\"" "start or report" ;;
esac
