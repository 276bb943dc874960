//! Tests of the program as a user calls it: commands, flags, files, messages and errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::too_many_lines, reason = "a test is one sequence of steps")]

mod calls;
mod chat;
mod chat_terminal;
mod config;
mod configuration;
mod conversations;
mod demo;
mod devices;
mod doctor;
mod ecosystem;
mod export;
mod generate;
#[cfg(unix)]
mod gpu_script;
mod guide;
mod inspect;
mod iterate;
mod options;
mod outputs;
mod pages;
mod plan;
mod prepare;
mod promises;
mod push;
mod readme;
mod report;
#[path = "../suite/signal.rs"]
mod signal;
mod streams;
#[path = "../suite/mod.rs"]
mod suite;
mod train;

use suite::plan::tiny;
use suite::support;
