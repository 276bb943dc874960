//! The arguments of benchmarks that compare with a peer: the folder of inputs, numbers by name, the
//! peer's Python.

use std::path::PathBuf;

/// The arguments of the command line.
pub(super) struct Arguments(Vec<String>);

impl Arguments {
    /// Returns the arguments of this process and the folder of inputs. Without a folder it ends the
    /// process with a reference to `file`.
    pub(super) fn read(file: &str) -> (Self, PathBuf) {
        let words = std::env::args().skip(1).filter(|a| a != "--bench");
        let words = Self(words.collect());
        let Some(inputs) = words.0.first() else {
            println!("no INPUTS folder given: nothing was measured (see the head of {file})");
            std::process::exit(0);
        };
        let inputs = PathBuf::from(inputs);
        (words, inputs)
    }

    /// Returns the number after `name`.
    pub(super) fn number(&self, name: &str, default: usize) -> usize {
        let at = self.0.iter().position(|argument| argument == name);
        at.map_or(default, |at| self.0[at + 1].parse().unwrap())
    }
}

/// Returns the Python with the peer; prints a message if none is set.
pub(super) fn python() -> Option<String> {
    let peer = std::env::var("ARITHMO_PEER_PYTHON").ok();
    if peer.is_none() {
        println!("ARITHMO_PEER_PYTHON is not set: the peer was not measured");
    }
    peer
}
