"""Replays runs from the written files with a minimal trainer (no transformers, trl, peft).

This shows that a trl/<name>/ folder has everything that a port needs, and how close an independent f32 implementation is.
"""

from common import OUT, parse_set, torch_setup

import json
import math

from safetensors.torch import load_file

torch = torch_setup()
from torch.nn import functional as F  # noqa: E402

RUNS = {
    "main": ["a_sigmoid_lr5e-5", "a_sigmoid_lr5e-3", "a_sigmoid_lr5e-3_nonzero_b", "b_sigmoid_lr5e-3", "b_sigmoid_lr5e-3_nonzero_b",
             "dropped_and_partial_accum", "optim_wd_betas_clip", "optim_no_clip_linear", "lora_rslora", "lora_all_linear", "lora_dora",
             "batch4_accum1", "b_batch4_accum1", "keep_end_truncation", "max_length96", "loss_ipo", "loss_sft", "loss_sigmoid_norm",
             "a_continue_adapter", "nf4_dequantised_base", "optim_constant_with_warmup"],
}


class Mistral:
    def __init__(self, folder, adapter, scaling, nf4=False):
        self.c = json.loads((folder / "config.json").read_text())
        self.w = {k: v.float() for f in sorted(folder.glob("model*.safetensors")) for k, v in load_file(f).items()}
        if nf4:
            for k, v in self.w.items():
                if "_proj" in k:
                    self.w[k] = nf4_round(v)
        self.a, self.scaling = adapter, scaling
        c = self.c
        self.dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        theta = c["rope_parameters"]["rope_theta"] if "rope_parameters" in c else c["rope_theta"]
        self.inv = 1.0 / (theta ** (torch.arange(0, self.dim, 2).float() / self.dim))

    def linear(self, x, name, adapter):
        w = self.w[f"{name}.weight"]
        y = x @ w.T
        p = f"base_model.model.{name}."
        if adapter is None or p + "lora_A.weight" not in adapter:
            return y
        a, b = adapter[p + "lora_A.weight"], adapter[p + "lora_B.weight"]
        low = (x @ a.T) @ b.T * self.scaling
        m = adapter.get(p + "lora_magnitude_vector")
        if m is None:
            return y + low
        norm = torch.linalg.norm(w + self.scaling * (b @ a).detach(), dim=1)
        return (m / norm) * (y + low)

    def norm(self, x, name):
        return self.w[name] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"]))

    def logits(self, ids, mask, adapter):
        c, (bsz, n) = self.c, ids.shape
        angle = torch.arange(n).float()[:, None] * self.inv
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        half = self.dim // 2
        rot = lambda t: t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin  # noqa: E731
        i, j = torch.arange(n)[:, None], torch.arange(n)[None]
        allowed = j <= i
        if c["sliding_window"]:
            allowed = allowed & (i - j < c["sliding_window"])
        allowed = allowed[None, None] & mask[:, None, None, :].bool()
        x = F.embedding(ids, self.w["model.embed_tokens.weight"])
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = self.norm(x, p + "input_layernorm.weight")
            q = rot(self.linear(h, p + "self_attn.q_proj", adapter).view(bsz, n, heads, self.dim).transpose(1, 2))
            k = rot(self.linear(h, p + "self_attn.k_proj", adapter).view(bsz, n, kv, self.dim).transpose(1, 2))
            v = self.linear(h, p + "self_attn.v_proj", adapter).view(bsz, n, kv, self.dim).transpose(1, 2)
            k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
            s = (q @ k.transpose(-1, -2) / math.sqrt(self.dim)).masked_fill(~allowed, torch.finfo(torch.float32).min)
            o = (s.softmax(-1) @ v).transpose(1, 2).reshape(bsz, n, -1)
            x = x + self.linear(o, p + "self_attn.o_proj", adapter)
            h = self.norm(x, p + "post_attention_layernorm.weight")
            g = F.silu(self.linear(h, p + "mlp.gate_proj", adapter)) * self.linear(h, p + "mlp.up_proj", adapter)
            x = x + self.linear(g, p + "mlp.down_proj", adapter)
        x = self.norm(x, "model.norm.weight")
        return x @ self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]).T


def nf4_round(w):
    code = load_file(OUT["main"] / "nf4" / "matrix.safetensors")["nf4_code"]
    blocks = w.reshape(-1, 64)
    absmax = blocks.abs().amax(1, keepdim=True)
    return (code[torch.bucketize(blocks * (1 / absmax), (code[1:] + code[:-1]) / 2)] * absmax).reshape(w.shape)


def collate(samples, cfg):
    d = cfg["dpo"]
    cut = (lambda x: x[: d["max_length"]]) if d["truncation_mode"] == "keep_start" else (lambda x: x[-d["max_length"]:])
    rows = [cut([(t, 0) for t in s["prompt_ids"]] + [(t, 1) for t in s[k]]) for k in ("chosen_ids", "rejected_ids") for s in samples]
    n = max(map(len, rows))
    ids = torch.tensor([[t for t, _ in r] + [cfg["pad_token_id"]] * (n - len(r)) for r in rows])
    comp = torch.tensor([[c for _, c in r] + [0] * (n - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (n - len(r)) for r in rows])
    return ids, mask, comp


def seq_logps(model, ids, mask, comp, adapter):
    lp = model.logits(ids, mask, adapter)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * comp[:, 1:]
    return lp


def loss_of(kind, cfg, lp, ref, comp):
    beta, n = cfg["dpo"]["beta"], len(lp) // 2
    s, r, length = lp.sum(1), ref.sum(1), comp.sum(1)
    ratio = s - r
    c, j = ratio[:n], ratio[n:]
    if kind == "sigmoid":
        return -F.logsigmoid(beta * (c - j)).mean()
    if kind == "ipo":
        return ((c / length[:n] - j / length[n:] - 1 / (2 * beta)) ** 2).mean()
    if kind == "sft":
        return -lp[:n].sum() / length[:n].sum()
    if kind == "sigmoid_norm":
        return -F.logsigmoid(beta * (c / length[:n] - j / length[n:])).mean()
    raise ValueError(kind)


def rate(d, step, warmup, total):
    if step < warmup:
        return d["learning_rate"] * step / max(1, warmup)
    if d["lr_scheduler_type"] == "constant_with_warmup":
        return d["learning_rate"]
    t = (step - warmup) / max(1, total - warmup)
    if d["lr_scheduler_type"] == "linear":
        return d["learning_rate"] * max(0.0, 1 - t)
    return d["learning_rate"] * max(0.0, 0.5 * (1 + math.cos(math.pi * t)))


def replay(set_name, name):
    folder = OUT[set_name] / "trl" / name
    cfg = json.loads((folder / "config.json").read_text())
    d = cfg["dpo"]
    adapter = {k: v.requires_grad_() for k, v in load_file(folder / "init_adapter.safetensors").items()}
    ref_adapter = {k: v.detach().clone() for k, v in adapter.items()} if cfg["adapter_init"].startswith("continue") else None
    model = Mistral(OUT[set_name] / "models" / cfg["model"], adapter, cfg["lora"]["scaling"], cfg["base_precision"] == "nf4")
    opt = torch.optim.AdamW(adapter.values(), lr=0.0, betas=(d["adam_beta1"], d["adam_beta2"]), eps=d["adam_epsilon"],
                            weight_decay=d["weight_decay"], foreach=False)
    bs, accum, samples, total = d["per_device_train_batch_size"], d["gradient_accumulation_steps"], cfg["samples"], cfg["optimizer_steps"]
    micro = [samples[i : i + bs] for i in range(0, len(samples), bs)]
    steps = [micro[i : i + accum] for i in range(0, len(micro), accum)]
    trace = [json.loads(line) for line in open(folder / "trace.jsonl", encoding="utf-8")]
    worst = {"loss": 0.0, "grad_norm_rel": 0.0, "rewards/chosen": 0.0, "logps/rejected": 0.0, "lr_rel": 0.0}
    for step in range(total):
        group, total_loss, rewards, rejected = steps[step % len(steps)], 0.0, [], []
        for batch in group:
            ids, mask, comp = collate(batch, cfg)
            with torch.no_grad():
                ref = seq_logps(model, ids, mask, comp, ref_adapter)
            lp = seq_logps(model, ids, mask, comp, adapter)
            loss = loss_of(d["loss_type"][0], cfg, lp, ref, comp) / len(group)
            loss.backward()
            total_loss += loss.item()
            n = len(batch)
            rewards.append((d["beta"] * (lp.sum(1) - ref.sum(1))[:n]).mean().item())
            rejected.append(lp.sum(1)[n:].mean().item())
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in adapter.values()]))
        if d["max_grad_norm"] > 0:
            for p in adapter.values():
                p.grad.mul_((d["max_grad_norm"] / (norm + 1e-6)).clamp(max=1.0))
        lr = rate(d, step, cfg["warmup_steps_resolved"], total)
        opt.param_groups[0]["lr"] = lr
        opt.step()
        opt.zero_grad()
        row = trace[step]
        mean = lambda x: sum(x) / len(x)  # noqa: E731
        worst["loss"] = max(worst["loss"], abs(row["loss"] - total_loss))
        worst["grad_norm_rel"] = max(worst["grad_norm_rel"], abs(row["grad_norm"] - norm.item()) / row["grad_norm"])
        worst["rewards/chosen"] = max(worst["rewards/chosen"], abs(row["rewards/chosen"] - mean(rewards)))
        worst["logps/rejected"] = max(worst["logps/rejected"], abs(row["logps/rejected"] - mean(rejected)))
        worst["lr_rel"] = max(worst["lr_rel"], abs(row["learning_rate"] - lr) / d["learning_rate"])
    final = load_file(folder / "adapter_model.safetensors")
    worst["adapter"] = max((final[k] - adapter[k]).abs().max().item() for k in final)
    worst["adapter_moved"] = max((final[k] - v).abs().max().item() for k, v in load_file(folder / "init_adapter.safetensors").items())
    return worst


def main():
    args = parse_set()
    for name in RUNS[args.set]:
        print(name, {k: f"{v:.1e}" for k, v in replay(args.set, name).items()}, flush=True)


if __name__ == "__main__":
    main()
