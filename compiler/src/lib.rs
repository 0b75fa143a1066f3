//! Ahead-of-time compiler for language models: checkpoint in, engine file out.

pub mod import;
