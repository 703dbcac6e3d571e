//! From text to nodes.

use serde_json::Value;

use super::eval::FUNCTIONS;
use super::{Call, Node, Pipe, Term};

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Bar,
    Comma,
    Declare,
}

/// What ended a list of nodes.
#[derive(PartialEq)]
enum Stop {
    End,
    Else(Vec<Token>),
    Finish,
}

/// Text between actions, and actions.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(at) = rest.find("{{") {
        let (before, after) = rest.split_at(at);
        let mut before = if trim { before.trim_start() } else { before };
        let end = after.find("}}").ok_or("an action has no }}")?;
        let mut action = &after[2..end];
        if let Some(inner) = action.strip_prefix("- ") {
            before = before.trim_end();
            action = inner;
        }
        trim = action.ends_with(" -");
        if trim {
            action = &action[..action.len() - 2];
        }
        if !before.is_empty() {
            out.push(Piece::Text(before.to_owned()));
        }
        let action = action.trim();
        if !action.starts_with("/*") {
            out.push(Piece::Action(tokens(action)?));
        }
        rest = &after[end + 2..];
    }
    let rest = if trim { rest.trim_start() } else { rest };
    if !rest.is_empty() {
        out.push(Piece::Text(rest.to_owned()));
    }
    Ok(out)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            c if c.is_whitespace() => drop(chars.next()),
            '(' | ')' | '|' | ',' => {
                chars.next();
                out.push(match next {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    ',' => Token::Comma,
                    _ => Token::Bar,
                });
            }
            '"' | '`' => {
                chars.next();
                let mut literal = String::new();
                loop {
                    match chars.next() {
                        None => return Err("a text has no closing quote".into()),
                        Some(end) if end == next => break,
                        Some('\\') if next == '"' => match chars.next() {
                            Some('n') => literal.push('\n'),
                            Some('t') => literal.push('\t'),
                            Some(other) => literal.push(other),
                            None => return Err("a text has no closing quote".into()),
                        },
                        Some(other) => literal.push(other),
                    }
                }
                out.push(Token::Text(literal));
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if c.is_whitespace() || "()|,\"`".contains(c) {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                out.push(if word == ":=" {
                    Token::Declare
                } else {
                    Token::Word(word)
                });
            }
        }
    }
    Ok(out)
}

/// The whole template.
pub fn nodes(text: &str) -> Result<Vec<Node>, String> {
    let mut pieces = pieces(text)?.into_iter();
    match list(&mut pieces)? {
        (nodes, Stop::Finish) => Ok(nodes),
        (_, Stop::End) => Err("an {{end}} without a beginning".into()),
        (_, Stop::Else(_)) => Err("an {{else}} without an {{if}}".into()),
    }
}

fn list(pieces: &mut impl Iterator<Item = Piece>) -> Result<(Vec<Node>, Stop), String> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        let keyword = match tokens.first() {
            Some(Token::Word(word)) => word.as_str(),
            _ => "",
        };
        match keyword {
            "end" => return Ok((nodes, Stop::End)),
            "else" => return Ok((nodes, Stop::Else(tokens[1..].to_vec()))),
            "if" | "range" | "with" => {
                let block = block(keyword, &tokens[1..], pieces)?;
                nodes.push(block);
            }
            _ => nodes.push(Node::Show(pipe(&tokens)?)),
        }
    }
    Ok((nodes, Stop::Finish))
}

fn block(
    keyword: &str,
    head: &[Token],
    pieces: &mut impl Iterator<Item = Piece>,
) -> Result<Node, String> {
    // `range $i, $e := .List`: the variables are known by their order inside.
    let (variables, head) = match head.iter().position(|token| *token == Token::Declare) {
        Some(at) => (&head[..at], &head[at + 1..]),
        None => (&[][..], head),
    };
    let names: Vec<String> = variables
        .iter()
        .filter_map(|token| match token {
            Token::Word(word) => Some(word.clone()),
            _ => None,
        })
        .collect();
    let pipe = pipe(head)?;
    let (mut body, stop) = list(pieces)?;
    rename(&mut body, &names);
    let rest = match stop {
        Stop::End => Vec::new(),
        Stop::Finish => return Err(format!("{{{{{keyword}}}}} has no {{{{end}}}}")),
        Stop::Else(tokens) => match tokens.first() {
            Some(Token::Word(word)) if word == "if" => {
                // `else if` shares the `end` of the whole.
                vec![block("if", &tokens[1..], pieces)?]
            }
            _ => match list(pieces)? {
                (rest, Stop::End) => rest,
                _ => return Err(format!("{{{{{keyword}}}}} has no {{{{end}}}}")),
            },
        },
    };
    Ok(match keyword {
        "if" => Node::If(pipe, body, rest),
        "range" => Node::Range(pipe, body, rest),
        _ => Node::With(pipe, body, rest),
    })
}

/// In the body of a range its variables become the key and the element of where we are.
fn rename(nodes: &mut [Node], names: &[String]) {
    let (key, element) = match names {
        [] => return,
        [element] => (None, element),
        [key, element, ..] => (Some(key), element),
    };
    let term = |term: &mut Term| {
        if let Term::Function(word) = term {
            let (head, rest) = word.split_once('.').unwrap_or((word, ""));
            let path: Vec<String> = rest
                .split('.')
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect();
            if Some(&head.to_owned()) == key {
                *term = Term::Function("$key".into());
            } else if head == element {
                *term = Term::Field(path);
            }
        }
    };
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Show(pipe) => each(pipe, &term),
            Node::If(pipe, yes, no) | Node::With(pipe, yes, no) | Node::Range(pipe, yes, no) => {
                each(pipe, &term);
                rename(yes, names);
                rename(no, names);
            }
        }
    }
}

fn each(pipe: &mut Pipe, change: &impl Fn(&mut Term)) {
    for call in pipe {
        for term in std::iter::once(&mut call.head).chain(&mut call.arguments) {
            change(term);
            if let Term::Nested(pipe) = term {
                each(pipe, change);
            }
        }
    }
}

fn pipe(tokens: &[Token]) -> Result<Pipe, String> {
    let mut calls = Vec::new();
    let mut terms: Vec<Term> = Vec::new();
    let mut at = 0;
    let finish = |terms: &mut Vec<Term>, calls: &mut Pipe| {
        if terms.is_empty() {
            return Err("an action is empty".to_owned());
        }
        let head = terms.remove(0);
        calls.push(Call {
            head,
            arguments: std::mem::take(terms),
        });
        Ok(())
    };
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            Token::Bar => finish(&mut terms, &mut calls)?,
            Token::Text(text) => terms.push(Term::Literal(Value::from(text.clone()))),
            Token::Open => {
                let mut depth = 1;
                let start = at;
                while depth > 0 {
                    match tokens.get(at) {
                        Some(Token::Open) => depth += 1,
                        Some(Token::Close) => depth -= 1,
                        Some(_) => {}
                        None => return Err("a parenthesis is not closed".into()),
                    }
                    at += 1;
                }
                terms.push(Term::Nested(pipe(&tokens[start..at - 1])?));
            }
            Token::Word(word) => terms.push(word_term(word)?),
            Token::Close | Token::Comma | Token::Declare => {
                return Err("something is out of place".into());
            }
        }
    }
    finish(&mut terms, &mut calls)?;
    Ok(calls)
}

fn word_term(word: &str) -> Result<Term, String> {
    let path = |text: &str| {
        text.split('.')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    if let Some(rest) = word.strip_prefix('.') {
        return Ok(Term::Field(path(rest)));
    }
    if word == "$" || word.starts_with("$.") {
        return Ok(Term::Root(path(&word[1..])));
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Term::Literal(Value::from(number)));
    }
    match word {
        "true" => Ok(Term::Literal(Value::Bool(true))),
        "false" => Ok(Term::Literal(Value::Bool(false))),
        "nil" => Ok(Term::Literal(Value::Null)),
        _ if word.starts_with('$') || FUNCTIONS.contains(&word) => {
            Ok(Term::Function(word.to_owned()))
        }
        _ => Err(format!("there is no function {word:?}")),
    }
}
