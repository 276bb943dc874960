//! Generated questions with answers, the same on every machine, and the three formats in which they
//! are written.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arithmo::data::preference::pm_score;
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::json;

/// Writes `count` rows to a file.
pub(crate) type Writer = fn(&Path, usize);

const WORDS: &str = "let the function be continuous on an interval we want to show that sum of squares converges if and \
    only calculate integral limit matrix prime modulo group ring proof therefore hence because each element";

/// A question whose first answer is the accepted one.
struct Question {
    text: String,
    /// Votes and text.
    answers: Vec<(i64, String)>,
}

/// A linear congruential generator (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn questions(count: usize) -> impl Iterator<Item = Question> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = Random(1);
    (0..count).map(move |_| {
        let text = body(&mut random, &words, 4);
        let answers = (0..1 + random.below(5)).map(|_| {
            let votes = random.pick(&[-1, 0, 0, 1, 1, 3, 7, 15]);
            (votes, body(&mut random, &words, 6))
        });
        let answers = answers.collect();
        Question { text, answers }
    })
}

/// Returns one to `max_paragraphs` paragraphs, sometimes with code, sometimes with a list.
fn body(random: &mut Random, words: &[&str], max_paragraphs: u64) -> String {
    let mut html = String::new();
    for _ in 0..1 + random.below(max_paragraphs) {
        html += "<p>";
        for _ in 0..15 + random.below(46) {
            html += random.pick(words);
            html += " ";
        }
        let (index, bound, page) = (random.below(9), random.below(98), random.below(999));
        html += &format!(
            "$x_{index}^2 &lt; {bound}$ &amp; <em>{}</em>, see <a href=\"https://example.org/{page}\">here</a>.</p>\n",
            random.pick(words)
        );
    }
    if random.below(5) == 0 {
        html += "<pre><code>for i in range(10):\n    print(i &lt; 3)\n</code></pre>\n";
    }
    if random.below(5) == 0 {
        let items = (0..4).map(|i| format!("<li>{} $\\frac{{1}}{{{i}}}$</li>", random.pick(words)));
        html += &format!("<ul>{}</ul>\n", items.collect::<String>());
    }
    html
}

/// Writes JSON Lines in the HuggingFaceH4 schema.
pub(crate) fn jsonl(path: &Path, count: usize) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    for (qid, question) in questions(count).enumerate() {
        let answer = |(i, (votes, text)): (usize, &(i64, String))| json!({"answer_id": i, "author": "u", "pm_score": pm_score(*votes, i == 0), "selected": i == 0, "text": text});
        let answers: Vec<_> = question.answers.iter().enumerate().map(answer).collect();
        let row = json!({"qid": qid, "question": question.text, "answers": answers, "date": "2019/05/01"});
        writeln!(out, "{row}").unwrap();
    }
    out.flush().unwrap();
}

/// Writes the format of the official dump: questions and answers in the order of their ids.
pub(crate) fn posts_xml(path: &Path, count: usize) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    let date = "2010-07-20T19:09:27.200";
    write!(out, "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<posts>\r\n").unwrap();
    let mut id = 0;
    for question in questions(count) {
        let (asked, count) = (id + 1, question.answers.len());
        write!(
            out,
            "  <row Id=\"{asked}\" PostTypeId=\"1\" AcceptedAnswerId=\"{}\" CreationDate=\"{date}\" Score=\"5\" \
             ViewCount=\"100\" Body=\"{}\" OwnerUserId=\"10\" LastActivityDate=\"{date}\" Title=\"How to &quot;do&quot; \
             this?\" Tags=\"|calculus|limits|\" AnswerCount=\"{count}\" CommentCount=\"0\" ContentLicense=\"CC BY-SA 2.5\" />\r\n",
            asked + 1,
            escaped(&question.text)
        )
        .unwrap();
        for (i, (votes, text)) in question.answers.iter().enumerate() {
            write!(
                out,
                "  <row Id=\"{}\" PostTypeId=\"2\" ParentId=\"{asked}\" CreationDate=\"{date}\" Score=\"{votes}\" \
                 Body=\"{}\" OwnerUserId=\"11\" LastActivityDate=\"{date}\" CommentCount=\"2\" \
                 ContentLicense=\"CC BY-SA 2.5\" />\r\n",
                asked + 1 + i,
                escaped(text)
            )
            .unwrap();
        }
        id += 1 + count;
    }
    writeln!(out, "</posts>").unwrap();
    out.flush().unwrap();
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\n', "&#xA;")
}

/// Writes parquet in the HuggingFaceH4 schema, with snappy compression and 2,000 rows per group.
pub(crate) fn parquet(path: &Path, count: usize) {
    let schema = "message rows { required int64 qid; required binary question (UTF8); required group answers (LIST) {
        repeated group list { required group element { required int64 pm_score; required boolean selected;
        required binary text (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    let (mut all, mut qid) = (questions(count), 0);
    loop {
        let rows: Vec<Question> = all.by_ref().take(2000).collect();
        if rows.is_empty() {
            break;
        }
        let mut group = writer.next_row_group().unwrap();
        write_group(&mut group, qid, &rows);
        group.close().unwrap();
        qid += rows.len() as i64;
    }
    writer.close().unwrap();
}

fn write_group(group: &mut SerializedRowGroupWriter<'_, File>, qid: i64, rows: &[Question]) {
    let bytes = |text: &String| ByteArray::from(text.as_bytes().to_vec());
    let qids: Vec<i64> = (qid..qid + rows.len() as i64).collect();
    let texts: Vec<_> = rows.iter().map(|row| bytes(&row.text)).collect();
    write_column::<Int64Type>(group, &qids, None);
    write_column::<ByteArrayType>(group, &texts, None);
    let answers = || rows.iter().flat_map(|row| row.answers.iter().enumerate());
    let repeated: Vec<i16> = answers().map(|(i, _)| i16::from(i > 0)).collect();
    let scores: Vec<_> = answers().map(|(i, (votes, _))| pm_score(*votes, i == 0)).collect();
    let selected: Vec<_> = answers().map(|(i, _)| i == 0).collect();
    let texts: Vec<_> = answers().map(|(_, (_, text))| bytes(text)).collect();
    write_column::<Int64Type>(group, &scores, Some(&repeated));
    write_column::<BoolType>(group, &selected, Some(&repeated));
    write_column::<ByteArrayType>(group, &texts, Some(&repeated));
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    repeated: Option<&[i16]>,
) {
    let defined = repeated.map(|levels| vec![1; levels.len()]);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(values, defined.as_deref(), repeated).unwrap();
    column.close().unwrap();
}
