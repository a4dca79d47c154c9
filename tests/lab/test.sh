# shellcheck shell=bash disable=SC2154
# Sourced by tests/lab/inside: the parts of ./lab test, cheap ones first. Each prints "ok NAME" and "not ok NAME - WHY"
# lines, whatever else explains them, and fails if anything did.

TIDY_SECONDS=${TIDY_SECONDS:-2400}
passed=0 failed=0

sources() { find /src/src /src/tests -name '*.cc' -o -name '*.h' | sort; }
shellScripts() { grep -rlIE --exclude-dir=expected '^#!/bin/(ba)?sh|^# shellcheck shell=' /src/lab /src/.ci /src/tests /src/images /src/nix 2>/dev/null | sort; }
# verdict NAME CMD…: one line for one check.
verdict() {
  local name=$1
  shift
  if "$@"; then echo "ok $name"; else echo "not ok $name - see above"; return 1; fi
}

lintPart() {
  local status=0 file files
  mapfile -t files < <(sources)
  verdict clang-format clang-format --dry-run --Werror "${files[@]}" || status=1
  /src/tests/check-includes || status=1
  /src/tests/check-docs || status=1
  /src/tests/metrics/check || status=1
  mapfile -t files < <(shellScripts)
  for file in "${files[@]}"; do bash -n "$file" || { echo "not ok shell-syntax - $file"; status=1; }; done
  verdict shellcheck shellcheck --severity=warning --external-sources "${files[@]}" || status=1
  return $status
}
# mesonPart DIR SUITE
mesonPart() {
  local status=0
  rm -f "$1/meson-logs/testlog.json"
  meson test -C "$1" --suite "$2" --num-processes "$(nproc)" --print-errorlogs </dev/null 2>&1 || status=1
  [[ ! -e $1/meson-logs/testlog.json ]] || $here/count-tests "$1/meson-logs/testlog.json"
  return $status
}
unitPart() { mesonPart "$LAB_STATE/build" unit; }
goldenPart() { mesonPart "$LAB_STATE/build" golden; }
# sanitizedBuild: everything once more, by clang, with sanitizers and the fuzz targets; sets fuzzers to their names.
sanitizedBuild() {
  local dir=$LAB_STATE/sanitized target
  [[ -e $dir/build.ninja ]] || CXX='ccache clang++' meson setup --prefix=/usr -Dfuzz=true -Dman=false -Dwerror=false \
    -Doptimization=1 -Ddebug=false -Dcpp_args=-gline-tables-only -Db_sanitize=address,undefined -Db_lundef=false "$dir" /src >/dev/null || return 1
  fuzzers=()
  for target in $(sed -n "s/^  '\([a-z_]*\)': .*/\1/p" /src/tests/fuzz/meson.build); do fuzzers+=("$target"); done
  ninja -C "$dir" >"$dir/build.log" 2>&1 || { tail -n 40 "$dir/build.log"; echo "not ok sanitized-build - see above"; return 1; }
}
# The unit and golden tests again, with the sanitizers.
asanPart() {
  local status=0 suite fuzzers
  sanitizedBuild || return 1
  for suite in unit golden; do mesonPart "$LAB_STATE/sanitized" $suite || status=1; done
  return $status
}
# fuzzOne TARGET SECONDS: looks for an input that breaks it; new inputs that reach something new are kept beside the
# build, one that breaks it is in findings/TARGET. Prints one line.
fuzzOne() {
  local build=$LAB_STATE/sanitized dir=$LAB_STATE/fuzz target=$1 log=$LAB_STATE/fuzz-$1.log seeds=("/src/tests/fuzz/corpus/$1") count
  mkdir -p "$dir/corpus/$target" "$dir/findings/$target"
  case $target in card_*) seeds+=(/src/tests/golden/card/{good,bad}) ;; esac
  if "$build/tests/fuzz/${target}_fuzz" -max_total_time="$2" -timeout=20 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$dir/findings/$target/" "$dir/corpus/$target" "${seeds[@]}" >"$log" 2>&1 </dev/null; then
    count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "ok fuzz-$target"
    echo "# $target: $count executions in $2 s"
  else
    sed -n '/ERROR\|SUMMARY\|#[0-9]* 0x\|Test unit/p' "$log" | head -n 40
    echo "not ok fuzz-$target - $(grep -m 1 -o 'Test unit written to .*' "$log" || tail -n 1 "$log")"
    return 1
  fi
}
# fuzzPart [SECONDS [TARGET…]]: two at a time.
fuzzPart() {
  local seconds=${1:-20} status=0 target fuzzers
  sanitizedBuild || return 1
  for target in "${@:2}"; do
    [[ " ${fuzzers[*]} " == *" $target "* ]] || { echo "lab: there is no fuzz target \"$target\"; there are: ${fuzzers[*]}" >&2; return 2; }
  done
  [[ $# -lt 2 ]] || fuzzers=("${@:2}")
  for target in "${fuzzers[@]}"; do
    while [[ $(jobs -rp | wc -l) -ge 2 ]]; do wait -n || status=1; done
    fuzzOne "$target" "$seconds" &
  done
  while [[ $(jobs -p | wc -l) -gt 0 ]]; do wait -n || { [[ $? -eq 127 ]] || status=1; }; jobs >/dev/null; done
  return $status
}
# A source that passed with just these headers, in whatever checkout, passes again unasked. ninja knows which are a source's.
tidyPart() {
  local done=/cache/tidy status=0 common file mark
  local -A read=()
  mkdir -p "$done"
  find "$done" -type f -mtime +14 -delete
  common=$(contents /src/.clang-tidy /cache/../etc/debian_version | hash)
  while read -r file mark; do read[$file]+=" $mark"; done < <(ninja -C "$LAB_STATE/build" -t deps | awk '
    /^[^ ]/ { source = ""; next }
    { sub(/^ *(\.\.\/)+/, "/") }
    !/^\/src\/src\// { next }
    source == "" { source = $1 }
    { print source, $1 }' | sort -u)
  # shellcheck disable=SC2016,SC2086
  find /src/src -name '*.cc' | sort | while read -r file; do
    mark=$done/$({ echo "$common"; sha256sum ${read[$file]-$(find /src/src -name '*.h' -o -path "$file")}; } | hash)
    [[ -e $mark ]] || printf '%s\0' "$file" "$mark"
  done | timeout "$TIDY_SECONDS" xargs -0 -r -n 2 -P "$(nproc)" \
    sh -c 'clang-tidy -quiet -p "$0" "$1" 2>&1 && : >"$2"' "$LAB_STATE/build" || status=$?
  case $status in
    0) echo "ok clang-tidy" ;;
    124) echo "not ok clang-tidy - took longer than $TIDY_SECONDS s" ;;
    *) echo "not ok clang-tidy - see above" ;;
  esac
  return $status
}
# What is exported for other engines. Sandboxes are judged by the CustomResourceDefinitions in LAB_CRDS or, beside the
# checkout, shared/crds, or a copy in the cache: they aren't ours to ship. CI must have them.
exportPart() {
  local status=0 crds=() place go=$LAB_STATE/go decoder
  decoder=$go/decode-$(cat /src/tests/export/decode.go /etc/debian_version | hash)
  mkdir -p "$go"
  if [[ ! -x $decoder ]]; then
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=/cache/go-build GOFLAGS=-trimpath \
      go build -o "$decoder" /src/tests/export/decode.go || { echo "not ok export-decoder - see above"; return 1; }
  fi
  for place in /cache/crds /crds; do
    [[ ! -e $place/agents.x-k8s.io_sandboxes.yaml ]] || crds=("$place")
  done
  if [[ ${#crds[@]} -eq 0 && ${CI:-} ]]; then
    echo "not ok export-crds - there are no CustomResourceDefinitions of agent-sandbox in ../shared/crds or LAB_CRDS"
    status=1
  elif [[ ${#crds[@]} -eq 0 ]]; then
    echo "# not tested: Sandboxes by agent-sandbox's CustomResourceDefinitions; LAB_CRDS names a directory with them"
  fi
  /src/tests/export/check "$decoder" "${crds[@]}" || status=1
  /src/tests/export/units "$LAB_STATE/build/src/cli/agentmachine" || status=1
  /src/tests/export/oci "$LAB_STATE/build/src/cli/agentmachine" || status=1
  python3 /src/tests/export/proxy_test.py "$LAB_STATE/build/src/cli/agentmachine" || status=1
  return $status
}
# The manifest, images that must not build, and the image built once more, bit for bit.
imagePart() { verdict image-check $here/make-images --check; }
# A copy of nixpkgs, or of what tests/nix/check reads of it, in the cache is used besides.
nixPart() {
  local more=()
  [[ ! -e /cache/nixpkgs/lib/default.nix ]] || more=(--nixpkgs /cache/nixpkgs)
  /src/tests/nix/check "${more[@]}"
}
labPart() { $here/test-lab; }
# A sample of the attack suite, another each day: LAB_SEED repeats one.
attackPart() {
  $here/vm.py run /srv/agentmachine/tests/attack/run --ok \
    --sample "${LAB_SEED:-$(date +%F)}" --seconds "${LAB_ATTACK_SECONDS:-200}" </dev/null 2>&1
}
suitePart() {
  local suite=(env "LAB_SEED=${LAB_SEED:-$(date +%F)}" "/srv/agentmachine/tests/lab/suites/$1") status=0
  $here/vm.py run "${suite[@]}" "${@:2}" 2>&1 || status=$?
  # This one takes the host down, which ends the command with 125, and looks again after the boot.
  while [[ $1 == reboot && $status -eq 125 ]]; do
    status=0
    up
    $here/vm.py run "${suite[@]}" again 2>&1 || status=$?
  done
  return $status
}

# part NAME CMD…: runs one part, counts its lines, shows them all only if one failed.
part() {
  local name=$1 log start=$SECONDS status=0 line good=0 bad=0
  shift
  log=$LAB_STATE/test-$name.log
  [[ ! -t 1 ]] || printf '%s …' "$name"
  # Not "if": the part must not lose its own error checks.
  "$@" >"$log" 2>&1 || status=$?
  while read -r line; do
    case $line in
      'ok '*) good=$((good + 1)) ;;
      'not ok '*) bad=$((bad + 1)) ;;
    esac
  done <"$log"
  [[ $status -eq 0 || $bad -gt 0 ]] || { bad=1; echo "not ok $name - exit status $status" >>"$log"; }
  [[ $good -gt 0 || $bad -gt 0 ]] || { bad=1; echo "not ok $name - it tested nothing" >>"$log"; }
  passed=$((passed + good)) failed=$((failed + bad))
  [[ ! -t 1 ]] || printf '\r\033[K'
  printf '%-10s %4d passed, %d failed, %d s\n' "$name" $good $bad $((SECONDS - start))
  grep -E '^# (not tested|nixpkgs): ' "$log" || :
  if [[ $bad -gt 0 ]]; then
    grep -E '^not ok ' "$log"
    sed 's/^/  | /' "$log"
  fi
  [[ $bad -eq 0 ]]
}

vmJournal() {
  echo "  the test host's journal:"
  $here/vm.py run journalctl --no-pager -n 60 </dev/null 2>&1 | sed 's/^/  | /' || :
}

# What takes long and needs no test host is made ready while that runs, with what is left of the processors. The parts
# themselves find it done, or say what is wrong with it.
warmUp() {
  renice -n 19 -p $BASHPID >/dev/null
  sanitizedBuild || :
  tidyPart || :
}

# leftOut: of suites that take minutes each, those that today's sample is without; LAB_SEED repeats one.
leftOut() {
  local seed=${LAB_SEED:-$(date +%F)} kind name
  for kind in '1 bwrap kube-play podman podman-user' '1 concurrency pools reboot' '1 kill-points soak' \
    '1 keys lifecycle opencode policy' '1 store upgrade' '2 audit disk doctor errors filter metrics' '0 package'; do
    for name in ${kind#* }; do echo "$(hash <<<"$seed $name") $name"; done | sort | tail -n "+$((${kind%% *} + 1))" | cut -d ' ' -f 2
  done
}

# testParts [NAME…]: the parts, without names all but what the sample leaves out, then the closing line.
testParts() {
  local all name out warming=
  all=(lint unit golden export nix image lab)
  for name in "$here"/suites/*; do all+=("$(basename "$name")"); done
  all+=(attack asan fuzz tidy)
  for name in "$@"; do
    [[ " ${all[*]} " == *" $name "* ]] || die "there is no test \"$name\"; there are: ${all[*]}"
  done
  if [[ $# -eq 0 ]]; then
    out=$(leftOut)
    echo "not in today's sample: ${out//$'\n'/, }"
    # shellcheck disable=SC2046
    set -- $(printf '%s\n' "${all[@]}" | grep -vxF "$out")
    build
    warmUp >"$LAB_STATE/warm-up.log" 2>&1 6>&- &
    warming=$!
  fi
  for name in "$@"; do
    case $name in asan | tidy | fuzz) [[ ! $warming ]] || wait "$warming" || :; warming= ;; esac
    case $name in
      lint | tidy | unit | golden | export | nix | image | asan | fuzz) [[ $name == lint ]] || build; part "$name" "${name}Part" || : ;;
      attack) up; part attack attackPart || vmJournal ;;
      lab) up; part lab labPart || vmJournal ;;
      package) older; up; part package suitePart package <"$older" || vmJournal ;;
      *) up; part "$name" suitePart "$name" </dev/null || vmJournal ;;
    esac
  done
  echo "$passed passed, $failed failed"
  [[ $failed -eq 0 ]]
}

# conditions PATHSPEC: what is measured and where, which the running test host knows; changes of PATHSPEC alone are none.
conditions() {
  local revision by
  revision=$(git -c safe.directory=/src -C /src rev-parse --short HEAD)
  [[ -z $(git -c safe.directory=/src -C /src status --porcelain -- "$1") ]] || revision+=-dirty
  by=$($here/vm.py run systemd-detect-virt </dev/null)
  case $by in kvm) by="by KVM" ;; qemu) by=emulated ;; esac
  echo "revision $revision, $by, $(nproc) processors outside"
}

# What people may still run, until there is a release: a revision that gave machines less at their start.
olderRevision=0d59c0a
older=$LAB_STATE/older-$olderRevision.tar
# older: makes that file, of what the revision installs.
older() {
  local dir=${older%.tar}
  [[ ! -e $older ]] || return 0
  say "building $olderRevision"
  rm -rf "$dir"
  mkdir "$dir"
  git -c safe.directory=/src -C /src archive $olderRevision | tar -x -C "$dir"
  quietly "meson setup of $olderRevision" meson setup --prefix=/usr -Ddebug=false -Dtests=false "$dir/build" "$dir"
  quietly "the build of $olderRevision" ninja -C "$dir/build"
  quietly "the install of $olderRevision" meson install -C "$dir/build" --no-rebuild --strip --destdir "$dir/stage"
  tar -C "$dir/stage" -cf "$dir/tar" .
  mv "$dir/tar" "$older"
  rm -rf "$dir"
}

# reliability [SUITE…] [SIZE=N…]: the suites of which ./lab test runs a sample, in full or in these sizes. What each printed
# and how long it took is kept in tests/reliability/, with the revision; kill-points by command, for it takes hours: on a
# revision that is committed, what was interrupted goes on where it was.
reliability() {
  local word name conditions before line out start status=0
  local -A size=([points]=all [events]=6 [processes]=50 [seconds]=300 [ports]=1023 [machines]=20 [cuts]=5 [cycles]=1000)
  local -A arguments
  local suites=(concurrency reboot pools soak package) commands named=()
  mapfile -t commands < <(sed -n "/^table='/,/'$/s/^\([a-z-]\+\) .*/\1/p" $here/suites/kill-points)
  for name in "${commands[@]}"; do suites+=("kill-points-$name"); done
  for word in "$@"; do
    if [[ $word == kill-points ]]; then
      named+=("${commands[@]/#/kill-points-}")
    elif [[ " ${suites[*]} " == *" $word "* ]]; then
      named+=("$word")
    else
      name=${word%%=*}
      [[ ${size[$name]-} && ($word =~ =[1-9][0-9]*$ || $word == points=all) ]] ||
        die "\"$word\" is neither of kill-points ${suites[*]} nor of $(printf '%s=N ' "${!size[@]}")"
      size[$name]=${word#*=}
    fi
  done
  [[ ${#named[@]} -gt 0 ]] || named=("${suites[@]}")
  arguments=([concurrency]="${size[processes]} ${size[seconds]}s" [reboot]="${size[machines]} ${size[cuts]}"
    [soak]=${size[cycles]} [pools]="full ${size[ports]}"
    [package]=$olderRevision)
  for name in "${commands[@]}"; do arguments[kill-points-$name]="$name ${size[points]} ${size[events]}"; done
  for name in "${named[@]}"; do
    # Builds what there is by now, so that is what is noted.
    up
    conditions=$(conditions ':!tests/reliability')
    start=$SECONDS out=$LAB_STATE/reliability-$name.txt before=/dev/null
    read -ra line <<<"${arguments[$name]}"
    if [[ $name != kill-points-* || $conditions == *-dirty* ]] || ! grep -sqxF "# $conditions" "$out"; then
      rm -f "$out.before"
    elif [[ $(head -n 1 "$out") == "# kill-points ${line[*]}" ]] && grep -q '^# took ' "$out" && ! grep -q '^not ok ' "$out"; then
      echo "lab: $out has the result of $name on this revision"
      continue
    else
      cat "$out" >>"$out.before"
      before=$out.before
    fi
    if [[ $name == package ]]; then
      older
      before=$older
    fi
    {
      echo "# ${name%"-${line[0]}"} ${line[*]}"
      echo "# $conditions"
      [[ $before != *.before ]] || line+=(again)
      suitePart "${name%"-${line[0]}"}" "${line[@]}" <"$before" || { [[ $? -lt 2 ]] || echo "not ok $name - ended early"; }
      echo "# took $((SECONDS - start)) s"
    } 2>&1 | tee "$out"
    mkdir -p /src/tests/reliability
    grep -v '^+ ' "$out" >"/src/tests/reliability/$name.txt"
    ! grep -q '^not ok ' "$out" || status=1
  done
  return $status
}
