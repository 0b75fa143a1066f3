//! The graph IR: one op table, types, printer, parser, verifier.
