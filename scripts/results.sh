#!/usr/bin/env bash
# Measures what training changes in a small real model, stage by stage; docs/results.md shows what came out.
#   scripts/results.sh MODEL GSM8K POSTS OUT
# MODEL: the folder of SmolLM2-135M-Instruct, or of another chat model. GSM8K: a folder with train.jsonl and test.jsonl.
# POSTS: a Posts.xml of Stack Exchange. OUT: where everything goes. ARITHMO: the program, default `arithmo` on the PATH.
# Started again, it goes on where it stopped: finished stages are skipped, training and evaluation resume.
set -euo pipefail
model=$(realpath "$1") gsm8k=$(realpath "$2") posts=$(realpath "$3")
program=$(command -v "${ARITHMO:-arithmo}")
mkdir -p "$4"
cd "$4"

# The sizes that two CPU cores compute in some two hours. Training and sampling take the problems with the fewest steps, which
# a small model learns first; every problem of test.jsonl is asked.
sft_rows=3200        # problems of the first half of train.jsonl with their solutions, for supervised fine-tuning
sampled_rows=500     # problems of the second half, to which the model writes its own answers
samples=8            # answers to each of them
pairs_per_problem=2  # at most
held_out_pairs=30    # pairs of its own answers that are only measured
answer_tokens=200    # longest answer to a problem of test.jsonl
sampled_tokens=120   # longest answer that is sampled

stage() { # stage NAME COMMAND...: runs a command once, and says how long it took
  if [[ -e done/$1 ]]; then return; fi
  local name=$1 begin=$SECONDS
  shift
  echo "=== $name: $*"
  "$@"
  mkdir -p done
  echo "$((SECONDS - begin)) s" >"done/$name"
}

# GSM8K's rows as conversations, without the marks of a calculator, <<48/2=24>>. Each mark is a step of the solution.
conversations() {
  python3 - "$gsm8k/train.jsonl" "$sft_rows" "$sampled_rows" <<'END'
import json, re, sys

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
half = len(rows) // 2

def fewest_steps(rows, count):
    chosen = set(sorted(range(len(rows)), key=lambda row: rows[row]["answer"].count("<<"))[:count])
    return [row for index, row in enumerate(rows) if index in chosen]

with open("sft.jsonl", "w", encoding="utf-8") as file:
    for row in fewest_steps([row for row in rows[:half] if "<<" in row["answer"]], int(sys.argv[2])):
        print(json.dumps({
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": re.sub("<<.*?>>", "", row["answer"])}],
        }), file=file)
with open("problems.jsonl", "w", encoding="utf-8") as file:
    for row in fewest_steps([row for row in rows[half:] if "<<" in row["answer"]], int(sys.argv[3])):
        print(json.dumps(row), file=file)
END
}

# The first pairs are trained on, the last ones are measured. They are about different problems.
split() { # split PAIRS
  python3 - "$1" "$held_out_pairs" <<'END'
import json, sys

lines = open(f"{sys.argv[1]}.jsonl", encoding="utf-8").readlines()
prompts = [json.loads(line)["prompt"] for line in lines]
first = len(lines) - int(sys.argv[2])
while 0 < first and prompts[first - 1] == prompts[first]:
    first -= 1
open(f"{sys.argv[1]}.train.jsonl", "w", encoding="utf-8").writelines(lines[:first])
open(f"{sys.argv[1]}.held-out.jsonl", "w", encoding="utf-8").writelines(lines[first:])
END
}

train() { # train NAME MODEL TRAIN_FILE LINES_OF_THE_CONFIG
  cat >"$1.toml" <<END
output_dir = "$1"
$4
[model]
model_name_or_path = "$2"
dtype = "f32"

[lora]
r = 32
lora_alpha = 64
target_modules = "all-linear"

[train]
per_device_train_batch_size = 8
gradient_accumulation_steps = 2
max_steps = -1
num_train_epochs = $epochs
learning_rate = $learning_rate
lr_scheduler_type = "cosine"
warmup_steps = 5
logging_steps = 5
save_steps = 20
gradient_checkpointing = false

[data]
max_length = 512
train_file = "$3"
${5:-}
END
  local resume=()
  if [[ -d $1 ]]; then resume=(--resume); fi
  "$program" train --config "$1.toml" "${resume[@]}"
}

gsm8k() { # gsm8k OUTPUT MODEL [OPTION...]
  local output=$1 weights=$2
  shift 2
  "$program" evaluate gsm8k --model "$weights" --dtype f32 --data "$gsm8k/test.jsonl" --max-new-tokens "$answer_tokens" \
    --batch-size 32 --output "$output" "$@"
}

preference() { # preference OUTPUT MODEL PAIRS [OPTION...]
  local output=$1 weights=$2 pairs=$3
  shift 3
  "$program" evaluate preference --model "$weights" --dtype f32 --data "$pairs" --output "$output" "$@"
}

# Supervised fine-tuning on solutions.
stage conversations conversations
epochs=1 learning_rate=1e-3 stage sft train sft "$model" sft.jsonl 'method = "sft"'
stage merge "$program" merge --model "$model" --adapter sft/adapter --output sft-model
stage gsm8k-sft gsm8k gsm8k-sft sft-model

# DPO on pairs of its own answers, a right one and a wrong one to the same problem.
stage sample "$program" sample-pairs --model sft-model --dtype f32 --data problems.jsonl --samples "$samples" \
  --temperature 0.8 --pairs-per-problem "$pairs_per_problem" --max-new-tokens "$sampled_tokens" --output own.jsonl
stage split split own
epochs=2 learning_rate=2e-4 stage sigmoid train sigmoid sft-model own.train.jsonl '
[dpo]
beta = 0.1'
stage gsm8k-sigmoid gsm8k gsm8k-sigmoid sft-model --adapter sigmoid/adapter
# The same with the cross-entropy of the right answers (arXiv 2404.19733).
epochs=2 learning_rate=2e-4 stage sigmoid-sft train sigmoid-sft sft-model own.train.jsonl '
[dpo]
beta = 0.1
loss_type = ["sigmoid", "sft"]
loss_weights = [1.0, 1.0]'
stage gsm8k-sigmoid-sft gsm8k gsm8k-sigmoid-sft sft-model --adapter sigmoid-sft/adapter
# Which answer of the held-out pairs each stage prefers. SFT is measured as an adapter, so that it has an implicit reward too.
stage preference-before preference preference-before "$model" own.held-out.jsonl
stage preference-sft preference preference-sft "$model" own.held-out.jsonl --adapter sft/adapter
stage preference-sigmoid preference preference-sigmoid sft-model own.held-out.jsonl --adapter sigmoid/adapter
stage preference-sigmoid-sft preference preference-sigmoid-sft sft-model own.held-out.jsonl --adapter sigmoid-sft/adapter

# What the original project ran: DPO on voted pairs only, from the model as published.
stage gsm8k-before gsm8k gsm8k-before "$model"
voted_rules() {
  cat >voted-rules.toml <<'END'
question_filters = []
min_score_gap = 1
held_out_fraction = 0.2
END
}
stage voted-rules voted_rules
stage voted-pairs "$program" prepare --input "$posts" --config voted-rules.toml --exclude-questions "$gsm8k/test.jsonl" --output voted-pairs.jsonl
epochs=2 learning_rate=2e-4 stage voted train voted "$model" voted-pairs.jsonl '
[dpo]
beta = 0.1' 'prompt_template = "Question: {prompt}\n\nAnswer:"'
stage gsm8k-voted gsm8k gsm8k-voted "$model" --adapter voted/adapter
voted_preference() { # voted_preference OUTPUT [OPTION...]
  local output=$1
  shift
  preference "$output" "$model" voted-pairs.held-out.jsonl --prompt-template 'Question: {prompt}\n\nAnswer:' "$@"
}
stage preference-voted-before voted_preference preference-voted-before
stage preference-voted voted_preference preference-voted --adapter voted/adapter

# What changed between two stages, with McNemar's exact test.
compare() { # compare TASK BEFORE AFTER
  stage "compare-$1-$2-$3" "$program" compare "$1-$2" "$1-$3" --output "compare-$1-$2-$3"
}
for task in gsm8k preference; do
  compare "$task" before sft
  compare "$task" sft sigmoid
  compare "$task" sft sigmoid-sft
  compare "$task" before sigmoid-sft
done
compare gsm8k before voted
compare preference voted-before voted
