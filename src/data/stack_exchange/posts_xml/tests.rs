use super::super::Row;
use super::*;

fn read(xml: &[u8]) -> (Vec<Row>, Vec<BadInput>, Meter) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Posts.xml");
    std::fs::write(&path, xml).unwrap();
    let meter = Meter::default();
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for record in open(&path, folder.path(), meter.clone()).unwrap() {
        match record {
            Record::Unread(mut row) => {
                let all: Vec<_> = (0..row.row().answers.len()).collect();
                row.fetch(&all).unwrap();
                rows.push(row.into_row());
            }
            Record::Bad(mut input) => {
                input.place = input.place.rsplit_once('/').unwrap().1.to_string();
                bad.push(input);
            }
            other => panic!("{other:?}"),
        }
    }
    (rows, bad, meter)
}

const HEAD: &str = "\u{feff}<?xml version=\"1.0\"?>\n<!-- a > b < c -->\n<posts>\n";

#[test]
fn joins_answers_before_and_after_their_question() {
    let (rows, bad, meter) = read(
        format!(
            "{HEAD}<row Id='3' PostTypeId='2' ParentId='2' Score='3' Body='&lt;p&gt;early > one&#xA;' />\n\
             <row Id=\"2\" PostTypeId=\"1\" AcceptedAnswerId=\"9\" Score=\"1\" Body=\"Q\"></row>\n\
             <row Id=\"4\" PostTypeId=\"5\" />\n\
             <row Id=\"9\" PostTypeId=\"2\" ParentId=\"2\" Score=\"0\" Body=\"late\" />\n\
             <row Id=\"8\" PostTypeId=\"2\" ParentId=\"77\" Score=\"0\" Body=\"lost\" />\n</posts>\n"
        )
        .as_bytes(),
    );
    assert_eq!(bad, []);
    let answers: Vec<_> =
        rows[0].answers.iter().map(|a| (&*a.text, a.pm_score, a.selected)).collect();
    assert_eq!((rows.len(), &*rows[0].qid, &*rows[0].question), (1, "2", "Q"));
    assert_eq!(answers, [("<p>early > one\n", 2, false), ("late", 1, true)]);
    assert_eq!((meter.posts(PostKind::OrphanAnswer), meter.posts(PostKind::Other)), (1, 1));
}

#[test]
fn a_bad_row_does_not_take_the_next_with_it() {
    let good = "<row Id=\"2\" PostTypeId=\"1\" Score=\"1\" Body=\"Q\" />\n";
    let mut xml = HEAD.to_string();
    xml += "<row Id=\"1\" PostTypeId=1 Score=\"1\" Body=\"Q\" />\n";
    xml += "<row Id=\"5 PostTypeId=\"1\" Score=\"1\" Body=\"Q\" />\n";
    xml += "<row Id=\"6\" PostTypeId=\"1\" Score=\"x\" Body=\"Q\" />\n";
    xml += "<row Id=\"7\" PostTypeId=\"1\" Score=\"1\" Body=\"&no;\" />\n";
    xml += good;
    let mut bytes = xml.into_bytes();
    bytes.extend(b"<row Id=\"8\" PostTypeId=\"1\" Score=\"1\" Body=\"\xff\" />");
    let (rows, bad, _) = read(&bytes);
    assert_eq!(rows.len(), 1);
    let places: Vec<_> = bad.iter().map(|b| b.place.split(' ').next().unwrap()).collect();
    let lines = [4, 5, 6, 7, 9, 9].map(|n| format!("Posts.xml:{n}"));
    assert_eq!(places, lines);
    assert!(bad[2].problem.contains("\"x\", not an integer"), "{}", bad[2].problem);
    assert!(bad[5].rest_of_file && bad[5].problem.contains("cut short"));
}

#[test]
fn a_document_type_with_declarations_is_passed_over() {
    let head = "<!DOCTYPE posts [ <!ELEMENT posts (row)*> <!ENTITY a \"b\"> ]>\n<!-- a -->";
    let (rows, bad, _) = read(format!("{head}<posts>{QUESTION}</posts>").as_bytes());
    assert_eq!((rows.len(), bad), (1, vec![]));
}

#[test]
fn another_document_is_refused() {
    let (_, bad, _) = read(b"<?xml version=\"1.0\"?><comments></comments>");
    assert_eq!(bad[0].problem, "begins with <comments>, not <posts>");
}

const QUESTION: &str = "<row Id=\"1\" PostTypeId=\"1\" Score=\"1\" Title=\"T\" Body=\"Q\" />";
const ANSWER: &str = "<row Id=\"2\" PostTypeId=\"2\" ParentId=\"1\" Score=\"3\" Body=\"A\" />";

fn counts(rows: &[Row]) -> Vec<usize> {
    rows.iter().map(|row| row.answers.len()).collect()
}

#[test]
fn titles_are_plain_text() {
    let title = "Is &quot;x &lt; y&quot; &amp;amp; more?";
    let (rows, bad, _) = read(
        format!(
            "<posts><row Id=\"1\" PostTypeId=\"1\" Title=\"{title}\" Score=\"1\" Body=\"Q\"/>\
             <row Id=\"2\" PostTypeId=\"1\" Title=\" \" Score=\"1\" Body=\"R\"/></posts>"
        )
        .as_bytes(),
    );
    assert_eq!(bad, []);
    let titles: Vec<&str> = rows.iter().map(|row| row.title.as_str()).collect();
    assert_eq!(titles, ["Is \"x < y\" &amp; more?", ""]);
}

#[test]
fn joined_documents_are_read_each_with_its_own_ids() {
    // Two sites: the same ids mean different posts.
    let document = format!("{HEAD}{QUESTION}{ANSWER}</posts>");
    let (rows, bad, meter) = read(document.repeat(2).as_bytes());
    assert_eq!((bad, counts(&rows)), (vec![], vec![1, 1]));
    assert_eq!(meter.posts(PostKind::Repeated), 0);
    // One dump in two pieces: the answer's question is in the other piece.
    let split = format!("<posts>{ANSWER}</posts>\n<posts>{QUESTION}</posts>");
    let (rows, bad, meter) = read(split.as_bytes());
    assert_eq!((bad, counts(&rows)), (vec![], vec![1]));
    assert_eq!(meter.posts(PostKind::OrphanAnswer), 0);
    // Rows after the end tag.
    let (rows, bad, _) = read(format!("<posts>{QUESTION}</posts>{ANSWER}").as_bytes());
    assert_eq!((bad, counts(&rows)), (vec![], vec![1]));
    // A post that occurs twice in one document counts once.
    let twice = format!("<posts>{QUESTION}{ANSWER}{QUESTION}{ANSWER}</posts>");
    let (rows, bad, meter) = read(twice.as_bytes());
    assert_eq!((bad, counts(&rows)), (vec![], vec![1]));
    assert_eq!(meter.posts(PostKind::Repeated), 2);
}

#[test]
fn input_after_the_posts_is_an_error() {
    let check = |text: &str, place: &str, problem: &str| {
        let (rows, bad, _) = read(text.as_bytes());
        assert_eq!(rows.len(), 1, "{text}");
        assert_eq!(bad.len(), 1, "{text}: {bad:?}");
        assert_eq!(bad[0].place, place);
        assert!(bad[0].problem.contains(problem), "{}", bad[0].problem);
    };
    let place = |line: usize, byte: usize| format!("Posts.xml:{line} (byte {byte})");
    let whole = format!("<posts>\n{QUESTION}\n</posts>\n");
    let end = whole.len();
    check(&format!("{whole} x"), &place(4, end + 1), "text between the tags");
    check(&format!("{whole}<users>"), &place(4, end), "after </posts> comes <users>");
    check(&format!("<posts>{QUESTION}<posts></posts>"), &place(1, 7 + QUESTION.len()), "cut short");
    check(&format!("<posts>\nx{QUESTION}</posts>"), &place(2, 8), "text between the tags");
}

#[test]
fn a_row_above_the_limit_is_refused_and_the_next_is_read() {
    let xml = format!("<posts>{}<row Body=\"{}\"/>{QUESTION}</posts>", ANSWER, "a".repeat(5000));
    let mut scan = Scan {
        tags: Tags::new(xml.as_bytes(), 1000),
        spill: Spill::new(0, &std::env::temp_dir()).unwrap(),
        name: "Posts.xml".into(),
        meter: Meter::default(),
        position: Position::Before,
        after_bad: false,
    };
    let bad = scan.next_bad().unwrap().unwrap();
    assert!(bad.remedy.contains("--max-row-bytes"), "{bad:?}");
    assert!(scan.tags.tag.capacity() < 4096);
    assert_eq!(scan.next_bad().unwrap(), None);
    assert_eq!(scan.meter.posts(PostKind::Question), 1);
}
