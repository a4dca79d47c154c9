# shellcheck shell=bash disable=SC2154,SC2034
# For the suites of the engines that cards are exported to, after lib.sh: what an agent there must find, and how it is
# looked at from outside.

# The command of a card whose agent takes a second to end.
takesItsTime=$(jq -nc '["sh", "-c",
  "trap \"sleep 0.5; sleep 0.5; echo ended >/workspace/ended; exit\" TERM; while :; do sleep 0.2; done"]')

# What listens on all addresses of the host, as much of it does.
listener=lab-listener.service
atExit systemctl stop $listener
systemd-run --quiet --collect --unit=$listener python3 -c 'import http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")
    def log_message(self, *_):
        pass
socketserver.TCPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("", 8099), Handler).serve_forever()'

# trustLab: the host's OpenSSL, thus its squid, trusts the provider's certificate.
trustLab() {
  local link
  link=/etc/ssl/certs/$(openssl x509 -hash -noout -in /run/lab-provider/ca.crt).0
  atExit rm -f "$link"
  cp /run/lab-provider/ca.crt "$link"
}

# Everything that engine-probe tells and that a guard makes so.
guards=(
  'uid 65532:65532'
  'capabilities 0000000000000000'
  'no-new-privileges 1'
  'seccomp 2'
  'open-files 500'
  'core 0'
  'default-route 0'
  'root Read-only file system'
  'tmp-mib 128'
  'host-files '
  'unlisted 403'
  'unlisted-tunnel 407'
  'unlisted-port 407'
  'name Could not resolve host'
  'memory-above ended 137'
)

# probeHost ADDRESS…: the probe on the host itself, where no guard is: it sees what it looks for.
probeHost() {
  local guard
  (cd /var/tmp && env -i PATH="$PATH" PROBE_BUSYBOX=/bin/busybox "$lab/engine-probe" "$@") >"$place/host"
  rm -f /etc/probe
  [[ $(grep -c . "$place/host") -gt 20 ]] || { cat "$place/host"; return 1; }
  for guard in "${guards[@]}"; do
    # The lab has no default route.
    [[ $guard != default-route* ]] || continue
    if grep -qxF -- "$guard" "$place/host"; then echo "without a guard it says \"$guard\" too"; return 1; fi
  done
  if grep '^around.* none$' "$place/host"; then return 1; fi
  grep -qx 'nested-namespace made' "$place/host" && grep -qx 'processes-started 120' "$place/host"
}

# found NAME: what the probe said inside.
found() { sed -n "s/^$1 //p" "$place/found"; }

# judge PREFIX: whether what the probe said in "$place/found" is what it must find.
judge() {
  local prefix=$1 guard
  for guard in "${guards[@]}"; do
    check "$prefix-${guard%% *}" is "$(grep "^${guard%% *} " "$place/found")" "$guard"
  done
  check "$prefix-listed" is "$(found listed)" 'hello from files.demo.test'
  check "$prefix-nothing-around-the-proxy" is "$(sed -n 's/^around-//p' "$place/found" | grep -v ' none$' || :)" ''
  check "$prefix-looked-around" matches "$(grep -c '^around-' "$place/found")" '^[3-9]$'
  check "$prefix-sees-its-own-processes" matches "$(found processes)" '^1?[0-9]$'
  check "$prefix-memory-below-the-limit" is "$(found memory-below)" held
  check "$prefix-programs-run-in-tmp" is "$(found tmp-runs)" yes
}

# pidsIn CGROUP: of all processes in it and below.
pidsIn() { find "/sys/fs/cgroup$1" -name cgroup.procs -exec cat {} +; }

# payloadIn CGROUP NAME: the process of that name.
payloadIn() {
  local pid
  for pid in $(pidsIn "$1"); do
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) != "$2" ]] || { echo "$pid"; return; }
  done
  echo "no process $2 in $1" >&2
  return 1
}

# inAgent TEXT CGROUP PID: whether TEXT is in environment or arguments of a process of the agent, or in its files.
inAgent() {
  local pid
  for pid in $(pidsIn "$2"); do
    # What starts the agent belongs to root or to the user, and is not in the agent's namespaces.
    [[ $(readlink "/proc/$pid/ns/pid") == "$(readlink "/proc/$3/ns/pid")" ]] || continue
    if grep -qsF -- "$1" "/proc/$pid/environ" "/proc/$pid/cmdline"; then return 0; fi
  done
  grep -rqsF --devices=skip --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev --exclude-dir=nix -- "$1" \
    "/proc/$3/root/"
}

# judgeProcesses PREFIX: that there can't be more than the card says, where the engine keeps that.
judgeProcesses() { check "$1-processes-are-limited" matches "$(found processes-started)" '^[1-9][0-9]?$'; }

# keyIsOutside PREFIX CGROUP PID: with searches that find something.
keyIsOutside() {
  keyIsAbsent() { if inAgent "$(cat /run/lab-provider/api-key)" "$1" "$2"; then echo "the key is inside"; return 1; fi; }
  check "$1-search-finds-files" inAgent added-by-the-broker "$2" "$3"
  check "$1-search-finds-environments" inAgent OPENCODE_DISABLE_SHARE=1 "$2" "$3"
  check "$1-has-no-key" keyIsAbsent "$2" "$3"
}

# confined PID: what the kernel says of a payload that the probe can't ask.
confined() {
  is "$(sed -n 's/^NoNewPrivs:\t//p; s/^Seccomp:\t//p; s/^CapEff:\t//p; s/^CapBnd:\t//p' "/proc/$1/status" | xargs)" \
    '0000000000000000 0000000000000000 1 2'
}

# decisions COMMAND…: of the proxy's log that COMMAND prints, "DECISION REASON" of the agent's requests for HOST.
decisions() {
  local id=$1 host=$2
  shift 2
  "$@" | grep '^{' | jq -r --arg id "$id" --arg host "$host" \
    'select(.id == $id and .host == $host) | .decision + " " + .reason' | sort -u
}

# ask TEXT COMMAND…: has the opencode whose server COMMAND can reach do what TEXT says. What the server says when it
# can't is printed.
ask() {
  local text=$1 said api=http://127.0.0.1:4096/session
  shift
  local post=("$@" curl -sS --fail-with-body -m 280 -X POST -H 'content-type: application/json')
  said=$("${post[@]}" -d '{}' $api) || { echo "$said"; return 1; }
  said=$("${post[@]}" -d "$(jq -n --arg text "$text" '{parts: [{type: "text", text: $text}]}')" \
    "$api/$(jq -r .id <<<"$said")/message") && jq -e '.info.error == null' <<<"$said" >/dev/null || { echo "$said"; return 1; }
}

# looksAround COMMAND…: has it run the probe, with $around as the host's addresses.
looksAround() {
  ask "RUN{sh /workspace/engine-probe ${around[*]} >/workspace/found 2>/workspace/errors}END" "$@"
}
