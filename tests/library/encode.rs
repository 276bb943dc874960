//! Tests of encoding pairs: the ids of all TRL 1.16 golden runs, the rules of TRL 0.7.4 by hand, and the report.
//!
//! The `byte-level` tokenizer fixture never merges digits, and the id of byte `b` is `b + 3`. So expected ids can be
//! written by hand: `"0"` is 51, `"7"` is 58, and EOS is 2.

use std::fs;
use std::path::Path;

use crate::suite::golden::ids;
use crate::support::{json_file, json_lines, reference, whole_reference};
use crate::tiny;
use arithmo::data::encode::{
    Compat, EncodeConfig, EncodedDataset, EncodedSequence, Refusal, TruncationMode, encode_pairs,
};
use arithmo::data::pair::PreferencePair;
use arithmo::data::prompt::PromptTemplate;
use arithmo::data::tokenizer::Tokenizer;
use serde_json::Value;

const EOS: u32 = 2;

fn fixture(name: &str) -> Tokenizer {
    Tokenizer::from_folder(&tiny::fixture("tokenizer").join(name)).unwrap()
}

fn pair(id: &str, prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
    PreferencePair {
        id: id.to_string(),
        prompt: prompt.to_string(),
        chosen: chosen.to_string(),
        rejected: rejected.to_string(),
        chosen_score: None,
        rejected_score: None,
        rendered: None,
    }
}

fn config(compat: Compat, max_length: usize, mode: TruncationMode) -> EncodeConfig {
    let max_length = Some(max_length);
    EncodeConfig { max_length, truncation_mode: mode, ..EncodeConfig::new(compat) }
}

fn trl1(max_length: usize, mode: TruncationMode) -> EncodeConfig {
    config(Compat::Trl1, max_length, mode)
}

fn trl074(max_length: usize, max_prompt_length: usize, mode: TruncationMode) -> EncodeConfig {
    let max_prompt_length = Some(max_prompt_length);
    EncodeConfig { max_prompt_length, ..config(Compat::Trl074, max_length, mode) }
}

/// Encodes one pair of digits with the byte-level tokenizer.
fn one(config: &EncodeConfig, prompt: &str, chosen: &str, rejected: &str) -> EncodedDataset {
    encode_pairs(&fixture("byte-level"), &[pair("x", prompt, chosen, rejected)], config).unwrap()
}

/// Returns the ids of digits, where `$` stands for EOS.
fn digits(text: &str) -> Vec<u32> {
    text.bytes().map(|b| if b == b'$' { EOS } else { u32::from(b) + 3 }).collect()
}

fn sequence(prompt: &str, completion: &str, hidden: &[usize]) -> EncodedSequence {
    EncodedSequence {
        ids: digits(&[prompt, completion].concat()),
        completion_start: prompt.len(),
        hidden: hidden.to_vec(),
    }
}

#[test]
fn trl1_cuts_the_prompt_at_the_common_prefix_of_all_three() {
    // "▁4" is one piece (316), "▁8" is two (301 and the id of "8"), so the space belongs to the completions.
    let tokenizer = fixture("sentencepiece-like");
    let eight = *tokenizer.encode("x8", false).unwrap().last().unwrap();
    let settings = trl1(100, TruncationMode::KeepStart);
    let data = encode_pairs(&tokenizer, &[pair("x", "Answer: ", "4", "8")], &settings).unwrap();
    assert_eq!(data.pairs[0].chosen.ids, [1, 340, 316, EOS]);
    assert_eq!(data.pairs[0].rejected.ids, [1, 340, 301, eight, EOS]);
    assert_eq!(
        (data.pairs[0].chosen.completion_start, data.pairs[0].rejected.completion_start),
        (2, 2)
    );
    assert!(data.report.summary().is_empty());
    let before = encode_pairs(&tokenizer, &[pair("x", "Answer:", " 4", " 8")], &settings).unwrap();
    assert_eq!(before.pairs, data.pairs);
}

#[test]
fn trl1_appends_eos_once_and_applies_the_template() {
    let template = PromptTemplate::new("1{prompt}2").unwrap();
    let settings = EncodeConfig { prompt_template: template, ..EncodeConfig::new(Compat::Trl1) };
    let data = one(&settings, "00", "7</s>", "8</s>8");
    assert_eq!(data.pairs[0].chosen, sequence("1002", "7$", &[]));
    assert_eq!(data.pairs[0].rejected, sequence("1002", "8$8$", &[]));
    assert_eq!(data.report.eos_inside_text, ["x"]);
}

#[test]
fn trl1_keep_start_drops_a_prompt_that_fills_max_length_and_cuts_the_end() {
    let settings = |max_length| trl1(max_length, TruncationMode::KeepStart);
    let data = one(&settings(6), "0123", "777", "8");
    assert_eq!(data.pairs[0].chosen, sequence("0123", "77", &[]));
    assert_eq!(data.pairs[0].rejected, sequence("0123", "8$", &[]));
    assert_eq!(
        (&data.report.chosen_truncated, &data.report.eos_lost),
        (&vec!["x".into()], &vec!["x".into()])
    );
    assert!(data.report.rejected_truncated.is_empty() && data.report.prompt_truncated.is_empty());
    let fits = one(&settings(8), "0123", "777", "8");
    assert_eq!(fits.pairs[0].chosen, sequence("0123", "777$", &[]));
    assert!(fits.report.summary().is_empty());
    let full = one(&settings(4), "0123", "777", "8");
    assert!(full.pairs.is_empty());
    assert_eq!(
        (&full.report.dropped_prompt_too_long[..], full.report.pairs_read),
        (&["x".into()][..], 1)
    );
    assert!(full.settle(false, false).unwrap_err().to_string().contains("none of 1 pairs"));
}

#[test]
fn trl1_keep_end_drops_nothing_and_cuts_the_start() {
    let settings = |max_length| trl1(max_length, TruncationMode::KeepEnd);
    let data = one(&settings(6), "0123", "777", "8");
    assert_eq!(data.pairs[0].chosen, sequence("23", "777$", &[]));
    assert_eq!(data.pairs[0].rejected, sequence("0123", "8$", &[]));
    assert_eq!(data.report.prompt_truncated, ["x"]);
    assert!(data.report.chosen_truncated.is_empty() && data.report.eos_lost.is_empty());
    let short = one(&settings(3), "0123", "777", "8");
    assert_eq!(short.pairs[0].chosen, sequence("", "77$", &[]));
    assert_eq!(short.pairs[0].chosen.scored_tokens(), 2);
    assert_eq!(
        (short.report.chosen_truncated.len(), short.report.rejected_truncated.len()),
        (1, 0)
    );
    // The only token left is the first, which is never scored.
    let lost = one(&settings(1), "0123", "777", "8");
    assert_eq!(lost.report.refused[&Refusal::LostByTruncation], ["x"]);
}

#[test]
fn trl1_keeps_and_reports_pairs_that_truncation_makes_identical() {
    let data = one(&trl1(6, TruncationMode::KeepStart), "0123", "7789", "7788");
    assert_eq!(data.pairs[0].chosen, data.pairs[0].rejected);
    assert_eq!(data.report.identical_after_truncation, ["x"]);
    assert!(data.report.refused.is_empty());
    assert!(data.settle(false, false).is_ok());
}

#[test]
fn trl074_tokenizes_prompt_and_completion_separately_without_bos() {
    let tokenizer = fixture("sentencepiece-like");
    let settings = EncodeConfig::new(Compat::Trl074);
    let data = encode_pairs(&tokenizer, &[pair("x", "Answer:", "4", "48")], &settings).unwrap();
    // SentencePiece adds a space before each text: "▁Answer:" is 340, "▁4" is 316.
    assert_eq!(data.pairs[0].chosen.ids, [340, 316, EOS]);
    assert_eq!(data.pairs[0].rejected.ids[..2], [340, 316]);
    assert_eq!((data.pairs[0].rejected.ids.len(), data.pairs[0].rejected.completion_start), (4, 1));
}

#[test]
fn trl074_hides_eos_inside_the_text_but_not_the_appended_one() {
    let data = one(&trl074(100, 50, TruncationMode::KeepEnd), "0</s>1", "7</s>7", "8</s>");
    assert_eq!(data.pairs[0].chosen, sequence("0$1", "7$7$", &[1, 4]));
    assert_eq!(data.pairs[0].rejected, sequence("0$1", "8$$", &[1, 4]));
    // Truncated to two prompt and two completion tokens, the hidden positions shift and the appended EOS is lost.
    let cut = one(&trl074(4, 2, TruncationMode::KeepEnd), "0</s>1", "7</s>7", "8</s>");
    assert_eq!(cut.pairs[0].chosen, sequence("$1", "7$", &[0, 3]));
    assert_eq!(cut.pairs[0].rejected, sequence("$1", "8$", &[0, 3]));
    assert_eq!(
        (&cut.report.eos_lost[..], &cut.report.eos_inside_text[..]),
        (&["x".into()][..], &["x".into()][..])
    );
}

#[test]
fn trl074_truncates_by_the_longer_response_for_both_sides() {
    let (prompt, chosen, rejected) = ("0123456789", "77777", "888"); // 10, 5 + EOS, 3 + EOS
    let encoded = |settings: EncodeConfig| {
        let pair = one(&settings, prompt, chosen, rejected).pairs.remove(0);
        (pair.chosen, pair.rejected)
    };
    use TruncationMode::{KeepEnd, KeepStart};
    // 10 + 6 = 16 fits.
    let whole = (sequence(prompt, "77777$", &[]), sequence(prompt, "888$", &[]));
    assert_eq!(encoded(trl074(16, 4, KeepEnd)), whole);
    // One token too many shortens the prompt to 4 on both sides, although the rejected side alone (14) would fit.
    let end = (sequence("6789", "77777$", &[]), sequence("6789", "888$", &[]));
    assert_eq!(encoded(trl074(15, 4, KeepEnd)), end);
    let start = (sequence("0123", "77777$", &[]), sequence("0123", "888$", &[]));
    assert_eq!(encoded(trl074(15, 4, KeepStart)), start);
    // 4 + 6 = 10 is still more than 8, so each response is cut to 8 - 4 tokens.
    let both = (sequence("6789", "7777", &[]), sequence("6789", "888$", &[]));
    assert_eq!(encoded(trl074(8, 4, KeepEnd)), both);
    // TRL takes prompt[-0:], which is the whole prompt, and then responses[:8].
    let zero = (sequence(prompt, "77777$", &[]), sequence(prompt, "888$", &[]));
    assert_eq!(encoded(trl074(8, 0, KeepEnd)), zero);
    assert_eq!(
        encoded(trl074(8, 0, KeepStart)),
        (sequence("", "77777$", &[]), sequence("", "888$", &[]))
    );
    // A prompt shorter than max_prompt_length leaves no more room for the response: 2 + 6 > 6, so responses[:6 - 4].
    let short = one(&trl074(6, 4, KeepEnd), "01", chosen, rejected).pairs.remove(0);
    assert_eq!(
        (short.chosen, short.rejected),
        (sequence("01", "77", &[]), sequence("01", "88", &[]))
    );
}

#[test]
fn trl074_with_max_prompt_length_equal_to_max_length_loses_both_completions() {
    // The original project used this setting: keep_end leaves 8 prompt tokens, and then responses[:8 - 8] is empty.
    let settings = trl074(8, 8, TruncationMode::KeepEnd);
    let data = one(&settings, "0123456789", "77777", "888");
    assert_eq!(data.pairs[0].chosen, sequence("23456789", "", &[]));
    assert_eq!(data.pairs[0].rejected, sequence("23456789", "", &[]));
    assert_eq!(data.report.refused[&Refusal::LostByTruncation], ["x"]);
    let error = data.clone().settle(false, false).unwrap_err().to_string();
    assert!(error.contains("max_prompt_length: is 8, not less than max_length (8)"), "{error}");
    assert!(data.clone().settle(false, true).is_err());
    assert_eq!(data.settle(true, false).unwrap().pairs.len(), 1);
    // responses[:8 - 9] loses the last token only.
    let beyond = one(&trl074(8, 9, TruncationMode::KeepEnd), "0123456789", "77777", "888");
    assert_eq!(beyond.pairs[0].chosen, sequence("123456789", "77777", &[]));
    assert_eq!(beyond.pairs[0].rejected, sequence("123456789", "888", &[]));
}

#[test]
fn untrainable_pairs_are_refused_by_default() {
    let mut pairs: Vec<_> = (0..12).map(|i| pair(&format!("e{i}"), "0", " \n", "8")).collect();
    pairs.insert(3, pair("good", "0", "7", "8"));
    pairs.push(pair("eos", "0", "7", "</s>"));
    pairs.push(pair("same", "0", "7</s>", "7"));
    for compat in [Compat::Trl1, Compat::Trl074] {
        let tokenizer = fixture("byte-level");
        let data = encode_pairs(&tokenizer, &pairs, &EncodeConfig::new(compat)).unwrap();
        assert_eq!(data.report.refused[&Refusal::IdenticalSides], ["same"]);
        assert_eq!((data.report.refused_count(), data.report.pairs_read), (14, 15));
        let error = data.clone().settle(false, false).unwrap_err().to_string();
        for part in [
            "14 of 15 pairs would train on nothing",
            "empty completion: 13 (ids e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, ...)",
            "same text: 1 (ids same)",
            "data.skip_untrainable = true",
            "data.allow_empty_completions = true",
            "--dry-run",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let skipped = data.clone().settle(false, true).unwrap();
        assert_eq!(skipped.pairs.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!((skipped.report.pairs_kept, skipped.report.refused_count()), (1, 14));
        let trained = data.clone().settle(true, false).unwrap();
        assert_eq!((trained.pairs.len(), trained.pairs[3].id.as_str()), (15, "good"));
        assert!(data.settle(true, true).is_err());
    }
    let report =
        encode_pairs(&fixture("byte-level"), &pairs[..1], &EncodeConfig::new(Compat::Trl1));
    let json = serde_json::to_value(report.unwrap().report).unwrap();
    assert_eq!(json["refused"]["empty_completion"][0], "e0");
    assert_eq!(json["config"]["compat"], "trl-1");
    assert_eq!(json["config"]["truncation_mode"], "keep_start");
}

#[test]
fn a_sequence_without_tokens_is_an_error() {
    let settings = trl074(4, 4, TruncationMode::KeepEnd);
    let data = one(&settings, "", "77777", "888");
    assert!(data.pairs[0].chosen.ids.is_empty());
    assert!(
        data.settle(true, false).unwrap_err().to_string().contains("neither prompt nor completion")
    );
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let data = one(&EncodeConfig::new(Compat::Trl1), "0", "7", "8"); // ids 51, 58, 59 and EOS
    data.check_fits(60, 1000).unwrap();
    let error = data.check_fits(59, 1000).unwrap_err().to_string();
    assert!(
        error.contains("pair x") && error.contains("id 59") && error.contains("59 tokens"),
        "{error}"
    );
}

#[test]
fn options_of_other_rules_are_errors() {
    let zero = trl1(0, TruncationMode::KeepStart);
    assert!(zero.validate().unwrap_err().to_string().contains("data.max_length: is 0"));
    let extra = EncodeConfig { max_prompt_length: Some(5), ..EncodeConfig::new(Compat::Trl1) };
    let error = encode_pairs(&fixture("byte-level"), &[], &extra).unwrap_err().to_string();
    assert!(error.contains("data.max_prompt_length") && error.contains("trl-1"), "{error}");
    assert!(serde_json::from_str::<Compat>("\"trl-2\"").is_err());
    assert_eq!(serde_json::from_str::<Compat>("\"trl-0.7.4\"").unwrap(), Compat::Trl074);
}

/// Returns the rows of a .jsonl file and their pairs, whose ids are the row numbers from 0.
fn rows(path: &Path) -> (Vec<Value>, Vec<PreferencePair>) {
    let rows = json_lines(path);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_string();
    let pairs = rows.iter().enumerate().map(|(i, row)| {
        pair(&i.to_string(), &text(row, "prompt"), &text(row, "chosen"), &text(row, "rejected"))
    });
    let pairs = pairs.collect();
    (rows, pairs)
}

fn sizes(value: &Value) -> Vec<usize> {
    ids(value).into_iter().map(|n| n as usize).collect()
}

/// Compares pairs with a run's `samples`, which are not truncated.
fn assert_samples(data: &EncodedDataset, samples: &Value, what: &str) {
    let samples = samples.as_array().unwrap();
    assert_eq!(data.pairs.len(), samples.len(), "{what}");
    for (pair, sample) in data.pairs.iter().zip(samples) {
        let prompt = ids(&sample["prompt_ids"]);
        for (side, key) in [(&pair.chosen, "chosen_ids"), (&pair.rejected, "rejected_ids")] {
            assert_eq!(side.completion_start, prompt.len(), "{what}: {}", pair.id);
            assert_eq!(
                side.ids,
                [prompt.clone(), ids(&sample[key])].concat(),
                "{what}: {}",
                pair.id
            );
        }
    }
}

#[test]
fn every_id_of_every_trl_run_is_reproduced() {
    let mut runs = 0;
    for entry in fs::read_dir(whole_reference("trl")).unwrap() {
        let path = entry.unwrap().path().join("config.json");
        if path.is_file() {
            check_run(&json_file(&path));
            runs += 1;
        }
    }
    // Five runs are committed, the full set has 59.
    assert!([5, 59].contains(&runs), "{runs} runs compared");
}

fn check_run(run: &Value) {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let name = text(&run["name"]);
    let model = whole_reference("models").join(text(&run["model"]));
    let tokenizer = Tokenizer::from_folder(&model).unwrap();
    assert_eq!(u64::from(tokenizer.pad_id()), run["pad_token_id"].as_u64().unwrap());
    let dataset =
        |key: &str| rows(&whole_reference("trl/_data").join(text(&run[key]) + ".jsonl")).1;
    let settings = EncodeConfig {
        max_length: run["dpo"]["max_length"].as_u64().map(|n| n as usize),
        truncation_mode: serde_json::from_value(run["dpo"]["truncation_mode"].clone()).unwrap(),
        ..EncodeConfig::new(Compat::Trl1)
    };
    let pairs = dataset("dataset");
    let data = encode_pairs(&tokenizer, &pairs, &settings).unwrap();
    let dropped: Vec<String> =
        ids(&run["dropped_dataset_rows"]).iter().map(u32::to_string).collect();
    assert_eq!(data.report.dropped_prompt_too_long, dropped, "{name}");
    assert_eq!(data.pairs.len(), run["lengths"].as_array().unwrap().len());
    for (pair, lengths) in data.pairs.iter().zip(run["lengths"].as_array().unwrap()) {
        let got = [&pair.chosen, &pair.rejected]
            .map(|side| [side.ids.len(), side.ids.len() - side.completion_start]);
        assert_eq!(got.concat(), sizes(lengths), "{name}: {}", pair.id);
    }
    // A run stores its samples before truncation, so truncated ids are compared with the untruncated ones.
    let kept: Vec<_> = pairs.into_iter().filter(|pair| !dropped.contains(&pair.id)).collect();
    let unlimited = EncodeConfig { max_length: None, ..settings.clone() };
    let whole = encode_pairs(&tokenizer, &kept, &unlimited).unwrap();
    assert_samples(&whole, &run["samples"], &name);
    for (cut, whole) in data.pairs.iter().zip(&whole.pairs) {
        for (cut, whole) in [(&cut.chosen, &whole.chosen), (&cut.rejected, &whole.rejected)] {
            match settings.truncation_mode {
                TruncationMode::KeepStart => assert!(whole.ids.starts_with(&cut.ids), "{name}"),
                TruncationMode::KeepEnd => assert!(whole.ids.ends_with(&cut.ids), "{name}"),
            }
        }
    }
    if run.get("eval_samples").is_some() {
        let eval = encode_pairs(&tokenizer, &dataset("eval_dataset"), &unlimited).unwrap();
        assert_samples(&eval, &run["eval_samples"], &name);
    }
}

#[test]
#[ignore = "compares with data that are not in the tree"]
fn every_id_trl_makes_with_the_mistral_tokenizer_is_reproduced() {
    let Some(tokenizer) = reference("mistral-tokenizer") else { return };
    let tokenizer = Tokenizer::from_folder(&tokenizer).unwrap();
    let (rows, pairs) = rows(&reference("trl/_data/mistral_tokenized.jsonl").unwrap());
    let settings = trl1(160, TruncationMode::KeepStart);
    let data = encode_pairs(&tokenizer, &pairs, &settings).unwrap();
    let unlimited = EncodeConfig { max_length: None, ..settings };
    let whole = encode_pairs(&tokenizer, &pairs, &unlimited).unwrap();
    assert_eq!(whole.pairs.len(), rows.len());
    for ((row, pair), whole) in rows.iter().zip(&pairs).zip(&whole.pairs) {
        assert_eq!(tokenizer.encode(&pair.prompt, true).unwrap(), ids(&row["prompt_alone_ids"]));
        let dropped = data.report.dropped_prompt_too_long.contains(&pair.id);
        assert_eq!(row["chosen_ids"].is_null(), dropped, "{}", pair.id);
        if !dropped {
            let prompt = ids(&row["prompt_ids"]);
            assert_eq!(whole.chosen.completion_start, prompt.len(), "{}", pair.id);
            assert_eq!(whole.chosen.ids, [prompt.clone(), ids(&row["chosen_ids"])].concat());
            assert_eq!(whole.rejected.ids, [prompt, ids(&row["rejected_ids"])].concat());
        }
    }
}
