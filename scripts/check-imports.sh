#!/usr/bin/env bash
# Checks which modules of src/ import which, by reading the source. The allowed imports are defined only here;
# docs/architecture.md contains the output of --print. Prints file:line of every violation; exits with status 1 if there is one.
# Test code (items under a column-0 #[cfg(test)], files named tests.rs) is exempt.
#   scripts/check-imports.sh [SRC]        checks the folder SRC, src by default
#   scripts/check-imports.sh --print      prints the allowed imports as Markdown
set -euo pipefail

# Modules that every module may import.
everybody="error input_file interrupt message output progress read_at"
# Each module of src/ and the other modules that it may import as crate::X. The lowest modules come first.
rules="
error:
input_file:
interrupt:
message:
output:
process:
alarms:
progress:
read_at:
data:
report: alarms
model: data
config: data model adapter objective train
adapter: data model
objective: data model adapter
generate: data model adapter config
train: alarms data model adapter objective config
eval: data model adapter objective generate config
doctor: data
inspect: data eval
bench: config data model adapter objective train doctor
plan: config data model adapter objective train doctor bench
iterate: config data model adapter objective train generate eval
demo: config data model adapter objective train generate eval iterate report
cli: config data model adapter objective generate train eval iterate report demo doctor bench plan inspect
dispatch: cli
"

# Prints the modules that module $1 may import; returns 1 if there is no rule for it.
allowed() {
  local line
  line=$(grep "^$1:" <<<"$rules") || return 1
  echo "${line#*:}"
}

# Prints words as `word`, `word`.
quoted() { # quoted WORD...
  printf '`%s`, ' "$@" | sed 's/, $//'
}

print_rules() {
  local module list
  # shellcheck disable=SC2086 # one word per module
  echo "Every module may import $(quoted $everybody)."
  echo
  echo '| module | other modules that it may import |'
  echo '|---|---|'
  while IFS=: read -r module list; do
    if [[ -z $module || " $everybody " == *" $module "* ]]; then continue; fi
    if [[ -n ${list// /} ]]; then
      # shellcheck disable=SC2086
      echo "| \`$module\` | $(quoted $list) |"
    else
      echo "| \`$module\` | none |"
    fi
  done <<<"$rules"
  echo '| `main` | all |'
}

if [[ ${1-} == --print ]]; then
  print_rules
  exit
fi

src=${1:-$(dirname "$0")/../src}
cd "$src"
violations=$(mktemp)
trap 'rm -f "$violations"' EXIT

# Prints the lines of the given files as file:line:text, without test code.
code() {
  awk '
    FNR == 1 { skip = 0 }
    /^#\[cfg\(test\)\]/ { skip = 1; next }
    skip == 1 && /^#\[/ { next }
    skip == 1 { skip = /;[ \t]*$/ ? 0 : 2; next }
    skip == 2 { if (/^}/) skip = 0; next }
    { print FILENAME ":" FNR ":" $0 }
  ' "$@"
}

# Records the lines of stdin (file:line:text) as violations of the rule $1.
violation() {
  sed -E "s|^([^:]*:[0-9]+):[[:space:]]*(.*)|src/\1: $1\n    \2|" >>"$violations"
}

mapfile -t files < <(find . -name '*.rs' ! -name tests.rs ! -path '*/tests/*' | sed 's|^\./||' | sort)

for file in "${files[@]}"; do
  module=${file%%/*}
  module=${module%.rs}
  # main.rs may import everything; lib.rs only declares modules.
  if [[ $module == main || $module == lib ]]; then continue; fi
  if ! list=$(allowed "$module"); then
    echo "$file:1:" | violation "module '$module' has no rule in scripts/check-imports.sh: add one"
    continue
  fi
  may=" $module $list $everybody Error Result "
  # Comments may point anywhere. A grouped root import hides names from this check.
  { code "$file" | grep -vE '^[^:]*:[0-9]+:[[:space:]]*//' | grep -E 'crate::' || true; } |
    while IFS= read -r line; do
      if [[ $line == *'crate::{'* ]]; then
        violation "write one 'use crate::module' per line" <<<"$line"
      fi
      for name in $(grep -oE 'crate::[A-Za-z_]+' <<<"$line" | sed 's/^crate:://' | sort -u); do
        if [[ $may != *" $name "* ]]; then
          violation "'$module' must not import '$name'" <<<"$line"
        fi
      done
    done
done

# Opening a FIFO in place of a file would block forever.
mapfile -t readers < <(printf '%s\n' "${files[@]}" | grep -vE '^(input_file\.rs|read_at\.rs|output/)')
code "${readers[@]}" | grep -E '(\bfs::read(_to_string)?|\bFile::open)\(' | grep -vE ':[[:space:]]*//' |
  violation "read files with crate::input_file" || true

code "${files[@]}" | grep -vE '^(main|dispatch)\.rs:' | grep -iE ':.*(cuda|wgpu|ndarray|cubecl)' |
  violation "only dispatch.rs may name a backend" || true
find . \( -name 'util.rs' -o -name 'utils.rs' -o -path '*/util/mod.rs' -o -path '*/utils/mod.rs' \) |
  sed 's|^\./||; s|$|:1:|' | violation "no 'utils': name the module after what it does"

if [[ -s $violations ]]; then
  cat "$violations"
  exit 1
fi
