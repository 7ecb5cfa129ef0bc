#!/bin/bash
# What stands in for images of registries: Debian packages, unpacked. standin.sh python|services FILE
# python: for python:3.11-slim-bookworm, and below programs that are linked dynamically. services: for postgres and
# eclipse-mosquitto, as far as compose.yaml asks of them.
set -euo pipefail
export SOURCE_DATE_EPOCH=1767225600
case $1 in
    python) packages=python3,libstdc++6,libgcc-s1,busybox-static ;;
    services) packages=postgresql-15,mosquitto,util-linux,busybox-static ;;
esac
prepare=$(mktemp)
trap 'rm -f "$prepare"' EXIT
cat >"$prepare" <<'HOOK'
set -eu
mkdir -p "$1/bin" "$1/etc" "$1/tmp" "$1/root"
chmod 1777 "$1/tmp"
for applet in $(busybox --list); do
    [ -e "$1/bin/$applet" ] || [ -e "$1/usr/bin/$applet" ] || ln -s busybox "$1/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\nmosquitto:x:1883:1883::/:/bin/sh\n' >"$1/etc/passwd"
printf 'root:x:0:\npostgres:x:999:\nmosquitto:x:1883:\n' >"$1/etc/group"
[ -d "$1/usr/lib/postgresql" ] || exit 0
for program in psql pg_isready; do ln -sf "/usr/lib/postgresql/15/bin/$program" "$1/usr/bin/$program"; done
cat >"$1/entrypoint.sh" <<'ENTRYPOINT'
#!/bin/sh
# As the official image: the first start makes the database, with a password that is in a file.
set -eu
data=/var/lib/postgresql/data
bin=/usr/lib/postgresql/15/bin
as() { /usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
cd /tmp
if [ ! -s $data/PG_VERSION ]; then
    chown postgres:postgres $data
    chmod 0700 $data
    as $bin/initdb -N -E UTF8 --locale=C -U "$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 \
        --pwfile="$POSTGRES_PASSWORD_FILE" -D $data
    echo 'host all all all scram-sha-256' >>$data/pg_hba.conf
    as $bin/pg_ctl -D $data -o "-h '' -k /tmp" -w start
    as $bin/createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
    as $bin/pg_ctl -D $data -m fast -w stop
fi
exec /usr/bin/setpriv --reuid=postgres --regid=postgres --clear-groups $bin/postgres -D $data -h '*' -k /tmp
ENTRYPOINT
chmod 0755 "$1/entrypoint.sh"
HOOK
mmdebstrap --quiet --variant=extract --include="$packages" --format=tar --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/*' --dpkgopt='path-include=/usr/share/postgresql/*' \
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' --dpkgopt='path-exclude=*/llvmjit*' \
    --dpkgopt='path-exclude=*/bitcode/*' --dpkgopt='path-exclude=/usr/lib/*/perl/*' --dpkgopt='path-exclude=*/libz3*' \
    --extract-hook="sh $prepare \"\$1\"" bookworm "$2.part"
mv "$2.part" "$2"
