//! What the benchmarks beside a peer are told: the folder of inputs, numbers by name, the peer's Python.

use std::path::PathBuf;

/// The words of the command line.
pub(super) struct Arguments(Vec<String>);

impl Arguments {
    /// Those of this process; ends it where no folder of inputs is named, for which `file` is the place to read.
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

    /// The number after `name`.
    pub(super) fn number(&self, name: &str, default: usize) -> usize {
        let at = self.0.iter().position(|argument| argument == name);
        at.map_or(default, |at| self.0[at + 1].parse().unwrap())
    }
}

/// A Python with the peer; says so where none is named.
pub(super) fn python() -> Option<String> {
    let peer = std::env::var("ARITHMO_PEER_PYTHON").ok();
    if peer.is_none() {
        println!("ARITHMO_PEER_PYTHON is not set: the peer was not measured");
    }
    peer
}
