use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;
use crate::data::chat::Clock;

/// Writes `bytes` to a file called `name` and reads pairs from it.
fn read(name: &str, bytes: &[u8]) -> Result<Vec<PreferencePair>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_pairs(&path, None)
}

fn message(name: &str, bytes: &[u8]) -> String {
    read(name, bytes).unwrap_err().to_string()
}

const LINES: &str = concat!(
    "\u{feff}{\"question\": \"q\u{00e9}\", \"chosen\": \"a\", \"rejected\": \"b\", \"extra\": [1]}\r\n",
    "\n",
    "{\"id\": 17, \"prompt\": \"p\", \"question\": \"q\", \"chosen\": \"\", \"rejected\": \" \"}\n",
    "{\"id\": \"17\", \"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"d\", \"chosen_score\": 4, \
     \"rejected_score\": -1.0}",
);

#[test]
fn lines_arrays_and_lines_named_json_give_the_same_pairs() {
    let lines = read("a.jsonl", LINES.as_bytes()).unwrap();
    assert_eq!(lines.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["1", "17", "17#2"]);
    assert_eq!((lines[0].prompt.as_str(), lines[1].prompt.as_str()), ("q\u{e9}", "p"));
    assert_eq!((lines[2].chosen_score, lines[2].rejected_score), (Some(4), Some(-1)));
    assert_eq!((lines[1].chosen_score, lines[1].rejected.as_str()), (None, " "));
    assert_eq!(read("a.json", LINES.as_bytes()).unwrap(), lines);
    let rows: Vec<&str> =
        LINES.trim_start_matches('\u{feff}').lines().filter(|l| !l.is_empty()).collect();
    let array = format!("\u{feff} [{}]", rows.join(",\n"));
    assert_eq!(read("a.JSON", array.as_bytes()).unwrap(), lines);
}

#[test]
fn ids_stay_unique_even_beside_ids_that_look_disambiguated() {
    let ids = ["a", "a#2", "a", "2", "a", "a#2"];
    let line = |id: &str| {
        format!("{{\"id\":\"{id}\",\"prompt\":\"\",\"chosen\":\"\",\"rejected\":\"\"}}\n")
    };
    let text: String = ids.iter().map(|id| line(id)).collect();
    let pairs = read("a.jsonl", text.as_bytes()).unwrap();
    let got: Vec<&str> = pairs.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(got, ["a", "a#2", "a#3", "2", "a#4", "a#2#2"]);
}

#[test]
fn every_bad_line_is_named_with_its_number_and_key() {
    let good = "{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"d\"}\n";
    let messages = "[{\"role\": \"user\", \"content\": \"hi\"}]";
    let cases = [
        (
            "{\"prompt\": \"p\", \"chosen\": \"c\"}".to_string(),
            "rejected: is missing; the row has ",
        ),
        (
            "{\"chosen\": \"c\", \"rejected\": \"d\"}".to_string(),
            "prompt (or question): is missing",
        ),
        (good.replace("\"c\"", "3"), "chosen: is a number, not text"),
        (
            good.replace("\"p\"", messages),
            "chosen: is text, while another column is a list of messages",
        ),
        (good.replace("{", "{\"id\": 1.5, "), "id: must be text or an integer, is 1.5"),
        (good.replace("{", "{\"chosen_score\": 1.5, "), "chosen_score: must be an integer, is 1.5"),
        ("[1]".to_string(), "is an array, not an object"),
        ("{\"prompt\": \"p\",".to_string(), "is not JSON: EOF"),
    ];
    for (line, wanted) in cases {
        let error = message("a.jsonl", format!("{good}\n{line}").as_bytes());
        assert!(error.contains("a.jsonl:3: ") && error.contains(wanted), "{error}");
        let array = format!("[{good}, {line}]");
        let error = message("a.json", array.as_bytes());
        assert!(error.contains("a.json: row 2: ") || error.contains("is not an array"), "{error}");
    }
}

#[test]
fn errors_name_the_place_of_bytes_that_are_not_utf8() {
    let line = b"{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"d\"}\n";
    let bad = [&line[..], &line[..], b"\"ab\xffc\"\n"].concat();
    assert!(message("a.jsonl", &bad).contains("a.jsonl:3: is not UTF-8 at byte 4"));
    assert!(message("a.json", &bad).contains("a.json:3: is not UTF-8 at byte 4"));
    let wide: Vec<u8> = "\u{feff}[]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for name in ["a.json", "a.jsonl"] {
        assert!(message(name, &wide).contains("UTF-16"));
        for empty in ["", "\u{feff}", " \n\n"] {
            assert!(message(name, empty.as_bytes()).contains("contains no pairs"));
        }
    }
    assert!(message("a.json", b"[]").contains("contains no pairs"));
    assert!(message("a.csv", b"x").contains("\"csv\" is not one of jsonl, json, parquet"));
    assert!(message("a.parquet", b"").contains("footer"));
}

#[test]
fn written_pairs_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/pairs.jsonl");
    let pairs = read("a.jsonl", LINES.as_bytes()).unwrap();
    assert_eq!(write_pairs(&path, &pairs).unwrap(), 3);
    assert_eq!(read_pairs(&path, None).unwrap(), pairs);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(
        "{\"id\":\"1\",\"prompt\":\"q\u{e9}\",\"chosen\":\"a\",\"rejected\":\"b\"}\n"
    ));
}

/// Writes a table of two row groups. The second `chosen` of each group is null if `with_null` is set.
fn parquet_file(schema: &str, with_null: bool) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let columns = schema.get_fields().len();
    let properties = Arc::new(WriterProperties::builder().build());
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for group in 0..2i64 {
        let mut rows = writer.next_row_group().unwrap();
        for column in 0..columns {
            let mut out = rows.next_column().unwrap().unwrap();
            if column == 0 {
                let ids = [10 * group, 10 * group + 1];
                out.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
            } else {
                let text = |row| ByteArray::from(format!("{column}-{group}-{row}").into_bytes());
                let levels: &[i16] = if with_null && column == 2 { &[1, 0] } else { &[1, 1] };
                let values = [text(0), text(1)];
                let present = levels.iter().sum::<i16>() as usize;
                let typed = out.typed::<ByteArrayType>();
                typed.write_batch(&values[..present], Some(levels), None).unwrap();
            }
            out.close().unwrap();
        }
        rows.close().unwrap();
    }
    writer.close().unwrap();
    (folder, path)
}

const TABLE: &str = "message m { required int64 id; optional binary question (UTF8); \
    optional binary chosen (UTF8); optional binary rejected (UTF8); }";

#[test]
fn a_table_is_read_across_row_groups() {
    let (_folder, path) = parquet_file(TABLE, false);
    let pairs = read_pairs(&path, None).unwrap();
    assert_eq!(pairs.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["0", "1", "10", "11"]);
    let last = &pairs[3];
    assert_eq!([&last.prompt, &last.chosen, &last.rejected], ["1-1-1", "2-1-1", "3-1-1"]);
}

#[test]
fn a_bad_table_names_row_or_column() {
    let (_folder, path) = parquet_file(TABLE, true);
    let error = read_pairs(&path, None).unwrap_err().to_string();
    assert!(error.contains("a.parquet: row 2: chosen: is null, not text"), "{error}");
    let (_folder, path) = parquet_file(&TABLE.replace("rejected", "other"), false);
    let error = read_pairs(&path, None).unwrap_err().to_string();
    assert!(error.contains("only id, question, chosen, other"), "{error}");
    let (_folder, path) = parquet_file(TABLE, false);
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(
            read_pairs(&path, None).unwrap_err().to_string().contains("a.parquet"),
            "cut at {cut}"
        );
    }
}

/// A template that writes `<role>content` for each message.
fn template() -> ChatTemplate {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    ChatTemplate::new("chat_template.jinja", source, Vec::new(), Clock::Start)
}

#[test]
fn the_messages_of_a_table_are_read() {
    let list = |name: &str| {
        format!(
            "required group {name} (LIST) {{ repeated group list {{ optional group element {{ \
             optional binary content (UTF8); optional binary role (UTF8); }} }} }}"
        )
    };
    let schema = format!("message m {{ {} {} }}", list("chosen"), list("rejected"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    for texts in [
        ["q", "c", "s", "c2"],
        ["user", "assistant", "user", "assistant"],
        ["q", "r", "s", "r2"],
        ["user", "assistant", "user", "assistant"],
    ] {
        let mut out = rows.next_column().unwrap().unwrap();
        let texts = texts.map(|text| ByteArray::from(text.as_bytes().to_vec()));
        out.typed::<ByteArrayType>()
            .write_batch(&texts, Some(&[3, 3, 3, 3]), Some(&[0, 1, 0, 1]))
            .unwrap();
        out.close().unwrap();
    }
    rows.close().unwrap();
    writer.close().unwrap();
    let pairs = read_pairs(&path, Some(&template())).unwrap();
    let seen = pairs.iter().map(|pair| [&*pair.prompt, &*pair.chosen, &*pair.rejected]);
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [["<user>q<assistant>", "c", "r"], ["<user>s<assistant>", "c2", "r2"]]
    );
    let error = read_pairs(&path, None).unwrap_err().to_string();
    assert!(error.contains("a.parquet: row 1: is a conversation"), "{error}");
}

#[test]
fn conversations_are_rendered_or_the_row_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        read_pairs(&path, Some(&template()))
    };
    let user = |text: &str| format!("{{\"role\": \"user\", \"content\": \"{text}\"}}");
    let row = |prompt: &str, chosen: &str, rejected: &str| {
        format!("{{{prompt} \"chosen\": [{chosen}], \"rejected\": [{rejected}]}}\n")
    };
    let explicit = row(&format!("\"prompt\": [{}],", user("p")), &user("c"), &user("r"));
    let both = |answer: &str| format!("{}, {}", user("p"), user(answer));
    // Some data sets give the prompt as text too.
    let implicit = row("\"prompt\": \"p\",", &both("c"), &both("r"));
    for pair in read(&(explicit.clone() + &implicit)).unwrap() {
        let seen = [pair.prompt, pair.chosen, pair.rejected];
        assert_eq!(seen, ["<user>p<", "user>c", "user>r"]);
        let rendered = pair.rendered.unwrap();
        assert_eq!(rendered.prompt, "<user>p<assistant>");
        assert_eq!(rendered.wholes, ["<user>p<user>c", "<user>p<user>r"]);
    }
    let text = "{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"d\"}\n";
    for (rows, problem) in [
        (explicit.clone() + text, "a.jsonl:2: is text, but"),
        (text.to_string() + &explicit, "a.jsonl:2: is a conversation, but"),
        (
            row("", &user("c"), &user("r")),
            "prompt: is missing, and chosen and rejected do not begin",
        ),
        (row("", "", ""), "chosen: holds no message"),
        (row("", "7", "7"), "chosen[0]: is 7, not an object"),
        (
            row("", "{\"content\": \"c\"}", ""),
            "chosen[0]: role is missing; the message has content",
        ),
        (explicit.replacen('{', "{\"tools\": 7, ", 1), "tools: is a number"),
        (
            explicit.replacen('{', "{\"chat_template_kwargs\": [], ", 1),
            "chat_template_kwargs: is an array",
        ),
        (
            explicit.replacen('{', "{\"chat_template_kwargs\": {\"chat_template\": \"x\"}, ", 1),
            "chat_template_kwargs: chat_template is no variable",
        ),
    ] {
        let error = read(&rows).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn no_damaged_byte_of_a_table_makes_it_panic() {
    let (_folder, path) = parquet_file(TABLE, false);
    let whole = fs::read(&path).unwrap();
    let mut errors = 0;
    for at in (0..whole.len()).step_by(3) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        // A change in a text or a statistic need not be detected.
        errors += usize::from(read_pairs(&path, None).is_err());
    }
    assert!(errors > whole.len() / 9, "{errors} of {}", whole.len());
}
