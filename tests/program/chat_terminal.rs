//! Tests of `arithmo chat` on a terminal: Ctrl-C, editing and history. They need the terminal of `script` (util-linux).

#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::suite::tiny::{text_shape, write_model_with_tokenizer};
use arithmo::model::config::DecoderConfig;
use burn::tensor::DType;
use tempfile::TempDir;

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const UP: &str = "\x1b[A";

/// Longest time to wait for output.
const LIMIT: Duration = Duration::from_secs(120);

/// Writes a model whose answers have tens of thousands of tokens.
fn write_model(model: &Path) {
    let shape =
        DecoderConfig { max_position_embeddings: 200_000, eos_token_id: vec![429], ..text_shape() };
    write_model_with_tokenizer(model, &shape, DType::F32, "byte-level");
}

/// A chat and the output of its terminal.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Receiver<Vec<u8>>,
    /// Output after the last text that [`Self::wait_for`] found.
    text: String,
    /// Temporary folder with the model.
    _folder: TempDir,
}

impl Terminal {
    /// Opens a chat and waits for its first prompt. Returns `None` without `script`.
    fn open(flags: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        write_model(&model);
        let program = env!("CARGO_BIN_EXE_arithmo");
        // Without `exec` some shells stay in the foreground as the program's parent, and Ctrl-C ends them.
        let line = format!(
            "exec '{program}' --backend ndarray chat --model '{}' --prompt-template 'Q: {{prompt}} A:' {flags}",
            model.display()
        );
        let child = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: no script (util-linux)");
            return None;
        };
        let keys = child.stdin.take().unwrap();
        let mut out = child.stdout.take().unwrap();
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read) = out.read(&mut buffer) {
                if read == 0 || sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut terminal = Self { child, keys, shown, text: String::new(), _folder: folder };
        terminal.wait_for("/quit");
        terminal.wait_for("> ");
        Some(terminal)
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until `text` is shown and returns the output before it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            if let Some((before, after)) = self.text.split_once(text) {
                let (before, after) = (before.to_string(), after.to_string());
                self.text = after;
                return before;
            }
            match self.shown.recv_timeout(LIMIT) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} is not shown ({error}): {:?}", self.text),
            }
        }
    }

    fn status(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn ctrl_c_stops_an_answer_and_the_chat_goes_on() {
    let Some(mut terminal) = Terminal::open("--max-new-tokens 150000") else {
        return;
    };
    // The second Ctrl-C of the chat is the first of its answer, so it stops that answer only. The first Ctrl-C is sent
    // before the answer begins, as soon as the line editor has restored the terminal.
    for (question, begun) in [("How many clips?", 0), ("And now?", 4)] {
        terminal.press(&format!("{question}\r"));
        terminal.wait_for("\x1b[?2004l");
        while terminal.text.trim().len() < begun {
            let bytes = terminal.shown.recv_timeout(LIMIT).unwrap();
            terminal.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        terminal.press(CTRL_C);
        terminal.wait_for("(stopped");
        terminal.wait_for("> ");
    }
    terminal.press("/quit\r");
    assert_eq!(terminal.status(), Some(0));
}

#[test]
fn ctrl_c_at_the_prompt_says_how_to_leave_and_leaves_when_pressed_again() {
    let Some(mut terminal) = Terminal::open("--max-new-tokens 2") else {
        return;
    };
    terminal.press("never asked");
    terminal.wait_for("never asked");
    terminal.press(CTRL_C);
    terminal.wait_for("leaves");
    terminal.wait_for("> ");
    // The line was cleared, so only this command is read. After it, the next Ctrl-C counts as the first again.
    terminal.press("/nothing\r");
    terminal.wait_for("no command /nothing");
    terminal.wait_for("> ");
    terminal.press(CTRL_C);
    terminal.wait_for("leaves");
    terminal.wait_for("> ");
    terminal.press(CTRL_C);
    assert_eq!(terminal.status(), Some(0));
}

#[test]
fn lines_can_be_edited_and_recalled() {
    let Some(mut terminal) = Terminal::open("--max-new-tokens 2") else {
        return;
    };
    // Press the left arrow twice, then a letter.
    terminal.press("/oe\x1b[D\x1b[Dn\r");
    terminal.wait_for("no command /noe;");
    terminal.wait_for("> ");
    terminal.press(&format!("{UP}s\r"));
    terminal.wait_for("no command /noes;");
    terminal.wait_for("> ");
    terminal.press(CTRL_D);
    assert_eq!(terminal.status(), Some(0));
}
