//! PromQL, the language of Prometheus 3: text to tree ([`parse`]) and back (`Display` of [`Expr`]).
//!
//! Everything here is pure and bounded: a query has at most [`BYTES_MAX`] bytes and a tree of at most
//! [`HEIGHT_MAX`] nodes from root to leaf. Errors have Prometheus' words and positions wherever we know them.
//!
//! Considered: the crate `promql-parser`; see docs/decisions/0008-nightlight.md.

pub mod ast;
mod check;
pub mod duration;
mod features;
pub mod functions;
mod lex;
mod parse;
mod print;

pub use ast::{Expr, Span, Type};
pub use features::{Features, parse_with};
pub(crate) use lex::unquote;
pub use parse::{parse, parse_selector};
pub use print::number;

/// Longest query, in bytes.
pub const BYTES_MAX: usize = 256 << 10;
/// Greatest height of a tree, so that recursion over it fits a thread's stack. A chain such as `a or b or c` is
/// as high as it is long.
pub const HEIGHT_MAX: u16 = 250;
/// Deepest nesting of parentheses, calls and operators that bind to the right, for the parser's own recursion.
pub const NESTING_MAX: u16 = 100;

/// Why a query can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: parse error: {message}")]
pub struct ParseError {
    /// What is wrong, as Prometheus says it.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Line, from 1.
    pub line: u32,
    /// Byte within the line, from 1.
    pub column: u32,
}

impl ParseError {
    fn new(text: &str, span: Span, message: String) -> Self {
        let (line, column) = position(text, span);
        ParseError { message, span, line, column }
    }
}

/// Line and byte within the line where `span` starts, from 1.
pub fn position(text: &str, span: Span) -> (u32, u32) {
    let before = &text.as_bytes()[..(span.start as usize).min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count();
    let column = before.len() - before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    (line as u32 + 1, column as u32 + 1)
}
