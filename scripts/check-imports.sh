#!/usr/bin/env bash
# The import rules of src/ (CONTRIBUTING.md, "Where code goes"), checked by reading the source. Prints file:line of every
# breach; status 1 if there is one. Test code (items under a column-0 #[cfg(test)], files named tests.rs) is exempt.
#   scripts/check-imports.sh [SRC]        SRC: the folder to check, src by default
set -euo pipefail
src=${1:-$(dirname "$0")/../src}
cd "$src"
breaches=$(mktemp)
trap 'rm -f "$breaches"' EXIT

# Modules of src/ that a module may name as crate::X, besides itself and those that everybody may use.
everybody="error interrupt output progress read_at Error Result"
allowed() {
  case $1 in
    error | interrupt | output | process | progress | read_at | data | report) echo "" ;;
    model) echo "data" ;;
    lora) echo "data model" ;;
    dpo) echo "data model lora" ;;
    config) echo "data model lora dpo train" ;; # each module's own options
    generate) echo "data model lora config" ;;
    train) echo "data model lora dpo config" ;;
    eval) echo "data model lora dpo generate config" ;;
    doctor) echo "data" ;;
    bench) echo "config data model lora dpo train doctor" ;;
    plan) echo "config data model lora train doctor bench" ;;
    iterate) echo "config data model lora dpo train generate eval" ;;
    demo) echo "config data model lora dpo train generate eval iterate report" ;;
    cli) echo "config data model lora dpo generate train eval iterate report demo doctor bench plan" ;;
    *) return 1 ;;
  esac
}

# The lines of the files given, as file:line:text, without test code.
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

breach() { # stdin: file:line:text; $1: the rule
  sed -E "s|^([^:]*:[0-9]+):[[:space:]]*(.*)|src/\1: $1\n    \2|" >>"$breaches"
}

mapfile -t files < <(find . -name '*.rs' ! -name tests.rs ! -path '*/tests/*' | sed 's|^\./||' | sort)

for file in "${files[@]}"; do
  module=${file%%/*}
  module=${module%.rs}
  # main.rs may name everything; lib.rs only declares.
  if [[ $module == main || $module == lib ]]; then continue; fi
  if ! list=$(allowed "$module"); then
    echo "$file:1:" | breach "module '$module' is not in scripts/check-imports.sh: say there what it may import"
    continue
  fi
  may=" $module $list $everybody "
  # Comments may point anywhere. A grouped root import hides names from this check.
  { code "$file" | grep -vE '^[^:]*:[0-9]+:[[:space:]]*//' | grep -E 'crate::' || true; } |
    while IFS= read -r line; do
      if [[ $line == *'crate::{'* ]]; then
        breach "one 'use crate::module' a line" <<<"$line"
      fi
      for name in $(grep -oE 'crate::[A-Za-z_]+' <<<"$line" | sed 's/^crate:://' | sort -u); do
        if [[ $may != *" $name "* ]]; then
          breach "'$module' must not import '$name'" <<<"$line"
        fi
      done
    done
done

code "${files[@]}" | grep -v '^main\.rs:' | grep -iE ':.*(cuda|wgpu|ndarray|cubecl)' |
  breach "only main.rs names a backend" || true
find . \( -name 'util.rs' -o -name 'utils.rs' -o -path '*/util/mod.rs' -o -path '*/utils/mod.rs' \) |
  sed 's|^\./||; s|$|:1:|' | breach "no 'utils': name the module after what it does"

if [[ -s $breaches ]]; then
  cat "$breaches"
  exit 1
fi
