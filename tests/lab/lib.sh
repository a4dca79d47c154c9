# shellcheck shell=bash
# For the scripts that run as root in the test host: assertions, waiting for events, and the two agents of the
# demo. A suite sources this, calls check or ok and notOk, and ends with finish. Its lines are "ok NAME" and
# "not ok NAME - WHY"; others begin with "#".
set -euo pipefail
exec </dev/null
# shellcheck disable=SC2034
lab=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")

failures=0
finished=

ok() { echo "ok $1"; }

notOk() {
  echo "not ok $1 - $2"
  failures=$((failures + 1))
}

# check NAME CMD…: ok if CMD succeeds; otherwise its output explains.
check() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    ok "$name"
  else
    notOk "$name" "$(tail -n 1 <<<"$output")"
    echo "# ${output//$'\n'/$'\n'# }"
  fi
}

# refused NAME PATTERN CMD…: ok if CMD fails and says what matches PATTERN.
refused() {
  local name=$1 pattern=$2 output
  shift 2
  if output=$("$@" 2>&1); then
    notOk "$name" "succeeded: $*"
  elif grep -qE -- "$pattern" <<<"$output"; then
    ok "$name"
  else
    notOk "$name" "said: $output"
  fi
}

is() {
  [[ $1 == "$2" ]] || { echo "is \"$1\", should be \"$2\""; return 1; }
}

matches() {
  [[ $1 =~ $2 ]] || { echo "\"$1\" does not match \"$2\""; return 1; }
}

finish() {
  finished=yes
  exit $((failures > 0))
}

# atExit CMD…: runs CMD when the script ends, the last given first.
atExit=()
atExit() { atExit+=("$(printf '%q ' "$@")"); }
runAtExit() {
  local status=$? n
  for ((n = ${#atExit[@]} - 1; n >= 0; --n)); do eval "${atExit[n]}" >/dev/null 2>&1 || :; done
  if [[ ${0%/*} == */suites && ! $finished ]]; then
    echo "not ok ${0##*/} - ended early with status $status"
    exit 1
  fi
}
trap runAtExit EXIT

# newPlace: sets place to a new directory that everyone may enter. The script removes it.
newPlace() {
  place=$(mktemp -d /var/tmp/agentmachine-suite.XXXXXX)
  chmod 755 "$place"
}

# settingsAside: the host has no settings of its own until the script ends. Before any atExit that removes others.
settingsAside() {
  local conf=/etc/agentmachine/agentmachine.conf
  [[ -e $conf ]] || return 0
  mv "$conf" "$conf.aside"
  atExit systemctl restart agentmachine-proxy.service
  atExit mv "$conf.aside" "$conf"
  systemctl restart agentmachine-proxy.service
}

# A place in the journal, for awaitJournal and journalSince.
journalCursor() {
  journalctl --quiet --lines=1 --output=export --output-fields=MESSAGE | sed -n 's/^__CURSOR=//p'
}

# awaitJournal CURSOR PATTERN ARG…: waits, up to five minutes, for a line of `journalctl ARG…` after CURSOR
# that matches, and prints it.
awaitJournal() {
  local cursor=$1 pattern=$2 line matched reader status=1
  shift 2
  exec {reader}< <(exec timeout 300 journalctl --follow --lines=all --output=cat --after-cursor="$cursor" "$@")
  local follower=$!
  while read -r -u "$reader" line; do
    matched=0
    # shellcheck disable=SC2319  # it is the condition's that is wanted: 2 for what is no pattern
    [[ $line =~ $pattern ]] || matched=$?
    case $matched in 0) ;; 1) continue ;; *) break ;; esac
    printf '%s\n' "$line"
    status=0
    break
  done
  exec {reader}<&-
  kill "$follower" 2>/dev/null || :
  [[ $status == 0 ]] || echo "in five minutes no line like \"$pattern\" in: journalctl $*" >&2
  return $status
}

# heldAt FILE CMD…: runs CMD beside the script, until just before it opens FILE, which must be there. goOn has it go on,
# until its end. What it says is in the file `said`; there is a file `did` then if it succeeded.
heldAt() {
  local file=$1 line
  shift
  heldBy=$(mktemp -u "$PWD/held.XXXXXX")
  mkfifo "$heldBy"
  exec {heldTrace}<>"$heldBy"
  {
    strace -qqq -o "$heldBy" -P "$file" -e trace=openat -e inject=openat:signal=STOP:when=1 "$@" >said 2>&1 && : >did
    echo ended >"$heldBy"
  } &
  while read -r -t 300 -u "$heldTrace" line; do
    case $line in *'stopped by SIGSTOP'*) return ;; ended) break ;; esac
  done
  echo "$* did not wait: $(cat said)"
  return 1
}
goOn() {
  local pid line
  for pid in $(pgrep -x agentmachine); do kill -CONT "$pid" 2>/dev/null || :; done
  while read -r -t 300 -u "$heldTrace" line; do [[ $line != ended ]] || break; done
  exec {heldTrace}<&-
  rm "$heldBy"
}

# What the proxy decided: its records, for `proxyLog AGENT CURSOR` those of one agent after CURSOR.
proxyLog() {
  journalctl --quiet --unit=agentmachine-proxy.service --output=cat --after-cursor="$2" "AGENTMACHINE_ID=$1"
}

# awaitDecision CURSOR AGENT HOST: the proxy's record of what AGENT wanted of HOST.
awaitDecision() {
  awaitJournal "$1" '^[{]' --unit=agentmachine-proxy.service "AGENTMACHINE_ID=$2" "AGENTMACHINE_HOST=$3"
}

# awaitServer CURSOR MACHINE: until opencode's server in a machine that was started after CURSOR listens.
awaitServer() { awaitJournal "$1" 'server listening on' --unit="systemd-nspawn@$2.service"; }

# awaitExpiry CURSOR ID: until a machine's TTL has ended it.
awaitExpiry() { awaitJournal "$1" '^Finished ' --unit="agentmachine-expire@$2.service" _PID=1; }

# writeDemoCards DIRECTORY: ada.json and bob.json, with workspaces below DIRECTORY. bob runs no opencode, for speed.
writeDemoCards() {
  cat >"$1/ada.json" <<END
{
  "agent_id": "ada",
  "workspace": "$1/ada",
  "api_provider": "anthropic",
  "api_key_file": "/run/lab-provider/api-key",
  "resource_limits": { "memory_mb": 1536, "max_processes": 100 }
}
END
  cat >"$1/bob.json" <<END
{
  "agent_id": "bob",
  "workspace": "$1/bob",
  "api_provider": "openai",
  "api_key_file": "/run/lab-provider/api-key",
  "resource_limits": { "memory_mb": 256 },
  "allowed_hosts": ["files.demo.test:80"],
  "command": ["sleep", "infinity"]
}
END
}
