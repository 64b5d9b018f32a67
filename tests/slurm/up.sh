#!/usr/bin/env bash
# One-node Slurm (munge, controller, daemon) in a folder, run by the calling user: up.sh FOLDER [CPUS]
# Of the host where it is on PATH, else of the distribution's packages, unpacked next to the checkout and not
# installed. FOLDER/environment then holds the variables its commands need; down.sh FOLDER ends it.
# Exit code 69: Slurm is not to be had here; the reason is the last line.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${UNLEARN_SLURM:-$here/../../.slurm}
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cpus=${2:-4}

unavailable() { echo "$1" >&2; "$here/down.sh" "$folder"; exit 69; }

# slurm.conf cannot quote, search paths end at a colon, and the name of a socket has at most 107 bytes: Slurm gets
# every path below a short folder of links.
links=
for parent in "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm; do
    case $parent in *[!A-Za-z0-9/._-]*) continue ;; esac
    [ "${#parent}" -le 60 ] && links=$(mktemp -d "$parent/slurm.XXXXXX" 2> /dev/null) && break
done
[ -n "$links" ] || unavailable "no folder for temporary files has a short name of letters, digits and . _ - that Slurm can read: set TMPDIR"
ln -s "$folder" "$links/folder"
ln -s "$here/shim" "$links/shim"
echo "$links" > "$folder/links"
cluster=$links/folder

unpack() { # into $cache/root, which appears when it is whole; lists and archives are separate from those of the system
    command -v apt-get dpkg > /dev/null || unavailable "Slurm is not installed, and there is no apt-get to get it with"
    local own=(-o "Dir::State::Lists=$cache/lists" -o "Dir::Cache=$cache/archives" -o APT::Sandbox::User=root -q)
    local wanted=(slurmctld slurmd slurm-client munge) new="$cache/new" packages
    mkdir -p "$cache/lists/partial" "$cache/archives/archives/partial"
    rm -rf "$new" && mkdir "$new"
    apt-get "${own[@]}" update > "$cache/log" 2>&1 || unavailable "Slurm is not installed, and apt-get update fails: $(tail -n 1 "$cache/log")"
    packages=$(apt-get "${own[@]}" --simulate --no-install-recommends install "${wanted[@]}" 2>> "$cache/log" | awk '$1 == "Inst" {print $2}')
    [ -n "$packages" ] || unavailable "Slurm is not installed, and apt-get knows no ${wanted[*]}"
    # shellcheck disable=SC2086
    (cd "$new" && apt-get "${own[@]}" download $packages) >> "$cache/log" 2>&1 || unavailable "Slurm is not installed, and its packages cannot be downloaded: $(tail -n 1 "$cache/log")"
    for package in "$new"/*.deb; do dpkg -x "$package" "$new"; done
    rm -rf "$new"/*.deb "$cache/lists" "$cache/archives"
    mv "$new" "$cache/root"
}

PATH=$PATH:/usr/sbin:/sbin # not on everybody's
plugins=
if ! type slurmctld slurmd munged > /dev/null 2>&1; then
    mkdir -p "$cache" && echo "*" > "$cache/.gitignore"
    ln -s "$(cd "$cache" && pwd)" "$links/cache"
    cache=$links/cache
    exec 9> "$cache/lock" && flock 9
    [ -d "$cache/root" ] || unpack
    flock -u 9 && exec 9>&-
    libraries=$(dirname "$(find "$cache/root/usr/lib" -name libmunge.so.2 | head -n 1)")
    plugins=$libraries/slurm-wlm
    export PATH="$links/shim:$cache/root/usr/bin:$cache/root/usr/sbin:$PATH"
    export LD_LIBRARY_PATH="$plugins:$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    for name in slurmctld slurmd slurmstepd; do # the packages leave these names to a script at installation
        ln -sf "$name-wlm" "$cache/root/usr/sbin/$name"
    done
else
    export PATH="$links/shim:$PATH"
fi

read -r controller daemon < <(python3 - <<'PY'
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(probe.getsockname()[1] for probe in probes))
PY
)
host=$(hostname -s)
user=$(id -un)
rm -rf "$cluster/state" "$cluster/spool"
mkdir "$cluster/state" "$cluster/spool"
(umask 077 && head -c 1024 /dev/urandom > "$cluster/munge.key")
cat > "$cluster/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$daemon
SlurmUser=$user
SlurmdUser=$user
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$cluster/munge.socket
${plugins:+PluginDir=$plugins}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.pid
SlurmdSpoolDir=$cluster/spool
StateSaveLocation=$cluster/state
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=3600
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF=$cluster/slurm.conf
{
    echo "PATH=$PATH"
    echo "SLURM_CONF=$SLURM_CONF"
    [ -z "$plugins" ] || echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
} > "$cluster/environment"

munged --force --key-file "$cluster/munge.key" --socket "$cluster/munge.socket" --pid-file "$cluster/munged.pid" \
    --log-file "$cluster/munged.log" --seed-file "$cluster/munge.seed" --num-threads 2
slurmctld -i -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -d "$(command -v slurmstepd)"
for _ in $(seq 150); do
    sinfo --noheader --format %t 2> /dev/null | grep -q idle && exit 0
    sleep 0.2
done
tail -n 20 "$cluster"/*.log >&2
"$here/down.sh" "$folder"
exit 1
