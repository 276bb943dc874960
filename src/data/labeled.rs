//! Examples that are labeled as desirable or undesirable, for KTO.

use std::path::Path;

use super::chat::{ChatTemplate, Conversation, RenderedRow};
use super::encode::{
    EncodeConfig, EncodedDataset, EncodedExample, EncodedSequence, encode_labeled,
};
use super::pair::{BadRow, Columns, Row, read_rows};
use super::sample::Sample;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Number of pairs of which all chosen completions come before all rejected ones, as in TRL (the batches of `datasets`' `map`).
const UNPAIRED_TOGETHER: usize = 1000;

/// A prompt with a completion and its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabeledExample {
    /// Identifies the example in every report. Examples made from a pair have its id with `/chosen` or `/rejected`.
    pub id: String,
    /// The prompt.
    pub prompt: String,
    /// The completion.
    pub completion: String,
    /// Whether the completion is desirable.
    pub desirable: bool,
    /// The texts of a conversation, from which its tokens are made.
    pub rendered: Option<Box<RenderedRow>>,
}

/// An encoded [`LabeledExample`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedLabeled {
    /// The id, and the tokens as they are trained on.
    pub example: EncodedExample,
    /// All tokens of the completion, before it is cut to the maximum length. A shorter prompt leaves room for more of them.
    pub completion: Vec<u32>,
    /// Whether the completion is desirable.
    pub desirable: bool,
}

impl EncodedLabeled {
    /// Returns this example's prompt with the completion of `other`, cut to `max_length` tokens.
    pub fn with_completion_of(&self, other: &Self, max_length: usize) -> EncodedExample {
        let own = &self.example.sequence;
        let prompt = &own.ids[..own.completion_start];
        let ids = prompt.iter().chain(&other.completion).copied().take(max_length.max(1)).collect();
        EncodedExample {
            id: format!("{} with the completion of {}", self.example.id, other.example.id),
            sequence: EncodedSequence {
                ids,
                completion_start: own.completion_start,
                hidden: Vec::new(),
            },
            unscored: Vec::new(),
        }
    }
}

/// Reads all labeled examples of a file in one of the formats of [`super::pair::read_pairs`].
///
/// Required columns are `prompt` (or `question`), `completion` and `label` (true for desirable). Prompt and completion may be
/// lists of messages, which the template `chat` renders. A file of preference pairs is
/// taken apart: of each 1000 pairs, first all chosen completions, which are desirable, then all rejected ones.
///
/// # Errors
/// Same as [`super::pair::read_pairs`], or the file has rows of both kinds.
pub fn read_labeled(path: &Path, chat: Option<&ChatTemplate>) -> Result<Vec<LabeledExample>> {
    let rows: Vec<LabeledRow> = read_rows(path, chat)?;
    let pairs = rows.iter().filter(|row| row.completions.len() == 2).count();
    if pairs != 0 && pairs != rows.len() {
        return Err(Error::file(
            path,
            "has rows with completion and label, and rows with chosen and rejected",
            "write all rows in one of the two forms",
        ));
    }
    let example = |row: &LabeledRow, side: usize| {
        let Completion { text, desirable, rendered } = &row.completions[side];
        let id = match row.completions.len() {
            1 => row.id.clone(),
            _ => format!("{}/{}", row.id, if *desirable { "chosen" } else { "rejected" }),
        };
        let (prompt, completion) = (row.prompt.clone(), text.clone());
        LabeledExample { id, prompt, completion, desirable: *desirable, rendered: rendered.clone() }
    };
    let sides = if pairs == 0 { 1 } else { 2 };
    let blocks = rows.chunks(UNPAIRED_TOGETHER);
    let examples = blocks.flat_map(|block| {
        (0..sides).flat_map(move |side| block.iter().map(move |row| example(row, side)))
    });
    Ok(examples.collect())
}

/// A row: one completion, or the chosen and the rejected one.
struct LabeledRow {
    id: String,
    prompt: String,
    completions: Vec<Completion>,
}

/// A completion of a row.
struct Completion {
    text: String,
    desirable: bool,
    /// The texts of a conversation.
    rendered: Option<Box<RenderedRow>>,
}

impl Completion {
    fn plain(text: String, desirable: bool) -> Self {
        Self { text, desirable, rendered: None }
    }
}

impl LabeledRow {
    /// Takes a row whose columns are lists of messages.
    fn from_messages(id: String, row: &mut Columns) -> std::result::Result<Self, BadRow> {
        let (conversation, labels) = if row.has("chosen") && !row.has("completion") {
            (row.preference()?, vec![true, false])
        } else {
            let (prompt, completion) = (row.messages("prompt")?, row.messages("completion")?);
            let desirable = row.flag("label")?;
            (row.conversation(prompt, vec![completion])?, vec![desirable])
        };
        let mut prompt = String::new();
        let mut completions = Vec::new();
        for (messages, desirable) in conversation.completions.iter().zip(labels) {
            // Each completion is one example, so its prompt ends where it alone differs from the prompt.
            let one = Conversation { completions: vec![messages.clone()], ..conversation.clone() };
            let rendered = row.render(&one)?;
            let (text, completion) = rendered.split();
            prompt = text.to_string();
            let text = completion.concat();
            completions.push(Completion { text, desirable, rendered: Some(Box::new(rendered)) });
        }
        Ok(Self { id, prompt, completions })
    }
}

impl Row for LabeledRow {
    const NAME: &'static str = "examples";
    const COLUMNS: &'static str = "each row needs prompt (or question), completion and label (true or false); or prompt, chosen \
                                   and rejected; text, or lists of messages";
    const REQUIRED: &'static [&'static [&'static str]] =
        &[&["completion", "label"], &["chosen", "rejected"]];

    fn from_columns(row: &mut Columns) -> std::result::Result<Self, BadRow> {
        let id = row.id()?;
        if row.is_conversation(&["prompt", "completion", "chosen", "rejected"]) {
            return Self::from_messages(id, row);
        }
        let prompt = row.text(&["prompt", "question"])?;
        let completions = if row.has("chosen") && !row.has("completion") {
            let (chosen, rejected) = (row.text(&["chosen"])?, row.text(&["rejected"])?);
            vec![Completion::plain(chosen, true), Completion::plain(rejected, false)]
        } else {
            vec![Completion::plain(row.text(&["completion"])?, row.flag("label")?)]
        };
        Ok(Self { id, prompt, completions })
    }

    fn id_mut(&mut self) -> &mut String {
        &mut self.id
    }
}

impl Sample for EncodedLabeled {
    const NAME: &'static str = "examples";
    const SIDES: &'static [&'static str] = &["completion"];

    fn load(
        file: &Path,
        tokenizer: &Tokenizer,
        config: &EncodeConfig,
    ) -> Result<EncodedDataset<Self>> {
        encode_labeled(tokenizer, &read_labeled(file, tokenizer.chat_template())?, config)
    }

    fn id(&self) -> &str {
        &self.example.id
    }

    fn sides(&self) -> Vec<&EncodedSequence> {
        vec![&self.example.sequence]
    }

    fn token_ids(&self) -> Vec<&[u32]> {
        vec![&self.example.sequence.ids, &self.completion]
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use parquet::data_type::{BoolType, ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn read(text: &str) -> Result<Vec<LabeledExample>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        read_labeled(&path, None)
    }

    #[test]
    fn labels_are_read() {
        let rows = "{\"prompt\": \"p\", \"completion\": \"c\", \"label\": true}\n\
                    {\"id\": 7, \"question\": \"q\", \"completion\": \"d\", \"label\": false}\n";
        let examples = read(rows).unwrap();
        let seen =
            examples.iter().map(|e| (&e.id[..], &e.prompt[..], &e.completion[..], e.desirable));
        assert_eq!(seen.collect::<Vec<_>>(), [("1", "p", "c", true), ("7", "q", "d", false)]);
        let error = read("{\"prompt\": \"p\", \"completion\": \"c\", \"label\": 1}\n").unwrap_err();
        assert!(error.to_string().contains("label: is a number, not true or false"), "{error}");
        let error = read("{\"prompt\": \"p\", \"completion\": \"c\"}\n").unwrap_err();
        assert!(error.to_string().contains("label: is missing"), "{error}");
    }

    /// A table has its labels in a column of booleans.
    #[test]
    fn labels_of_a_table_are_read() {
        let schema = "message m { required binary prompt (UTF8); required binary completion (UTF8); \
                      required boolean label; }";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut rows = writer.next_row_group().unwrap();
        for column in ["p", "c", "label"] {
            let mut out = rows.next_column().unwrap().unwrap();
            if column == "label" {
                out.typed::<BoolType>().write_batch(&[true, false], None, None).unwrap();
            } else {
                let texts =
                    [0, 1].map(|row| ByteArray::from(format!("{column}{row}").into_bytes()));
                out.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            }
            out.close().unwrap();
        }
        rows.close().unwrap();
        writer.close().unwrap();
        let examples = read_labeled(&path, None).unwrap();
        let seen = examples.iter().map(|e| (&e.prompt[..], &e.completion[..], e.desirable));
        assert_eq!(seen.collect::<Vec<_>>(), [("p0", "c0", true), ("p1", "c1", false)]);
    }

    /// Of each 1000 pairs, the chosen completions come first.
    #[test]
    fn pairs_are_taken_apart() {
        let row =
            |n| format!("{{\"prompt\": \"p\", \"chosen\": \"c{n}\", \"rejected\": \"r{n}\"}}\n");
        let examples = read(&(0..1002).map(row).collect::<String>()).unwrap();
        let at = |index: usize| (&examples[index].completion[..], examples[index].desirable);
        assert_eq!(examples.len(), 2004);
        assert_eq!([at(0), at(999), at(1000)], [("c0", true), ("c999", true), ("r0", false)]);
        assert_eq!(
            [at(2000), at(2001), at(2002)],
            [("c1000", true), ("c1001", true), ("r1000", false)]
        );
        assert_eq!([&examples[0].id, &examples[1000].id], ["1/chosen", "1/rejected"]);
        let mixed = row(1) + "{\"prompt\": \"p\", \"completion\": \"c\", \"label\": true}\n";
        assert!(read(&mixed).unwrap_err().to_string().contains("one of the two forms"));
    }

    #[test]
    fn a_mismatched_completion_is_cut_only_by_its_own_prompt() {
        let labeled = |ids: &[u32], completion_start: usize, completion: &[u32]| EncodedLabeled {
            example: EncodedExample {
                id: "e".into(),
                sequence: EncodedSequence {
                    ids: ids.to_vec(),
                    completion_start,
                    hidden: Vec::new(),
                },
                unscored: Vec::new(),
            },
            completion: completion.to_vec(),
            desirable: true,
        };
        let long = labeled(&[1, 2, 3, 4, 5, 6], 4, &[5, 6, 7, 8]);
        let short = labeled(&[1, 9], 1, &[9]);
        assert_eq!(short.with_completion_of(&long, 6).sequence.ids, [1, 5, 6, 7, 8]);
        let cut = short.with_completion_of(&long, 4);
        assert_eq!((&cut.sequence.ids[..], cut.sequence.completion_start), (&[1, 5, 6, 7][..], 1));
        assert_eq!(long.with_completion_of(&short, 6).sequence.ids, [1, 2, 3, 4, 9]);
    }
}
