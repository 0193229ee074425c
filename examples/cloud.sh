#!/bin/bash
# Trains rows INDEX * ROWS up to (INDEX + 1) * ROWS of a setting, in a root of this machine that is kept as
# STORE/INDEX.tar: docs/cloud.md. Whatever ends it, the same call goes on from there.
set -euo pipefail
: "${CONFIG:?}" "${STORE:?as rclone names it}" "${INDEX:?}" "${ROWS:?a multiple of recipe.group}"
root=${ROOT:-$HOME/root}
given=("$CONFIG" --root "$root" --outputs.preallocate false ${OPTIONS:-})

save() ( # one at a time; tar leaves out what was never written, the other machines' rows
    flock 9
    tar --create --sparse --directory "$root" --file "$root.tar" . || [ $? = 1 ] || exit 1 # 1: a file changed meanwhile
    rclone copyto "$root.tar" "$STORE/$INDEX.tar"
) 9> "$root.lock"

mkdir -p "$root"
found=$(rclone lsf "$STORE") || [ $? = 3 ] # 3: there is no such folder yet; any other failure ends this
if [[ $'\n'$found$'\n' == *$'\n'"$INDEX.tar"$'\n'* ]]; then
    rclone copyto "$STORE/$INDEX.tar" "$root.tar"
    tar --extract --sparse --directory "$root" --file "$root.tar"
    datamodels repair "${given[@]}" # what was saved while a row was written may lack bytes of it
else
    datamodels init "${given[@]}"
fi

train='' stopped=''
# When the machine is taken away, the training ends, and its last rows are still saved.
trap 'stopped=1; [ -z "$train" ] || kill -TERM $train' TERM INT
datamodels train "${given[@]}" --rows "$((INDEX * ROWS)):$(((INDEX + 1) * ROWS))" &
train=$!
[ -z "$stopped" ] || kill -TERM $train
while sleep "${SAVE_SECONDS:-600}" &>/dev/null; do save || true; done &
saves=$!
wait $train || true # a signal ends this wait, not the training
code=0
wait $train || code=$?
kill $saves
save
exit $code
