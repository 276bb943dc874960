"""Compares GGUF files of `arithmo export` with the model's folder, in programs that arithmo's authors did not write.

Usage: python scripts/check_gguf.py PROGRAM MODEL [TYPE ...]

PROGRAM is the arithmo binary, MODEL a folder in Hugging Face layout. For each type, the model is exported and

- gguf.GGUFReader opens the file and decodes every tensor,
- llama.cpp (the package llama-cpp-python) tokenizes texts, evaluates them and continues them greedily,
- transformers opens the file, where it has the architecture.

Token ids must be equal. Logits are compared with those of transformers on the folder, in f32. Needs torch, transformers,
gguf and llama-cpp-python.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
import transformers

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


def nats(logits, ids):
    """Returns the mean negative log-likelihood of the tokens after the first."""
    logits = torch.tensor(logits[:-1], dtype=torch.float64)
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()


def divergence(reference, logits):
    """Returns the mean KL divergence from the reference, in nats per token."""
    logs = [torch.log_softmax(torch.tensor(x, dtype=torch.float64), -1) for x in (reference, logits)]
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean().item()


def with_llama_cpp(path, expected):
    """Yields, per text, whether the ids are equal, the logits, and the number of equal greedy tokens."""
    model = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    for text, (ids, _, greedy) in zip(TEXTS, expected):
        own = model.tokenize(text.encode(), add_bos=True, special=False)
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)])
        found = []
        row = logits[-1]
        while len(found) < NEW_TOKENS:
            found.append(int(row.argmax()))
            model.eval(found[-1:])
            row = model.scores[model.n_tokens - 1]
        equal = next((i for i, (a, b) in enumerate(zip(found, greedy)) if a != b), NEW_TOKENS)
        yield own == ids, logits, equal
    model.close()


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
    true_nats = np.mean([nats(logits, ids) for ids, logits, _ in expected])

    def report(name, all_logits, further):
        largest = max(np.abs(a - b).max() for a, (_, b, _) in zip(all_logits, expected))
        kl = np.mean([divergence(b, a) for a, (_, b, _) in zip(all_logits, expected)])
        ratio = np.exp(np.mean([nats(a, ids) for a, (ids, _, _) in zip(all_logits, expected)]) - true_nats)
        print(f"  {name}: logits differ by at most {largest:.2e}, KL {kl:.2e}, perplexity x {ratio:.4f}{further}")

    results = list(with_llama_cpp(path, expected))
    same_ids, greedy = sum(r[0] for r in results), [r[2] for r in results]
    further = f", ids equal {same_ids} of {len(TEXTS)}, greedy tokens equal {greedy} of {NEW_TOKENS}"
    report("llama.cpp", [r[1] for r in results], further)
    try:
        logits = list(with_transformers(path, expected))
    except (ValueError, NotImplementedError, RuntimeError) as error:
        print(f"  transformers: cannot open it: {str(error).splitlines()[0][:120]}")
    else:
        further = f", ids equal {ids_of_transformers(path, expected)} of {len(TEXTS)}"
        report("transformers", logits, further)
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
