"""Opens adapters with PEFT and merged folders with transformers, and compares log-probabilities with the program's.

Reads jobs.json in the working folder: base, adapter, merged, and the files that `arithmo score --per-token` wrote of both. Prints the
largest difference of each. Fails if one exceeds the tolerance of log-probabilities in f32.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
torch.set_num_threads(1)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def difference(model, tokenizer, scores):
    """The largest difference of a completion token's log-probability."""
    worst = 0.0
    with open("pairs.jsonl") as pairs, open(scores) as scores:
        for pair, score in zip(map(json.loads, pairs), map(json.loads, scores), strict=True):
            prompt = tokenizer(pair["prompt"])["input_ids"]
            for side in ("chosen", "rejected"):
                completion = score[f"token_ids/{side}"]
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
                theirs = logits.log_softmax(-1)[range(len(completion)), completion]
                ours = torch.tensor(score[f"token_logps/{side}"])
                worst = max(worst, (theirs - ours).abs().max().item())
    return worst


TOLERANCE = 5e-4
failed = False
for job in json.load(open("jobs.json")):
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    adapted = PeftModel.from_pretrained(load(job["base"]), job["adapter"]).eval()
    models = {"adapter": adapted, "merged": load(job["merged"])}
    for (name, model), scores in zip(models.items(), job["scores"], strict=True):
        worst = difference(model, tokenizer, scores)
        print(f"{job['base'].rsplit('/', 1)[-1]} {name}: {worst:.1e}")
        failed |= not worst <= TOLERANCE
sys.exit(failed)
