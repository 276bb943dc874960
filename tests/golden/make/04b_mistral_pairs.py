"""Tokenizes preference pairs with TRL's dataset preparation and the real Mistral-7B-v0.1 tokenizer (no model).

-> trl/_data/mistral_tokenized.jsonl: {"prompt", "chosen", "rejected", "prompt_alone_ids", "prompt_ids", "chosen_ids", "rejected_ids"}
Runs `DPOTrainer._prepare_dataset` on a stub. Pairs that are dropped because of a long prompt have null ids (max_length 160).
"""

from common import OUT, parse_set, rng, torch_setup, write_jsonl

import tempfile
from shutil import copy
from types import SimpleNamespace

import transformers
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, MistralConfig
from trl import DPOTrainer

from word_problems import long_prompt_pair, preference_pairs

torch_setup()
transformers.logging.set_verbosity_error()
disable_progress_bars()
MAX_LENGTH = 160

HAND = {
    "main": [
        ("Q: What is 2+2?\nA:", " 4", " 5"),
        ("Q: What is 2+2?\nA: ", "4", "5"),
        ("Q: What is 2+2?\nA:", "4", "5"),
        ("Q: What is 2+2?\nA:\n", "4", "5"),
        ("Question: Solve $x^2=4$.\n\nAnswer: ", "$x=\\pm 2$", "$x=2$"),
        ("Let $a < b$.\n\n### Response:\n", "Then $b > a$.", "Then $a > b$.\n"),
        ("[INST] hi [/INST]", " hello</s>", " hello </s>"),
        ("ends in half a wor", "d and goes on", "k and stops"),
        ("same answers ", "x", "x"),
        ("unicode π: ", "π≈3.14159", "数 🙂"),
        ("empty rejected:", " something", ""),
        ("", "no prompt", "no prompt at all"),
        ("   leading spaces", "   spaces too", "\n\nnewlines"),
        ("eos inside</s> prompt", " ok", " not ok"),
    ],
}


def main():
    args = parse_set()
    folder = OUT["main"] / "mistral-tokenizer"
    rows = [dict(zip(("prompt", "chosen", "rejected"), r)) for r in HAND[args.set]]
    rows += preference_pairs(rng(args.set, "mistral-pairs"), args.set, 36)
    rows.insert(5, long_prompt_pair(rng(args.set, "mistral-long"), args.set, 5))
    for i, row in enumerate(rows):
        row["index"] = i
    with tempfile.TemporaryDirectory() as tmp:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            copy(folder / name, tmp)
        MistralConfig().save_pretrained(tmp)  # so that AutoTokenizer takes tokenizer.json as it is
        tok = AutoTokenizer.from_pretrained(tmp)
        stub = SimpleNamespace(_tokenizer=tok)
        config = SimpleNamespace(dataset_num_proc=None, max_length=MAX_LENGTH, truncation_mode="keep_start")
        done = DPOTrainer._prepare_dataset(stub, Dataset.from_list(rows), tok, config, "train")
        ids = {r["index"]: {k: r[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for r in done}
        out = []
        for row in rows:
            i = row.pop("index")
            empty = dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"))
            out.append({**row, "prompt_alone_ids": tok(row["prompt"])["input_ids"], **ids.get(i, empty)})
    write_jsonl(OUT[args.set] / "trl" / "_data" / "mistral_tokenized.jsonl", out)
    changed = sum(r["prompt_ids"] is not None and r["prompt_ids"] != r["prompt_alone_ids"] for r in out)
    print(args.set, len(out), "pairs,", sum(r["prompt_ids"] is None for r in out), "dropped,", changed, "with a shortened prompt")


if __name__ == "__main__":
    main()
