"""Golden data of TRL's SFTTrainer: runs that train biases (PEFT's `bias`), and token ids and labels with assistant_only_loss.

It needs models/qwen2 and trl/_data/pairs.jsonl of ../families in $REF_ROOT/out, and writes sft/ there.
"""

from common import OUT, parse_set, torch_setup, write_json, write_jsonl

import contextlib
import importlib
import io
import json
import shutil
import tempfile
from pathlib import Path

import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

traces = importlib.import_module("04_trl_traces")
torch = torch_setup()
transformers.logging.set_verbosity_error()

SFT = dict(learning_rate=5e-3, lr_scheduler_type="cosine", warmup_steps=2, max_steps=10, per_device_train_batch_size=2,
           gradient_accumulation_steps=2, optim="adamw_torch", weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.999,
           adam_epsilon=1e-8, max_grad_norm=1.0, max_length=192, truncation_mode="keep_start")
LORA = dict(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
METRICS = ("loss", "grad_norm", "learning_rate", "entropy", "num_tokens", "mean_token_accuracy")

TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

{% else %}
<{{ message.role }}> {{ message.content }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{% endif %}"""


def turns(*contents, system=None):
    """A conversation whose turns alternate, the user's first."""
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


MESSAGES = [
    {"messages": turns("What is 2 + 3?", "2 + 3 = 5.")},
    {"messages": turns("Add 2 and 3.", "5", "And one more?", "6, of course.", "Thanks!", "You are welcome.")},
    {"messages": turns("Is 7 prime? é", "Yes: 数 \U0001f600é", "Why?", "\U0001f600", system="Be short.")},
    {"messages": turns("Natalia sold 48 clips in April.", "She sold 24 in May", "How many in all?")},
]
PROMPTS = [
    {"prompt": turns("What is 2 + 3?"), "completion": [{"role": "assistant", "content": "2 + 3 = 5."}]},
    {"prompt": turns("Hi", "Hello, how are you?", "Fine. 1 + 1?"),
     "completion": [{"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes \U0001f600"}]},
]


class Tracing(SFTTrainer):
    def log(self, logs, start_time=None):
        if "loss" in logs:
            kept = {k: logs[k] for k in METRICS if k in logs}
        super().log(logs, start_time)
        if "loss" in logs:
            self.trace.append({"step": self.state.global_step, "epoch": self.state.epoch, **kept,
                               **{k: logs[k] for k in METRICS if k in logs}})


def trainer_of(out, rows, tmp, lora=None, template=None, **config):
    folder = out / "models" / "qwen2"
    tok = AutoTokenizer.from_pretrained(folder)
    tok.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    trainer = Tracing(model=model, args=SFTConfig(output_dir=tmp, seed=42, **traces.FIXED, **config),
                      train_dataset=Dataset.from_list(rows), processing_class=tok,
                      peft_config=LoraConfig(**lora) if lora else None)
    trainer.trace = []
    return trainer


def write_run(out, name, rows, bias):
    with tempfile.TemporaryDirectory() as tmp:
        trainer = trainer_of(out, rows, tmp, lora=dict(LORA, bias=bias), **SFT)
        traces.set_init(trainer.model, {"init": "small_b", "lora": {}}, "main")
        folder = out / "sft" / name
        shutil.rmtree(folder, ignore_errors=True)
        traces.save_adapter(trainer.model, folder)
        (folder / "adapter_model.safetensors").rename(folder / "init_adapter.safetensors")
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        traces.save_adapter(trainer.model, folder)
        write_jsonl(folder / "trace.jsonl", trainer.trace)
        write_json(folder / "config.json", {
            "name": name, "trainer": "sft", "model": "qwen2", "base_precision": "f32", "adapter_init": "small_b",
            "reference": "none", "dataset": "pairs", "lora": dict(LORA, bias=bias), "sft": SFT})
        print(name, len(trainer.trace), trainer.trace[0], trainer.trace[-1])


def write_labels(out):
    cases = []
    for kind, rows in (("messages", MESSAGES), ("prompt_completion", PROMPTS)):
        for length, mode in ((None, "keep_start"), (24, "keep_start"), (24, "keep_end")):
            with tempfile.TemporaryDirectory() as tmp:
                try:
                    trainer = trainer_of(out, rows, tmp, template=TEMPLATE, assistant_only_loss=True, max_steps=1,
                                         max_length=length, truncation_mode=mode)
                except Exception as e:  # noqa: BLE001
                    print(kind, length, mode, type(e).__name__, str(e)[:300])
                    continue
                data = trainer.train_dataset
                # A row of which truncation left nothing to learn is not in the data any more.
                texts = [[{k: got[k] for k in rows[0]} for got in data], data["input_ids"], data["labels"]]
                cases.append({"kind": kind, "max_length": length, "truncation_mode": mode, "rows": [
                    {"row": row, "input_ids": list(ids), "labels": list(labels)} for row, ids, labels in zip(*texts)]})
                print(kind, length, mode, data.column_names, len(data), [sum(x >= 0 for x in r["labels"]) for r in data])
    write_json(out / "sft" / "assistant_only.json", {"template": TEMPLATE, "cases": cases}, compact=True)


def main():
    args = parse_set()
    out = OUT[args.set]
    write_labels(out)
    rows = [json.loads(line) for line in open(out / "trl" / "_data" / "pairs.jsonl", encoding="utf-8")]
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    write_run(out, "bias_all", rows, "all")
    write_run(out, "bias_lora_only", rows, "lora_only")


if __name__ == "__main__":
    main()
