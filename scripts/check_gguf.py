"""Compares GGUF files of `arithmo export` with the model's folder, in programs that arithmo's authors did not write.

Usage: python scripts/check_gguf.py PROGRAM MODEL [TYPE ...]

PROGRAM is the arithmo binary, MODEL a folder in Hugging Face layout. For each type, the model is exported and

- gguf.GGUFReader opens the file and decodes every tensor,
- llama.cpp (the package xllamacpp) tokenizes texts, says how likely each next token is, and continues them greedily,
- transformers opens the file, where it has the architecture.

Token ids should be equal. Log-probabilities are compared with those of transformers on the folder, in f32. Needs torch, transformers,
gguf and xllamacpp.
"""
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
import xllamacpp

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
TEXTS = [
    "The capital of France is",
    "Question: Ruth buys 8 packs of 7 photos. How many photos is that?\n\nAnswer:",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "  Zwei Leerzeichen,\tein Tabulator, 12345 und é, 漢字, 🙂.",
]
NEW_TOKENS = 24


def hugging_face(model):
    """Returns ids, logits and greedy continuations of transformers, in f32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    results = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = network(torch.tensor([ids])).logits[0].numpy()
            whole = network.generate(
                torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
            )
        results.append((ids, logits, whole[0, len(ids) :].tolist()))
    return results


class LlamaCpp:
    """llama.cpp's server on a file, in this process."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
        # As exactly as it can, since the file is to be measured and not the program.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def ask(self, path, question):
        """Returns the server's answer to a question in JSON."""
        request = urllib.request.Request(f"{self.server.listening_address}/{path}", json.dumps(question).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokenize(self, text):
        return self.ask("tokenize", {"content": text, "add_special": True})["tokens"]

    def continue_greedily(self, ids, count, probabilities):
        """Returns the ids that follow, and at the first place the log-probabilities of the most probable tokens by id."""
        answer = self.ask("completion", {
            "prompt": ids, "n_predict": count, "temperature": 0.0, "n_probs": probabilities, "samplers": ["temperature"],
            "cache_prompt": False, "return_tokens": True,
        })
        first = answer["completion_probabilities"][0]["top_logprobs"] if probabilities else []
        return answer["tokens"], {entry["id"]: entry["logprob"] for entry in first}


def with_llama_cpp(path, expected):
    """Yields, per text, whether the ids are equal, the log-probabilities after the text, and the number of equal greedy
    tokens."""
    model = LlamaCpp(path)
    for text, (ids, logits, greedy) in zip(TEXTS, expected):
        vocabulary = logits.shape[1]
        _, logps = model.continue_greedily(ids, 1, vocabulary)
        found, _ = model.continue_greedily(ids, NEW_TOKENS, 0)
        wanted = greedy[: len(found)]
        equal = next((i for i, (a, b) in enumerate(zip(found, wanted)) if a != b), len(wanted))
        row = np.array([logps.get(token, -np.inf) for token in range(vocabulary)])
        yield model.tokenize(text) == ids, row, (equal, len(wanted))


def with_transformers(path, expected):
    """Yields, per text, the logits of transformers on the file, whose weights it decodes to f32."""
    folder, name = str(path.parent), path.name
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    for ids, _, _ in expected:
        with torch.no_grad():
            yield network(torch.tensor([ids])).logits[0].numpy()


def ids_of_transformers(path, expected):
    """Returns for how many texts the tokenizer that transformers reads from the file has the same ids."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return sum(tokenizer(text)["input_ids"] == ids for text, (ids, _, _) in zip(TEXTS, expected))


def check(program, model, kind, folder, expected):
    path = Path(folder) / f"{kind}.gguf"
    command = [program, "--backend", "ndarray", "--quiet", "export", "--model", model, "--type", kind, "--output", path]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(decoded).all(), tensor.name
    print(f"{kind}: {path.stat().st_size / 1e6:.1f} MB, {len(reader.tensors)} tensors, {len(reader.fields)} keys")
    results = list(with_llama_cpp(path, expected))
    last = [torch.log_softmax(torch.tensor(logits[-1], dtype=torch.float64), -1).numpy() for _, logits, _ in expected]
    difference = max(np.abs(row - wanted)[np.isfinite(row)].max() for (_, row, _), wanted in zip(results, last))
    kl = np.mean([(np.exp(w) * np.where(np.isfinite(r), w - r, 0.0)).sum() for (_, r, _), w in zip(results, last)])
    same_ids = sum(r[0] for r in results)
    greedy = ", ".join(f"{equal} of {count}" for _, _, (equal, count) in results)
    print(f"  llama.cpp: ids equal {same_ids} of {len(TEXTS)}; log-probabilities after a text differ by at most {difference:.2e}, KL {kl:.2e};"
          f" greedy tokens equal {greedy}")
    try:
        logits = list(with_transformers(path, expected))
    except (ValueError, NotImplementedError, RuntimeError) as error:
        print(f"  transformers: cannot open it: {str(error).splitlines()[0][:120]}")
    else:
        difference = max(np.abs(a - b).max() for a, (_, b, _) in zip(logits, expected))
        same_ids = ids_of_transformers(path, expected)
        print(f"  transformers: ids equal {same_ids} of {len(TEXTS)}; logits differ by at most {difference:.2e}")
    path.unlink()


def main():
    transformers.logging.set_verbosity_error()
    program, model, kinds = sys.argv[1], sys.argv[2], sys.argv[3:] or TYPES
    expected = hugging_face(model)
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            check(program, model, kind, folder, expected)


if __name__ == "__main__":
    main()
