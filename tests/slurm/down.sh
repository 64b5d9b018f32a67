#!/usr/bin/env bash
# End what up.sh started in this folder, jobs first: down.sh FOLDER
set -u
folder=$(cd "$1" && pwd) || exit 0
if [ -s "$folder/environment" ]; then
    while IFS= read -r line; do export "${line?}"; done < "$folder/environment"
    scancel --quiet --user "$(id -un)" --signal KILL --full 2> /dev/null
    scancel --quiet --user "$(id -un)" 2> /dev/null
    for _ in $(seq 50); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep 0.2
    done
fi
for daemon in slurmd slurmctld munged; do
    [ -s "$folder/$daemon.pid" ] || continue
    pid=$(cat "$folder/$daemon.pid")
    if [ "$daemon" = slurmd ]; then # the others have nothing to put in order
        kill "$pid" 2> /dev/null
        for _ in $(seq 50); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.1
        done
    fi
    kill -KILL "$pid" 2> /dev/null
done
if [ -s "$folder/links" ]; then
    links=$(cat "$folder/links")
    rm -f "$links"/* && rmdir "$links" && rm "$folder/links"
fi
exit 0
