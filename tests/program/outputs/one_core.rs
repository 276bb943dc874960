//! Checks that one thread is enough. With one thread in the pool, waiting for the pool from inside it would never end.

use std::fs::File;
use std::io::{BufWriter, Write};

use super::{Workshop, wait};

/// Prepares a `Posts.xml` of more than 16 MiB, whose posts are joined in several parts. It has two questions with
/// answers, followed by posts of another kind that only make it large.
#[test]
fn a_dump_in_several_parts_is_prepared_by_one_thread() {
    let workshop = Workshop::new();
    let mut file = BufWriter::new(File::create(workshop.at("Posts.xml")).unwrap());
    writeln!(file, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<posts>").unwrap();
    for question in [1, 4] {
        writeln!(
            file,
            "<row Id=\"{question}\" PostTypeId=\"1\" Score=\"3\" Body=\"&lt;p&gt;What is $x^2$ of {question}?&lt;/p&gt;\" />"
        )
        .unwrap();
        for (answer, score) in [(question + 1, 9), (question + 2, 0)] {
            writeln!(
                file,
                "<row Id=\"{answer}\" PostTypeId=\"2\" ParentId=\"{question}\" Score=\"{score}\" Body=\"&lt;p&gt;It is ${answer}$, by the definition.&lt;/p&gt;\" />"
            )
            .unwrap();
        }
    }
    let padding = "x".repeat(1 << 20);
    for other in 0..18 {
        writeln!(
            file,
            "<row Id=\"{}\" PostTypeId=\"5\" Score=\"0\" Body=\"{padding}\" />",
            100 + other
        )
        .unwrap();
    }
    writeln!(file, "</posts>").unwrap();
    file.into_inner().unwrap();
    let line = "prepare --input Posts.xml --output out.jsonl --config all.toml --quiet";
    std::fs::write(workshop.at("all.toml"), "question_filters = []\n").unwrap();
    let mut one = workshop.command(line);
    let mut child = one.env("RAYON_NUM_THREADS", "1").spawn().unwrap();
    assert_eq!(wait(&mut child), Some(0));
    let pairs = std::fs::read_to_string(workshop.at("out.jsonl")).unwrap();
    assert_eq!(pairs.lines().count(), 2);
}
