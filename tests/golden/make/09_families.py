"""Golden data of OLMo 2 and Phi 3: tiny models, forward passes, greedy ids and DPO runs, written like those of 03 and 04.

It needs models/qwen2 (with its tokenizer) and trl/_data/pairs.jsonl of ../families in $REF_ROOT/out.
"""

from common import OUT, SEED, parse_set, save_tensors, torch_setup, write_json

import importlib
import json
import shutil

import transformers
from transformers import AutoModelForCausalLM, Olmo2Config, Phi3Config

tiny = importlib.import_module("03_tiny_models")
traces = importlib.import_module("04_trl_traces")
torch = torch_setup()
transformers.logging.set_verbosity_error()
tiny.MistralForCausalLM = traces.MistralForCausalLM = AutoModelForCausalLM
tiny.TEXTS["main"] = ["Betty earns $12 an hour. On Fri", "#### 72 so x < y", "Natalia sold"]

SIZES = dict(vocab_size=512, hidden_size=30, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             intermediate_size=44, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0)
# Of 10 features of a head 6 are rotated, by 3 frequencies.
LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.6, short_factor=[1.0, 1.1, 1.3],
                long_factor=[1.0, 4.0, 9.0], original_max_position_embeddings=256)
MODELS = {
    "olmo2": Olmo2Config(**SIZES, rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
    "phi3": Phi3Config(**SIZES, tie_word_embeddings=True, sliding_window=8, rope_parameters=LONGROPE,
                       original_max_position_embeddings=256),
}
LORA = dict(r=4, lora_alpha=8, target_modules="all-linear")
RUNS = {
    "olmo2": traces.short(model="olmo2", lora=LORA, keep=("merged",)),
    "phi3": traces.short(model="phi3", lora=LORA, keep=("merged",)),
}


def write_model(out, name, config):
    folder = out / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config)
    tiny.random_weights(model, SEED["main"] + len(name))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(out / "models" / "qwen2" / file, folder)
    tensors, info, _ = tiny.golden("main", name, folder, torch.float32, "eager")
    other, _, _ = tiny.golden("main", name, folder, torch.float32, "sdpa")
    info["sdpa_vs_eager_max_diff"] = max((other[k] - v).abs().max().item() for k, v in tensors.items() if "log" in k)
    save_tensors(out / "forward" / f"{name}.safetensors", tensors)
    write_json(out / "forward" / f"{name}.json", {
        "model": name, "model_type": config.model_type, "dtype": "float32", "attn_implementation": "eager",
        "texts": tiny.TEXTS["main"], **info})
    print(name, {k: v for k, v in info.items() if k != "generate"}, [g["min_margin"] for g in info["generate"]])


@torch.no_grad()
def merged_logits(trainer, spec):
    """Logits with the adapter active and after merge_and_unload, and one merged weight."""
    model = trainer.model.eval()
    rows = trainer.train_dataset.select(range(2))
    ids = torch.tensor([(r["prompt_ids"] + r["chosen_ids"])[:16] for r in rows])
    active = model(input_ids=ids).logits.float()
    merged = model.merge_and_unload()
    after = merged(input_ids=ids).logits.float()
    weights = dict(merged.named_parameters())
    name = next(name for name in weights if name.endswith(("q_proj.weight", "qkv_proj.weight")))
    return {"input_ids": ids, "merged_logits": after, name.replace("model.", "merged.", 1): weights[name]}, (after - active).abs().max().item()


def main():
    args = parse_set(lambda p: p.add_argument("--only", default=""))
    only = [name for name in args.only.split(",") if name]
    out = OUT[args.set]
    for name, config in MODELS.items():
        if not only or name in only:
            write_model(out, name, config)
    traces.merged_logits = merged_logits
    rows = [json.loads(line) for line in open(out / "trl" / "_data" / "pairs.jsonl", encoding="utf-8")]
    for name, spec in RUNS.items():
        if not only or name in only:
            done = traces.execute(args.set, name, spec, {"pairs": rows})
            traces.write_run(args.set, name, spec, done, {"pairs": rows})
            trace = done["trainer"].trace
            print(name, len(trace), trace[0]["loss"], trace[-1]["loss"], trace[-1]["grad_norm"])


if __name__ == "__main__":
    main()
