#!/usr/bin/env bash
# Runs a real Apache Kafka for tests, in KRaft mode and on loopback. Needs only java, mvn, python3 and, if secure, openssl.
#
#   kafka.sh fetch                        download the jars from Maven Central into .kafka/libs, once
#   kafka.sh start [--brokers N]          start N brokers (1; each is a controller too) and wait until
#                  [--port BASE]          all accept requests; the last line is the bootstrap servers.
#                  [--while-pid PID]      BASE: N ports from BASE for clients, the next N for controllers
#                                         (default: free ones). PID: stop when the process PID has exited.
#                  [--proxied PORT]       each broker also listens for a proxy: it advertises
#                                         127.0.0.1:(PORT+ID-1), where the proxy must listen. DIR/proxied
#                                         has one line per broker, by ID: ADVERTISED_PORT REAL_PORT.
#                  [--secure]             each broker also has the listeners TLS, MTLS (needs a certificate)
#                                         and SASL (over TLS; SCRAM-SHA-512 and PLAIN), see DIR/bootstrap-tls,
#                                         -mtls, -sasl. Users: scram with password scram-s3cret, plain with
#                                         plain-s3cret. In DIR/tls, each with .pem and .key: ca, broker, client,
#                                         and untrusted-ca, untrusted-client, which no broker trusts;
#                                         client.encrypted.key needs the passphrase key-s3cret.
#                  [--kerberos DIR]       each broker also has the listener KERBEROS (GSSAPI, no TLS), see
#                                         bootstrap-kerberos; DIR holds krb5.conf and broker.keytab with
#                                         kafka/127.0.0.1, and its KDC must run.
#                  [--controller-apart]   the only broker has its controller in another process, ID 2. A broker
#                                         stopped for some seconds is then fenced, and its metadata lists no brokers.
#   kafka.sh stop                         kill every broker and delete the data; logs are kept
#   kafka.sh kill ID                      kill -9 one broker (1 to N)
#   kafka.sh stop-broker ID               SIGTERM: the broker hands over its partitions; wait until it has exited
#   kafka.sh start-broker ID              start that broker again on its data, and wait for it
#   kafka.sh topic create NAME [--partitions P] [--replication-factor R] [--config KEY=VALUE]
#                                         also takes the other verbs and options of TopicCommand (describe,
#                                         list, delete, alter)
#
#   kafka.sh group OPTIONS                ConsumerGroupCommand, for instance --delete-offsets --group G --topic T
#
# Each takes --dir DIR, the cluster's folder (default .kafka/run): DIR/server-ID.log (before its last start:
# DIR/server-ID.before.log), DIR/bootstrap.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
libs=$root/.kafka/libs
dir=$root/.kafka/run
brokers=1
port=
proxied=
secure=
kerberos=
apart=
while_pid=
ready_within=60 # seconds, and for a broker that is asked to stop as well

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
        { rm -rf "$part"; die "Maven could not download Kafka (see above); check the network or Maven's settings.xml"; }
    cp "$here/pom.xml" "$part/"
    rm -rf "$libs"
    mv "$part" "$libs"
}

# tool CLASS ARGS...: runs a short-lived Kafka command.
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
    [ -n "$1" ] || die "the ID of a broker is missing; pass 1 to N"
    [ -f "$(properties "$1")" ] || die "${dir#"$root"/} has no broker '$1'; start the cluster first"
}

launch() { # ID
    # A separate session, so that Ctrl-C in a test's terminal does not reach the broker.
    # shellcheck disable=SC2016
    local realm=()
    [ ! -e "$dir/kerberos" ] || realm=("-Djava.security.krb5.conf=$dir/kerberos/krb5.conf")
    [ ! -e "$dir/server-$1.log" ] || cat "$dir/server-$1.log" >>"$dir/server-$1.before.log"
    # Kafka reads the keys only of issuers that this property allows.
    python3 -c 'import os, sys; os.setsid(); os.execvp("java", ["java", *sys.argv[1:]])' \
        "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://$dir/oauth/jwks.json" \
        "-Dorg.apache.kafka.sasl.oauthbearer.allowed.files=$dir/oauth/jwks.json" \
        ${realm[@]+"${realm[@]}"} -Xms128m -Xmx512m -XX:+UseSerialGC -Djava.io.tmpdir="$dir" -Dlog4j2.configurationFile="$here/log4j2.xml" \
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

stop_broker() { # ID
    alive "$1" || die "broker $1 is not running"
    local deadline=$((SECONDS + ready_within))
    kill "$(cat "$dir/server-$1.pid")"
    while alive "$1"; do
        [ $SECONDS -lt $deadline ] || fail "$1" "did not end within $ready_within s of SIGTERM"
        sleep 0.1
    done
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
    # A killed broker leaves the native libraries behind that it unpacked.
    rm -rf "$dir"/data-* "$dir"/liblz4-* "$dir"/libzstd-* "$dir"/server-*.pid "$dir"/server-*.properties \
        "$dir"/bootstrap* "$dir/proxied" "$dir/tls" "$dir/oauth" "$dir/kerberos"
}

# Prints COUNT free ports, one per line.
ports() {
    if [ -n "$port" ]; then
        seq "$port" $((port + $1 - 1))
    else
        python3 - "$1" <<'PY'
import random, socket, sys
# Below those that the kernel gives to others, who would take them before the broker does.
held = []
for port in random.sample(range(10000, 32768), 1000):
    try:
        held.append(socket.create_server(("127.0.0.1", port)))
    except OSError:
        continue
    if len(held) == int(sys.argv[1]):
        break
else:
    sys.exit("kafka.sh: no free ports from 10000 to 32767")
print(*(s.getsockname()[1] for s in held), sep="\n")
PY
    fi
}

configure() {
    local names=(PLAINTEXT CONTROLLER) roles=broker,controller in_sync=$((brokers > 1 ? 2 : 1)) voters="" id i
    [ -z "$proxied" ] || names+=(PROXIED)
    [ -z "$secure" ] || names+=(TLS MTLS SASL OAUTH)
    [ -z "$kerberos" ] || names+=(KERBEROS)
    # By listener, then by broker.
    local ports
    # shellcheck disable=SC2207
    ports=($(ports $((${#names[@]} * brokers))))
    for id in $(seq "$brokers"); do
        voters=$voters${voters:+,}$id@127.0.0.1:${ports[brokers + id - 1]}
    done
    [ -z "$apart" ] || roles=broker voters=2@127.0.0.1:${ports[1]}
    for id in $(seq "$brokers"); do
        local listeners="" advertised=""
        for i in "${!names[@]}"; do
            local name=${names[i]} own=${ports[i * brokers + id - 1]}
            if [ "$name" = CONTROLLER ] && [ -n "$apart" ]; then continue; fi
            listeners=$listeners${listeners:+,}$name://127.0.0.1:$own
            case $name in
                CONTROLLER) continue ;;
                PLAINTEXT) note "$dir/bootstrap" "$own" ;;
                PROXIED)
                    echo "$((proxied + id - 1)) $own" >>"$dir/proxied"
                    own=$((proxied + id - 1))
                    ;;
                *) note "$dir/bootstrap-$(echo "$name" | tr '[:upper:]' '[:lower:]')" "$own" ;;
            esac
            advertised=$advertised${advertised:+,}$name://127.0.0.1:$own
        done
        cat >"$(properties "$id")" <<CONF
process.roles=$roles
node.id=$id
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=$listeners
advertised.listeners=$advertised
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,TLS:SSL,MTLS:SSL,SASL:SASL_SSL,OAUTH:SASL_SSL,KERBEROS:SASL_PLAINTEXT
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

# Short timeouts, so that groups form at once and a dead member or broker is detected within seconds.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# The default of 128 MB is a quarter of the heap.
log.cleaner.dedupe.buffer.size=8388608
CONF
        [ -z "$secure" ] || cat >>"$(properties "$id")" <<CONF

ssl.keystore.type=PEM
ssl.keystore.location=$dir/tls/broker.keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=$dir/tls/ca.pem
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
    user_plain="plain-s3cret";
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.oauth.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=file://$dir/oauth/jwks.json
listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.issuer=residuald-tests
listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.audience=residuald-tests
listener.name.oauth.oauthbearer.connections.max.reauth.ms=10000
CONF
        [ -z "$kerberos" ] || cat >>"$(properties "$id")" <<CONF

listener.name.kerberos.sasl.enabled.mechanisms=GSSAPI
listener.name.kerberos.gssapi.sasl.jaas.config=com.sun.security.auth.module.Krb5LoginModule required \\
    serviceName=kafka useKeyTab=true storeKey=true keyTab="$dir/kerberos/broker.keytab" principal="kafka/127.0.0.1";
CONF
    done
    [ -z "$apart" ] || cat >"$(properties 2)" <<CONF
process.roles=controller
node.id=2
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=CONTROLLER://127.0.0.1:${ports[1]}
log.dirs=$dir/data-2
broker.session.timeout.ms=3000
CONF
}

note() { # FILE PORT: one more address in a list of bootstrap servers
    local before
    before=$(cat "$1" 2>/dev/null) || true
    echo "$before${before:+,}127.0.0.1:$2" >"$1"
}

certify() {
    command -v openssl >/dev/null || die "openssl is missing; install it (Debian: apt-get install openssl)"
    mkdir -p "$dir/tls"
    cat >"$dir/tls/openssl.cnf" <<'CONF'
[req]
distinguished_name = subject
[subject]
[ca]
basicConstraints = critical, CA:TRUE
[leaf]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1, DNS:localhost
CONF
    certificate ca ca
    certificate untrusted-ca ca
    certificate broker leaf ca
    certificate client leaf ca
    certificate untrusted-client leaf untrusted-ca
    cat "$dir/tls/broker.key" "$dir/tls/broker.pem" >"$dir/tls/broker.keystore.pem"
    openssl pkcs8 -topk8 -in "$dir/tls/client.key" -passout pass:key-s3cret -out "$dir/tls/client.encrypted.key"
}

# The key of an identity provider that issues tokens, and the public part that brokers read.
issue() {
    mkdir -p "$dir/oauth"
    openssl genrsa -out "$dir/oauth/issuer.key" 2048 2>/dev/null
    openssl rsa -in "$dir/oauth/issuer.key" -noout -modulus | python3 -c '
import base64, json, sys
modulus = bytes.fromhex(sys.stdin.read().strip().split("=")[1])
n = base64.urlsafe_b64encode(modulus).decode().rstrip("=")
print(json.dumps({"keys": [{"kty": "RSA", "kid": "issuer", "use": "sig", "alg": "RS256", "n": n, "e": "AQAB"}]}))
' >"$dir/oauth/jwks.json"
}

certificate() { # NAME KIND [ISSUER]
    openssl req -x509 -config "$dir/tls/openssl.cnf" -extensions "$2" -subj "/O=residuald tests/CN=$1" -days 2 \
        -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes ${3:+-CA "$dir/tls/$3.pem" -CAkey "$dir/tls/$3.key"} \
        -keyout "$dir/tls/$1.key" -out "$dir/tls/$1.pem" 2>"$dir/tls/openssl.log" ||
        { cat "$dir/tls/openssl.log" >&2; die "openssl (3 or later) could not make a certificate (see above)"; }
}

format_storage() { # ID
    tool kafka.tools.StorageTool format --cluster-id residuald-kafka-tests \
        --config "$(properties "$1")" ${secure:+--add-scram 'SCRAM-SHA-512=[name=scram,password=scram-s3cret]'} \
        >"$dir/server-$1.log" 2>&1
}

start() {
    fetch
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    if alive 1; then die "a cluster is already running in ${dir#"$root"/} at $(cat "$dir/bootstrap"); stop it first or pass another --dir"; fi
    stop
    rm -f "$dir"/server-*.before.log
    [ -z "$secure" ] || { certify; issue; }
    [ -z "$kerberos" ] || { mkdir "$dir/kerberos"; cp "$kerberos/krb5.conf" "$kerberos/broker.keytab" "$dir/kerberos"; }
    configure
    local id formats=""
    [ -z "$apart" ] || [ "$brokers" = 1 ] || die "--controller-apart works only with one broker"
    for id in $(seq "$brokers") ${apart:+2}; do
        format_storage "$id" &
        formats="$formats $!"
    done
    for id in $formats; do
        wait "$id" || { cat "$dir"/server-*.log >&2; die "Kafka could not format its storage (see above)"; }
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
    [ $# -ge 1 ] || die "topic needs a verb: create, delete, list, describe, alter"
    [ -f "$dir/bootstrap" ] || die "no cluster is running in ${dir#"$root"/}; start one first"
    local verb=$1 name=()
    shift
    if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then name=(--topic "$1"); shift; fi
    tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$(cat "$dir/bootstrap")" \
        "--$verb" ${name[@]+"${name[@]}"} "$@"
}

group() { # OPTIONS...
    [ -f "$dir/bootstrap" ] || die "no cluster is running in ${dir#"$root"/}; start one first"
    tool org.apache.kafka.tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$(cat "$dir/bootstrap")" "$@"
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
        "start --proxied") proxied=${2:?--proxied wants a port}; shift ;;
        "start --secure") secure=yes ;;
        "start --controller-apart") apart=yes ;;
        "start --kerberos") kerberos=${2:?--kerberos wants a folder}; shift ;;
        "start --while-pid") while_pid=${2:?--while-pid wants a process id}; shift ;;
        "topic "* | "group "* | "kill "[0-9]* | "stop-broker "[0-9]* | "start-broker "[0-9]*) rest+=("$1") ;;
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
    stop-broker) known "${rest[0]-}"; stop_broker "${rest[0]}" ;;
    start-broker)
        known "${rest[0]-}"
        if alive "${rest[0]}"; then die "broker ${rest[0]} is already running"; fi
        launch "${rest[0]}"
        await "${rest[0]}"
        ;;
    topic) topic ${rest[@]+"${rest[@]}"} ;;
    group) group ${rest[@]+"${rest[@]}"} ;;
    -h | --help | help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
    *) die "unknown command '$verb'; see --help" ;;
esac
