//! The text form (`.bir`): prints and parses whole graphs.
//!
//! ```text
//! graph imported
//! %0 "tokens" = input {input=tokens} : i32[R]
//! %1 "embed" = const {recipe=random 1 0.5 [32, 16]} : f32[32, 16]
//! %2 "x" = embed %0, %1 : f32[R, 16]
//! %9.1                                   the second result of %9
//! # a comment
//! ```

use crate::graph::{Graph, GraphError, NodeId, Value};
use crate::op::Op;
use crate::phase::Phase;
use crate::types::Layout;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A place in a line of text.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    pub fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Whether nothing but white space is left.
    pub fn at_end(&mut self) -> bool {
        self.skip();
        self.rest.is_empty()
    }

    /// Takes `token` if it comes next.
    pub fn eat(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes `token` or says what stands there.
    pub fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) {
            return Ok(());
        }
        let found: String = self.rest.chars().take(20).collect();
        Err(format!("expected `{token}`, found `{found}`"))
    }

    fn take_while(&mut self, mut keep: impl FnMut(char) -> bool) -> &'a str {
        self.skip();
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Letters, digits, `_`, `.`, and signs as in numbers.
    pub fn word(&mut self) -> &'a str {
        let mut last = ' ';
        self.take_while(|c| {
            let sign = (c == '-' || c == '+') && (last == ' ' || last == 'e');
            last = c;
            sign || c.is_alphanumeric() || c == '_' || c == '.'
        })
    }

    /// Takes `word`, whole, or says which word stands there.
    pub fn expect_word(&mut self, word: &str) -> Result<(), String> {
        match self.word() {
            found if found == word => Ok(()),
            found => Err(format!("expected `{word}`, found `{found}`")),
        }
    }

    /// A quantisation scheme, which has signs and colons inside.
    pub fn scheme_word(&mut self) -> &'a str {
        self.take_while(|c| c.is_alphanumeric() || matches!(c, ':' | '+' | '-'))
    }

    /// A quoted string with Rust's escapes `\"`, `\\`, `\n`, `\t`, `\u{..}`.
    pub fn string(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[i + 1..];
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let hex: String = chars
                            .by_ref()
                            .map(|(_, c)| c)
                            .skip_while(|c| *c == '{')
                            .take_while(|c| *c != '}')
                            .collect();
                        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                        out.push(code.ok_or_else(|| format!("`\\u{{{hex}}}` is no character"))?);
                    }
                    Some(c @ ('"' | '\\' | '\'')) => out.push(c),
                    other => return Err(format!("unknown escape {other:?}")),
                },
                c => out.push(c),
            }
        }
        Err("a string has no end".into())
    }
}

/// Lists of more elements are cut by [`print_brief`].
const LONG: usize = 64;
/// So many of their elements stay.
const KEPT: usize = 4;

/// As [`print()`], for people: of long lists of numbers only the first stand there, so it cannot be parsed.
pub fn print_brief(graph: &Graph) -> String {
    cut(&print(graph))
}

fn cut(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split('[').enumerate() {
        out.push_str(if i > 0 { "[" } else { "" });
        let (list, after) = part.split_at(part.find(']').unwrap_or(0));
        let elements = list.split(", ").count();
        if elements > LONG {
            out.extend(list.split_inclusive(", ").take(KEPT));
            let _ = write!(out, "and {} more", elements - KEPT);
        } else {
            out.push_str(list);
        }
        out.push_str(after);
    }
    out
}

/// Prints the nodes that the output needs, in execution order, numbered from 0. Equal graphs print equal text.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("graph {}\n", graph.phase);
    let order = graph.order();
    let number: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    for &node in &order {
        let _ = write!(out, "%{} {:?} = {}", number[&node], graph.name(node), graph.op(node).name());
        for (i, v) in graph.operands(node).iter().enumerate() {
            let _ = write!(out, "{}%{}", if i == 0 { " " } else { ", " }, number[&v.node]);
            if v.result > 0 {
                let _ = write!(out, ".{}", v.result);
            }
        }
        graph.op(node).print_attrs(&mut out);
        for (i, t) in graph.types(node).iter().enumerate() {
            let _ = write!(out, "{}{t}", if i == 0 { " : " } else { ", " });
        }
        out.push('\n');
    }
    out
}

/// Parses what [`print()`] wrote (or a person did). Errors name the line.
pub fn parse(text: &str) -> Result<Graph, GraphError> {
    let mut graph = Graph::default();
    let mut nodes: BTreeMap<u32, NodeId> = BTreeMap::new();
    let mut phase = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error = |why: String| GraphError { node: format!("line {}", at + 1), why };
        if phase.is_none() {
            let name = line
                .strip_prefix("graph ")
                .ok_or_else(|| error("the first line must be `graph PHASE`".into()))?;
            phase = Some(name.trim().parse::<Phase>().map_err(error)?);
            continue;
        }
        parse_line(&mut graph, &mut nodes, line).map_err(error)?;
    }
    graph.phase = phase.ok_or_else(|| GraphError { node: "text".into(), why: "is empty".into() })?;
    crate::verify::verify(&graph)?;
    Ok(graph)
}

fn parse_line(graph: &mut Graph, nodes: &mut BTreeMap<u32, NodeId>, line: &str) -> Result<(), String> {
    let number = |c: &mut Cursor<'_>| -> Result<u32, String> {
        c.expect("%")?;
        let word = c.take_while(|c| c.is_ascii_digit());
        word.parse().map_err(|_| format!("`%{word}` is no node"))
    };
    let mut c = Cursor::new(line);
    let id = number(&mut c)?;
    let name = c.string()?;
    c.expect("=")?;
    let op = c.word();
    let mut operands = Vec::new();
    while c.clone().eat("%") {
        let node = number(&mut c)?;
        let node = *nodes.get(&node).ok_or_else(|| format!("%{node} is not defined above"))?;
        let result =
            if c.eat(".") { c.take_while(|c| c.is_ascii_digit()).parse().unwrap_or(u16::MAX) } else { 0 };
        if usize::from(result) >= graph.types(node).len() {
            return Err(format!("{} has no result {result}", graph.name(node)));
        }
        operands.push(Value { node, result });
        if !c.eat(",") {
            break;
        }
    }
    let op = Op::parse_attrs(op, &mut c)?;
    let constant = matches!(op, Op::Const { .. });
    let node = graph.add(name, op, &operands).map_err(|e| e.to_string())?;
    if c.eat(":") {
        let stated = c.rest.trim().to_string();
        if constant && stated.ends_with(" panel") {
            graph.set_layout(node, Layout::Panel).map_err(|e| e.to_string())?;
        }
        let inferred = graph.types(node).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if stated != inferred {
            return Err(format!("states `{stated}`, inferred is `{inferred}`"));
        }
    } else if !c.at_end() {
        return Err(format!("`{}` follows the op", c.rest));
    }
    if nodes.insert(id, node).is_some() {
        return Err(format!("%{id} is defined twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"graph imported
%0 "tokens" = input {input=tokens} : i32[R]
%1 "table" = const {recipe=tensor "emb\"x" Q8_0 [32, 32] | convert u4:f16x32+f16} : f32[32, 32] @u4:f16x32+f16 panel
%2 "x" = embed %0, %1 : f32[R, 32]
%3 "w" = const {recipe=random 3 0.5 [32]} : f32[32]
%4 "n" = rms_norm %2, %3 {eps=1e-5} : f32[R, 32]
%5 "rows" = input {input=logit_rows} : i32[L]
%6 "s" = select_rows %4, %5 : f32[L, 32]
%7 "head" = linear %6, %1 {segments=["table":32], epilogue=none, compute=int8x32 then bf16 from 18} : f32[L, 32]
%8 "out" = output %7
"#;

    #[test]
    fn round_trips() {
        let graph = parse(TEXT).unwrap();
        assert_eq!(print(&graph), TEXT);
    }

    #[test]
    fn long_lists_are_cut_for_people_alone() {
        let graph = parse(TEXT).unwrap();
        assert_eq!(print_brief(&graph), TEXT);
        let list = |n: usize| format!("scale columns [{}] : f32[{n}, 2]", vec!["0.5"; n].join(", "));
        assert_eq!(cut(&list(64)), list(64));
        assert_eq!(cut(&list(65)), "scale columns [0.5, 0.5, 0.5, 0.5, and 61 more] : f32[65, 2]");
        assert_eq!(cut("no list, [a, b] and [no end"), "no list, [a, b] and [no end");
    }

    #[test]
    fn errors_name_the_line() {
        let bad = TEXT.replace("rms_norm %2, %3", "rms_norm %2, %1");
        assert!(parse(&bad).unwrap_err().to_string().starts_with("line 6"));
        let bad = TEXT.replace("%0, %1 :", "%0, %9 :");
        assert!(parse(&bad).unwrap_err().to_string().contains("%9 is not defined"));
    }
}
