use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::{Row, jsonl};
use super::*;

fn form(name: &str) -> PathBuf {
    let folder = "tests/fixtures/stack_exchange/forms";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name)
}

/// Reads all rows of a file with their texts. Returns the rows and the errors.
fn read(path: &Path) -> (Vec<Row>, Vec<BadInput>) {
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for record in open(path, Meter::default()).unwrap() {
        match record {
            Record::Unread(mut row) => {
                let all: Vec<_> = (0..row.row().answers.len()).collect();
                row.fetch(&all).unwrap();
                rows.push(row.into_row());
            }
            Record::Bad(input) => bad.push(input),
            other => panic!("{other:?}"),
        }
    }
    (rows, bad)
}

fn json_rows() -> Vec<Row> {
    let records = jsonl::open(&form("rows.jsonl"), Meter::default()).unwrap();
    let parse = |record| match record {
        Record::Line(line) => jsonl::parse_line(&line).unwrap(),
        other => panic!("{other:?}"),
    };
    records.map(parse).collect()
}

/// Every file contains the rows of rows.jsonl (see make.py). The files differ in nested fields of the same names, types of
/// numbers and flags, forms of lists, pages without values, and codecs.
#[test]
fn every_writers_form_gives_the_rows_of_json_lines() {
    let expected = json_rows();
    assert_eq!((expected.len(), expected[0].answers.len()), (8, 3));
    assert!(expected.iter().all(|row| row.answers[1].selected && !row.title.is_empty()));
    for name in [
        "comments",
        "author",
        "flags-int8",
        "flags-uint64",
        "flags-null",
        "scores-double",
        "large",
        "sequence",
        "empty-pages",
        "empty-pages-v2",
        "codec-none",
        "codec-gzip",
        "codec-brotli",
        "codec-lz4",
        "polars",
    ] {
        let (rows, bad) = read(&form(&format!("{name}.parquet")));
        assert_eq!(bad, [], "{name}");
        assert_eq!(rows, expected, "{name}");
    }
}

/// pandas writes no type for a column without values.
#[test]
fn columns_of_nulls_are_read_as_missing() {
    let mut expected = json_rows();
    for row in &mut expected {
        row.title.clear();
        row.answers.iter_mut().for_each(|answer| answer.selected = false);
    }
    assert_eq!(read(&form("null-columns.parquet")), (expected, vec![]));
}

#[test]
fn a_column_of_the_wrong_type_is_an_error_not_ignored() {
    let (rows, bad) = read(&form("flags-text.parquet"));
    assert_eq!((rows, bad.len()), (vec![], 1));
    assert_eq!(bad[0].problem, "column answers.selected is of type text");
}

/// The values of a column.
enum Values<'a> {
    Integers(&'a [i64]),
    Texts(&'a [&'a str]),
    Flags(&'a [bool]),
}

/// Writes a table of two rows, the first with two answers and the second with one. All fields are required.
fn write(schema: &str, codec: Compression, columns: &[Values]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut columns = columns.iter();
    while let Some(mut column) = group.next_column().unwrap() {
        let levels = |count| match count {
            2 => (None, None),
            _ => (Some(&[1, 1, 1][..]), Some(&[0, 1, 0][..])),
        };
        match columns.next().unwrap() {
            Values::Integers(values) => {
                let (defined, repeated) = levels(values.len());
                let writer = column.typed::<Int64Type>();
                writer.write_batch(values, defined, repeated).unwrap();
            }
            Values::Texts(values) => {
                let (defined, repeated) = levels(values.len());
                let values: Vec<ByteArray> = values.iter().map(|v| (*v).into()).collect();
                let writer = column.typed::<ByteArrayType>();
                writer.write_batch(&values, defined, repeated).unwrap();
            }
            Values::Flags(values) => {
                let (defined, repeated) = levels(values.len());
                let writer = column.typed::<BoolType>();
                writer.write_batch(values, defined, repeated).unwrap();
            }
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    (folder, path)
}

/// Forms of lists that were written before the format fixed one, and that other programs still write.
#[test]
fn lists_of_two_and_of_three_levels_are_read() {
    let element =
        "required binary text (UTF8); required int64 pm_score; required boolean selected;";
    for answers in [
        format!("required group answers (LIST) {{ repeated group array {{ {element} }} }}"),
        format!("required group answers (LIST) {{ repeated group answers_tuple {{ {element} }} }}"),
        format!("required group answers (LIST) {{ repeated group bag {{ required group array_element {{ {element} }} }} }}"),
        format!("required group answers (LIST) {{ repeated group bag {{ required group array {{ {element} }} }} }}"),
        format!("required group answers (LIST) {{ repeated group list {{ required group item {{ {element} }} }} }}"),
        format!("repeated group answers {{ {element} }}"),
        "required group answers { repeated binary text (UTF8); repeated int64 pm_score; repeated boolean selected; }".into(),
    ] {
        let schema = format!(
            "message m {{ required int64 qid; required binary question (UTF8); {answers} }}"
        );
        let (_folder, path) = write(
            &schema,
            Compression::UNCOMPRESSED,
            &[
                Values::Integers(&[1, 2]),
                Values::Texts(&["q", "r"]),
                Values::Texts(&["a", "b", "c"]),
                Values::Integers(&[3, 2, 1]),
                Values::Flags(&[false, true, false]),
            ],
        );
        let (rows, bad) = read(&path);
        assert_eq!(bad, [], "{answers}");
        let answers = rows.iter().flat_map(|row| &row.answers);
        let answers: Vec<_> = answers.map(|a| (&*a.text, a.pm_score, a.selected)).collect();
        assert_eq!(answers, [("a", 3, false), ("b", 2, true), ("c", 1, false)]);
        assert_eq!((rows.len(), rows[0].answers.len()), (2, 2));
    }
}

#[test]
fn columns_that_mean_something_else_are_refused() {
    let (qid, question) = ("required int64 qid;", "required binary question (UTF8);");
    let list = |element: &str| {
        format!("required group answers (LIST) {{ repeated group list {{ {element} }} }}")
    };
    let good = list("required binary text (UTF8); required int64 pm_score;");
    for (schema, problem) in [
        (
            format!("{qid} required group question {{ required binary text (UTF8); }} {good}"),
            "column question is a list or a structure",
        ),
        (format!("{qid} {question} {question} {good}"), "there are two columns question"),
        (
            format!("{qid} {question} required binary answers (UTF8);"),
            "column answers is not a list of structures",
        ),
        (
            format!(
                "{qid} {question} {}",
                list("required binary text (UTF8); required int64 pm_score (DECIMAL(9,2));")
            ),
            "column answers.pm_score is of type",
        ),
        (
            format!("required int64 qid (TIMESTAMP_MILLIS); {question} {good}"),
            "column qid is of type",
        ),
        (
            format!(
                "{qid} {question} {}",
                list("repeated binary text (UTF8); required int64 pm_score;")
            ),
            "column answers.text is not one value per answers",
        ),
        (
            format!(
                "{qid} {question} {}",
                list("required binary title (UTF8); required int64 pm_score;")
            ),
            "there is no column answers.text",
        ),
        (
            format!("{qid} {question} required int64 title; {good}"),
            "column title is of type integer",
        ),
    ] {
        let found = problem_of_columns(&schema);
        assert!(found.starts_with(problem), "{schema}: {found}");
    }
}

/// Writes a file with the columns `schema` and no rows, and returns the one error of reading it.
fn problem_of_columns(schema: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let parsed = Arc::new(parse_message_type(&format!("message m {{ {schema} }}")).unwrap());
    let file = std::fs::File::create(&path).unwrap();
    let writer = SerializedFileWriter::new(file, parsed, Default::default()).unwrap();
    writer.close().unwrap();
    let (rows, mut bad) = read(&path);
    assert_eq!((rows.len(), bad.len()), (0, 1), "{schema}: {bad:?}");
    bad.remove(0).problem
}

/// A page that decompresses to more than the limit is refused by its header, before it is read.
#[test]
fn a_page_that_decompresses_to_more_than_the_limit_is_refused() {
    let large = "a".repeat(300 << 20);
    let schema = "message m { required int64 qid; required binary question (UTF8); repeated group answers { \
        required binary text (UTF8); required int64 pm_score; } }";
    let (_folder, path) = write(
        schema,
        Compression::UNCOMPRESSED,
        &[
            Values::Integers(&[1, 2]),
            Values::Texts(&["q", &large]),
            Values::Texts(&["a", "b", "c"]),
            Values::Integers(&[3, 2, 1]),
        ],
    );
    let (rows, bad) = read(&path);
    assert_eq!((rows.len(), bad.len()), (0, 1));
    assert!(bad[0].problem.contains("bytes, above the limit of 268435456"), "{bad:?}");
    assert!(bad[0].remedy.contains("--max-row-bytes"), "{bad:?}");
}
