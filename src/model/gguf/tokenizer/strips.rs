//! Added tokens that take the spaces beside them (`lstrip`, `rstrip`) or stand only for whole words (`single_word`).
//!
//! GGUF has no keys for that. llama.cpp knows it of one family: where the model's name contains "phi-3" or "phi3", its special
//! tokens take the spaces behind them, all but three (`llama_vocab::impl::load`). So the name is chosen by the tokenizer.

use serde_json::Value as Json;

use crate::error::first_few;

/// Parts of names by which llama.cpp recognizes Phi 3, in lower case.
const NAMES: [&str; 2] = ["phi-3", "phi3"];
/// The special tokens of Phi 3 that do not take the spaces behind them.
const PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
/// A token that llama.cpp expects in the vocabulary beside these.
const END: &str = "</s>";

/// Returns `name`, changed if llama.cpp would take it for that of a Phi 3 and the tokenizer is another one, or the other way round.
pub(in crate::model::gguf) fn model_name(name: &str, json: &Json) -> String {
    let lower = name.to_lowercase();
    let found = NAMES.iter().find_map(|part| Some((lower.find(part)?, part.len())));
    match (found, is_phi_3(json)) {
        (None, true) => format!("Phi-3 {name}"),
        // Lower case may have another length in bytes; a name of that kind is replaced as a whole.
        (Some((at, length)), false) => match (name.get(..at), name.get(at + length..)) {
            (Some(before), Some(after)) => model_name(&format!("{before}phi 3{after}"), json),
            _ => "model".to_string(),
        },
        _ => name.to_string(),
    }
}

/// Returns a note about the tokens whose treatment of spaces the file does not hold.
pub(super) fn note(json: &Json) -> Option<String> {
    let is_phi_3 = is_phi_3(json);
    let is_lost = |token: &&Json| {
        token["lstrip"] == true
            || token["single_word"] == true
            || (token["rstrip"] == true && !is_phi_3)
    };
    let lost: Vec<&str> =
        added(json).iter().filter(is_lost).filter_map(|token| token["content"].as_str()).collect();
    (!lost.is_empty()).then(|| {
        format!(
            "GGUF cannot say that tokens take spaces beside them or stand for whole words only (lstrip, rstrip, single_word), and \
             here do: {}; programs that read the file split texts with such spaces otherwise",
            first_few(lost.into_iter(), ", ")
        )
    })
}

/// Returns whether the added tokens are those of Phi 3, as llama.cpp treats them.
fn is_phi_3(json: &Json) -> bool {
    let vocabulary = &json["model"]["vocab"];
    let is_known = |text: &&str| {
        !vocabulary[*text].is_null() || added(json).iter().any(|token| token["content"] == **text)
    };
    let as_there = |token: &Json| {
        let is_plain = token["content"].as_str().is_some_and(|text| PLAIN.contains(&text));
        (token["rstrip"] == true) != is_plain
    };
    PLAIN.iter().chain([&END]).all(is_known) && added(json).iter().all(as_there)
}

fn added(json: &Json) -> &[Json] {
    json["added_tokens"].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer with these added tokens, each with its `rstrip`.
    fn tokenizer(tokens: &[(&str, bool)]) -> Json {
        let token =
            |(content, rstrip): &(&str, bool)| json!({"content": content, "rstrip": rstrip});
        let added: Vec<Json> = tokens.iter().map(token).collect();
        json!({"added_tokens": added, "model": {"vocab": {"a": 0}}})
    }

    #[test]
    fn the_name_tells_llama_cpp_how_phi_3_treats_spaces() {
        let phi = [
            ("<unk>", false),
            ("<s>", false),
            ("</s>", true),
            ("<|endoftext|>", false),
            ("<|user|>", true),
        ];
        let mut other = phi;
        other[4].1 = false;
        for (name, tokens, expected) in [
            ("merged", &phi[..], "Phi-3 merged"),
            ("Phi-3-mini", &phi, "Phi-3-mini"),
            ("my-PHI3-x", &phi, "my-PHI3-x"),
            ("merged", &other, "merged"),
            ("Phi-3-mini", &other, "phi 3-mini"),
            ("phi3-phi-3", &other, "phi 3-phi 3"),
            // A token that llama.cpp needs is missing.
            ("phi3", &phi[1..], "phi 3"),
        ] {
            assert_eq!(model_name(name, &tokenizer(tokens)), expected, "{name} {tokens:?}");
        }
        assert_eq!(note(&tokenizer(&phi)), None);
        let lost = note(&tokenizer(&other)).unwrap();
        assert!(lost.contains("here do: </s>;"), "{lost}");
    }
}
