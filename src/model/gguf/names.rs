//! The names that tensors have in GGUF files, and the order of rows that llama.cpp expects.

use crate::model::config::DecoderConfig;
use crate::model::names::{EMBEDDING, FINAL_NORM, HEAD, ModelTensor};
use crate::model::switches::NormPlacement;

/// Name of the tensor with one divisor per rotary frequency.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Splits the module name of a layer's part into the layer and the path below it, as in `(0, "mlp.up_proj")`.
pub(super) fn layer_and_path(module: &str) -> Option<(usize, &str)> {
    let (layer, path) = module.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, path))
}

/// Returns the name of a tensor in a GGUF file; `None` for one that no known model has.
pub(super) fn gguf_name(tensor: &ModelTensor, placement: NormPlacement) -> Option<String> {
    let module = tensor.module();
    let suffix = &tensor.name[module.len()..];
    let base = match module {
        EMBEDDING => "token_embd".to_string(),
        FINAL_NORM => "output_norm".to_string(),
        HEAD => "output".to_string(),
        _ => {
            let (layer, path) = layer_and_path(module)?;
            format!("blk.{layer}.{}", layer_part(path, placement)?)
        }
    };
    Some(format!("{base}{suffix}"))
}

/// Returns the name of a part of a layer. `post_attention_layernorm` is the norm before the feed-forward block, except
/// where layers also have norms behind their halves.
fn layer_part(path: &str, placement: NormPlacement) -> Option<&'static str> {
    Some(match (path, placement) {
        ("self_attn.q_proj", _) => "attn_q",
        ("self_attn.k_proj", _) => "attn_k",
        ("self_attn.v_proj", _) => "attn_v",
        ("self_attn.qkv_proj", _) => "attn_qkv",
        ("self_attn.o_proj", _) => "attn_output",
        ("self_attn.q_norm", _) => "attn_q_norm",
        ("self_attn.k_norm", _) => "attn_k_norm",
        ("mlp.gate_proj", _) => "ffn_gate",
        ("mlp.up_proj" | "mlp.gate_up_proj", _) => "ffn_up",
        ("mlp.down_proj", _) => "ffn_down",
        ("input_layernorm", _) => "attn_norm",
        ("post_attention_layernorm", NormPlacement::Before) => "ffn_norm",
        ("post_attention_layernorm", _) => "post_attention_norm",
        ("pre_feedforward_layernorm", _) => "ffn_norm",
        ("post_feedforward_layernorm", _) => "post_ffw_norm",
        _ => return None,
    })
}

/// Returns the number of heads of a tensor whose rows are the features of queries or keys, else `None`.
pub(super) fn rotated_heads(tensor: &ModelTensor, config: &DecoderConfig) -> Option<usize> {
    match layer_and_path(tensor.module())?.1 {
        "self_attn.q_proj" => Some(config.num_attention_heads),
        "self_attn.k_proj" => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Reorders the rows of each head from Hugging Face's order, in which row `i` is rotated with row `i + d / 2`, to Meta's, in
/// which row `2 i` is rotated with row `2 i + 1`.
///
/// # Panics
/// Panics if the values are not those of `heads` heads with an even number of rows.
pub(super) fn interleave_rotated_rows(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (head_dim, width) = (rows / heads, values.len() / rows);
    assert!(head_dim * heads == rows && head_dim.is_multiple_of(2), "{rows} rows of {heads} heads");
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_interleaved() {
        // Two heads of four rows of two values.
        let values: Vec<f32> = (0..16).map(|value| value as f32).collect();
        let expected =
            [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15].map(|value| value as f32);
        assert_eq!(interleave_rotated_rows(&values, 2, 8), expected);
        // A bias has one value per row.
        assert_eq!(interleave_rotated_rows(&[0.0, 1.0, 2.0, 3.0], 1, 4), [0.0, 2.0, 1.0, 3.0]);
    }
}
