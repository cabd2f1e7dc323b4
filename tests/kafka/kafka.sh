#!/usr/bin/env bash
# A real Apache Kafka for the tests: KRaft mode, loopback only, nothing but java, mvn and python3.
#
#   kafka.sh fetch                        bring the jars from Maven Central into .kafka/libs, once
#   kafka.sh start [--brokers N]          start N brokers (1; each is a controller too) and wait until
#                  [--port BASE]          all accept requests; the last line is the bootstrap servers.
#                  [--while-pid PID]      BASE: N ports from BASE for clients, the next N for controllers
#                                         (default: free ones). PID: stop by itself once PID has ended.
#   kafka.sh stop                         kill every broker and delete the data; the logs stay
#   kafka.sh kill ID                      kill -9 one broker (1 to N)
#   kafka.sh start-broker ID              start that broker again on its data, and wait for it
#   kafka.sh topic create NAME [--partitions P] [--replication-factor R] [--config KEY=VALUE]
#                                         any other verb and option of TopicCommand (describe, list,
#                                         delete, alter) goes as well
#
# Each takes --dir DIR, the cluster's folder (default .kafka/run): DIR/server-ID.log, DIR/bootstrap.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
libs=$root/.kafka/libs
dir=$root/.kafka/run
brokers=1
port=
while_pid=
ready_within=60 # seconds

say() { echo "kafka.sh: $*" >&2; }
die() { say "$*"; exit 1; }

need_java() {
    command -v java >/dev/null || die "java is missing; install Java 17 or later (Debian: apt-get install openjdk-17-jre-headless)"
    local version
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge 17 ] || die "java is version ${version:-unknown}; Kafka 4 needs 17 or later (Debian: apt-get install openjdk-17-jre-headless)"
}

fetch() {
    need_java
    if cmp -s "$here/pom.xml" "$libs/pom.xml"; then return; fi
    command -v mvn >/dev/null || die "mvn is missing; install Maven (Debian: apt-get install maven)"
    say "bringing Apache Kafka from Maven Central into .kafka/libs"
    local part=$libs.part.$$
    mvn --batch-mode --quiet -Dstyle.color=never --strict-checksums --file "$here/pom.xml" \
        dependency:copy-dependencies -DoutputDirectory="$part" >&2 ||
        { rm -rf "$part"; die "Maven could not bring Kafka (see above); check the network or Maven's settings.xml"; }
    cp "$here/pom.xml" "$part/"
    rm -rf "$libs"
    mv "$part" "$libs"
}

# tool CLASS ARGS...: a short-lived Kafka command.
tool() {
    java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dkafka.log.level=warn \
        -Dlog4j2.configurationFile="$here/log4j2.xml" -cp "$libs/*" "$@"
}

properties() { echo "$dir/server-$1.properties"; }

alive() { # ID; by command line, since a pid is used again by others
    local pid
    pid=$(cat "$dir/server-$1.pid" 2>/dev/null) || return 1
    if [ -d /proc/self ]; then
        grep -qaF "$(properties "$1")" "/proc/$pid/cmdline" 2>/dev/null
    else
        ps -o args= -p "$pid" | grep -qF "$(properties "$1")"
    fi
}

known() { # ID
    [ -n "$1" ] || die "say which broker, 1 to N"
    [ -f "$(properties "$1")" ] || die "${dir#"$root"/} has no broker '$1'; start the cluster first"
}

launch() { # ID
    # A session of its own, so that Ctrl-C in a test's terminal is not the broker's.
    # shellcheck disable=SC2016
    python3 -c 'import os, sys; os.setsid(); os.execvp("java", ["java", *sys.argv[1:]])' \
        -Xms128m -Xmx512m -XX:+UseSerialGC -Djava.io.tmpdir="$dir" -Dlog4j2.configurationFile="$here/log4j2.xml" \
        -cp "$libs/*" kafka.Kafka "$(properties "$1")" >"$dir/server-$1.log" 2>&1 </dev/null &
    echo $! >"$dir/server-$1.pid"
}

await() { # ID; logged once the broker has joined the cluster and its listener is open
    local deadline=$((SECONDS + ready_within))
    until grep -q "Kafka Server started" "$dir/server-$1.log"; do
        kill -0 "$(cat "$dir/server-$1.pid")" 2>/dev/null || fail "$1" "ended while it started"
        [ $SECONDS -lt $deadline ] || fail "$1" "was not ready within $ready_within s"
        sleep 0.1
    done
}

fail() { # ID WHAT
    grep -E " (ERROR|FATAL) |Exception" "$dir/server-$1.log" | head -n 5 >&2 || tail -n 5 "$dir/server-$1.log" >&2
    if [ "$verb" = start ]; then stop; else kill_broker "$1"; fi
    die "broker $1 $2: see above, and ${dir#"$root"/}/server-$1.log"
}

kill_broker() { # ID
    if ! alive "$1"; then return; fi
    local pid
    pid=$(cat "$dir/server-$1.pid")
    kill -9 "$pid"
    while alive "$1"; do sleep 0.05; done
}

each_broker() { # COMMAND, called with every ID in DIR
    local file id
    for file in "$dir"/server-*.properties; do
        [ -e "$file" ] || continue
        id=${file##*server-}
        "$1" "${id%.properties}"
    done
}

stop() {
    each_broker kill_broker
    # A killed broker leaves the native libraries that it unpacked.
    rm -rf "$dir"/data-* "$dir"/liblz4-* "$dir"/libzstd-* "$dir"/server-*.pid "$dir"/server-*.properties "$dir/bootstrap"
}

# Every listener's port: N for clients, then N for controllers.
ports() {
    if [ -n "$port" ]; then
        seq "$port" $((port + 2 * brokers - 1))
    else
        python3 - $((2 * brokers)) <<'PY'
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held), sep="\n")
PY
    fi
}

configure() {
    # shellcheck disable=SC2046
    set -- $(ports)
    local id voters="" bootstrap="" in_sync=$((brokers > 1 ? 2 : 1))
    for id in $(seq "$brokers"); do
        local controller=$((brokers + id))
        voters=$voters${voters:+,}$id@127.0.0.1:${!controller}
        bootstrap=$bootstrap${bootstrap:+,}127.0.0.1:${!id}
    done
    for id in $(seq "$brokers"); do
        local controller=$((brokers + id))
        cat >"$(properties "$id")" <<CONF
process.roles=broker,controller
node.id=$id
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:${!id},CONTROLLER://127.0.0.1:${!controller}
advertised.listeners=PLAINTEXT://127.0.0.1:${!id}
log.dirs=$dir/data-$id

auto.create.topics.enable=false
num.partitions=3
default.replication.factor=$brokers
min.insync.replicas=$in_sync

offsets.topic.num.partitions=3
offsets.topic.replication.factor=$brokers
transaction.state.log.num.partitions=3
transaction.state.log.replication.factor=$brokers
transaction.state.log.min.isr=$in_sync
share.coordinator.state.topic.num.partitions=3
share.coordinator.state.topic.replication.factor=$brokers
share.coordinator.state.topic.min.isr=$in_sync

# Tests do not wait: groups form at once, and a dead member or broker is noticed in seconds.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# The default of 128 MB is a quarter of the heap.
log.cleaner.dedupe.buffer.size=8388608
CONF
    done
    echo "$bootstrap" >"$dir/bootstrap"
}

format_storage() { # ID
    tool kafka.tools.StorageTool format --cluster-id residuald-kafka-tests \
        --config "$(properties "$1")" >"$dir/server-$1.log" 2>&1
}

start() {
    fetch
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if alive 1; then die "a cluster runs in ${dir#"$root"/} at $(cat "$dir/bootstrap"); stop it first, or give another --dir"; fi
    stop
    configure
    local id formats=""
    for id in $(seq "$brokers"); do
        format_storage "$id" &
        formats="$formats $!"
    done
    for id in $formats; do
        wait "$id" || { cat "$dir"/server-*.log >&2; die "the storage could not be formatted, see above"; }
    done
    each_broker launch
    each_broker await
    if [ -n "$while_pid" ]; then
        (trap '' HUP INT; while kill -0 "$while_pid" 2>/dev/null && alive_any; do sleep 0.5; done; stop) >/dev/null 2>&1 </dev/null &
    fi
    cat "$dir/bootstrap"
}

alive_any() {
    local file
    for file in "$dir"/server-*.pid; do [ -e "$file" ] && return; done
    return 1
}

topic() { # VERB NAME OPTIONS...
    [ $# -ge 1 ] || die "topic wants a verb: create, delete, list, describe, alter"
    [ -f "$dir/bootstrap" ] || die "no cluster runs in ${dir#"$root"/}; start one first"
    local verb=$1 name=()
    shift
    if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then name=(--topic "$1"); shift; fi
    tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$(cat "$dir/bootstrap")" \
        "--$verb" ${name[@]+"${name[@]}"} "$@"
}

[ $# -ge 1 ] || set -- --help
verb=$1
shift
rest=()
while [ $# -gt 0 ]; do
    case "$verb $1" in
        *" --dir") dir=${2:?--dir wants a folder}; shift ;;
        "start --brokers") brokers=${2:?--brokers wants a number}; shift ;;
        "start --port") port=${2:?--port wants a number}; shift ;;
        "start --while-pid") while_pid=${2:?--while-pid wants a process id}; shift ;;
        "topic "* | "kill "[0-9]* | "start-broker "[0-9]*) rest+=("$1") ;;
        *) die "unknown argument '$1' of $verb; see --help" ;;
    esac
    shift
done
[ ! -d "$dir" ] || dir=$(cd "$dir" && pwd)

case $verb in
    fetch) fetch ;;
    start) start ;;
    stop) stop ;;
    kill) known "${rest[0]-}"; kill_broker "${rest[0]}" ;;
    start-broker)
        known "${rest[0]-}"
        if alive "${rest[0]}"; then die "broker ${rest[0]} runs already"; fi
        launch "${rest[0]}"
        await "${rest[0]}"
        ;;
    topic) topic ${rest[@]+"${rest[@]}"} ;;
    -h | --help | help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
    *) die "unknown command '$verb'; see --help" ;;
esac
