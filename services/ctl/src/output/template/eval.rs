//! From nodes and a value to text.

use serde_json::Value;

use super::{Call, Node, Pipe, Term};

/// The functions that there are.
pub const FUNCTIONS: [&str; 22] = [
    "json", "len", "index", "join", "split", "upper", "lower", "title", "trim", "print", "println",
    "printf", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "slice",
];

struct Place<'a> {
    here: &'a Value,
    root: &'a Value,
    key: Value,
}

/// Appends what the nodes make of a value.
pub fn nodes(list: &[Node], here: &Value, root: &Value, out: &mut String) -> Result<(), String> {
    let place = Place {
        here,
        root,
        key: Value::Null,
    };
    inside(list, &place, out)
}

fn inside(list: &[Node], place: &Place<'_>, out: &mut String) -> Result<(), String> {
    for node in list {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Show(pipe) => out.push_str(&shown(&run(pipe, place)?)),
            Node::If(pipe, yes, no) => {
                let branch = if truth(&run(pipe, place)?) { yes } else { no };
                inside(branch, place, out)?;
            }
            Node::With(pipe, yes, no) => {
                let value = run(pipe, place)?;
                if truth(&value) {
                    let place = Place {
                        here: &value,
                        root: place.root,
                        key: place.key.clone(),
                    };
                    inside(yes, &place, out)?;
                } else {
                    inside(no, place, out)?;
                }
            }
            Node::Range(pipe, body, none) => {
                let value = run(pipe, place)?;
                let items: Vec<(Value, &Value)> = match &value {
                    Value::Array(items) => items
                        .iter()
                        .enumerate()
                        .map(|(at, item)| (Value::from(at), item))
                        .collect(),
                    Value::Object(map) => map
                        .iter()
                        .map(|(key, item)| (Value::from(key.clone()), item))
                        .collect(),
                    Value::Null => Vec::new(),
                    other => return Err(format!("range over {other}, which is no list")),
                };
                if items.is_empty() {
                    inside(none, place, out)?;
                }
                for (key, item) in items {
                    let place = Place {
                        here: item,
                        root: place.root,
                        key,
                    };
                    inside(body, &place, out)?;
                }
            }
        }
    }
    Ok(())
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", texts.join(" "))
        }
        Value::Object(map) => {
            let texts: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", shown(value)))
                .collect();
            format!("map[{}]", texts.join(" "))
        }
        other => other.to_string(),
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn run(pipe: &Pipe, place: &Place<'_>) -> Result<Value, String> {
    let mut last = None;
    for call in pipe {
        last = Some(apply(call, last, place)?);
    }
    last.ok_or_else(|| "an action is empty".to_owned())
}

fn field(value: &Value, path: &[String], top: bool) -> Result<Value, String> {
    let mut at = value;
    for (depth, name) in path.iter().enumerate() {
        at = match at {
            Value::Object(map) => match map.get(name) {
                Some(next) => next,
                // The top is a thing with known fields; what is below may be a user's map.
                None if top && depth == 0 => {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    return Err(format!(
                        "there is no field .{name}; there are {}",
                        known.join(", ")
                    ));
                }
                None => return Ok(Value::Null),
            },
            Value::Null => return Ok(Value::Null),
            other => return Err(format!("{other} has no field .{name}")),
        };
    }
    Ok(at.clone())
}

fn term(term: &Term, place: &Place<'_>) -> Result<Value, String> {
    match term {
        Term::Field(path) => field(place.here, path, std::ptr::eq(place.here, place.root)),
        Term::Root(path) => field(place.root, path, true),
        Term::Literal(value) => Ok(value.clone()),
        Term::Nested(pipe) => run(pipe, place),
        Term::Function(name) if name == "$key" => Ok(place.key.clone()),
        Term::Function(name) => Err(format!("{name} is not known here")),
    }
}

fn apply(call: &Call, piped: Option<Value>, place: &Place<'_>) -> Result<Value, String> {
    let name = match &call.head {
        Term::Function(name) if !name.starts_with('$') => name.as_str(),
        head => {
            if piped.is_some() || !call.arguments.is_empty() {
                return Err("a value cannot be called with arguments".into());
            }
            return term(head, place);
        }
    };
    let mut arguments: Vec<Value> = call
        .arguments
        .iter()
        .map(|argument| term(argument, place))
        .collect::<Result<_, _>>()?;
    arguments.extend(piped);
    function(name, &arguments)
}

fn text(value: &Value) -> String {
    shown(value)
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => text(a).cmp(&text(b)),
    }
}

fn function(name: &str, arguments: &[Value]) -> Result<Value, String> {
    use std::cmp::Ordering;
    let need = |at: usize| {
        arguments
            .get(at)
            .ok_or_else(|| format!("{name} needs more arguments"))
    };
    let same = |a: &Value, b: &Value| a == b || (!a.is_null() && text(a) == text(b));
    Ok(match name {
        "json" => Value::from(need(0)?.to_string()),
        "len" => Value::from(match need(0)? {
            Value::Array(items) => items.len(),
            Value::Object(map) => map.len(),
            Value::String(text) => text.len(),
            _ => 0,
        }),
        "index" => {
            let mut at = need(0)?.clone();
            for key in &arguments[1..] {
                at = match (&at, key) {
                    (Value::Array(items), key) => key
                        .as_u64()
                        .and_then(|number| items.get(usize::try_from(number).ok()?))
                        .cloned()
                        .ok_or_else(|| format!("index {key} is out of range"))?,
                    (Value::Object(map), key) => map.get(&text(key)).cloned().unwrap_or_default(),
                    (Value::Null, _) => Value::Null,
                    (other, _) => return Err(format!("{other} has no elements")),
                };
            }
            at
        }
        "join" => {
            let items = need(0)?.as_array().cloned().unwrap_or_default();
            let texts: Vec<String> = items.iter().map(text).collect();
            Value::from(texts.join(&text(need(1)?)))
        }
        "split" => {
            let (whole, by) = (text(need(0)?), text(need(1)?));
            whole.split(by.as_str()).map(Value::from).collect()
        }
        "slice" => {
            let whole = text(need(0)?);
            let number = |at: usize| arguments.get(at).and_then(Value::as_u64);
            let from = usize::try_from(number(1).unwrap_or(0)).unwrap_or(0);
            let to = number(2).map_or(usize::MAX, |to| usize::try_from(to).unwrap_or(usize::MAX));
            let part: String = whole.chars().take(to).skip(from).collect();
            Value::from(part)
        }
        "upper" => Value::from(text(need(0)?).to_uppercase()),
        "lower" => Value::from(text(need(0)?).to_lowercase()),
        "title" => {
            let whole = text(need(0)?);
            let mut chars = whole.chars();
            let first = chars.next().map(|c| c.to_uppercase().to_string());
            Value::from(first.unwrap_or_default() + chars.as_str())
        }
        "trim" => Value::from(text(need(0)?).trim()),
        "print" => Value::from(arguments.iter().map(text).collect::<String>()),
        "println" => {
            let texts: Vec<String> = arguments.iter().map(text).collect();
            Value::from(texts.join(" ") + "\n")
        }
        "printf" => Value::from(printf(&text(need(0)?), &arguments[1..])?),
        "eq" => {
            let first = need(0)?;
            need(1)?;
            Value::Bool(arguments[1..].iter().any(|other| same(first, other)))
        }
        "ne" => Value::Bool(!same(need(0)?, need(1)?)),
        "lt" => Value::Bool(compare(need(0)?, need(1)?) == Ordering::Less),
        "le" => Value::Bool(compare(need(0)?, need(1)?) != Ordering::Greater),
        "gt" => Value::Bool(compare(need(0)?, need(1)?) == Ordering::Greater),
        "ge" => Value::Bool(compare(need(0)?, need(1)?) != Ordering::Less),
        "and" => {
            need(0)?;
            let stop = arguments.iter().find(|value| !truth(value));
            stop.or(arguments.last()).cloned().unwrap_or_default()
        }
        "or" => {
            need(0)?;
            let stop = arguments.iter().find(|value| truth(value));
            stop.or(arguments.last()).cloned().unwrap_or_default()
        }
        "not" => Value::Bool(!truth(need(0)?)),
        other => return Err(format!("there is no function {other:?}")),
    })
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut left = arguments.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut width = String::new();
        let verb = loop {
            match chars.next() {
                Some(c) if c.is_ascii_digit() || "-.+".contains(c) => width.push(c),
                Some(c) => break c,
                None => return Err("a % at the end of a format".into()),
            }
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = left.next().map(text).unwrap_or_else(|| "<no value>".into());
        let value = if verb == 'q' {
            format!("{value:?}")
        } else {
            value
        };
        let wide: usize = width
            .trim_start_matches('-')
            .split('.')
            .next()
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0);
        if width.starts_with('-') {
            out.push_str(&format!("{value:<wide$}"));
        } else {
            out.push_str(&format!("{value:>wide$}"));
        }
    }
    Ok(out)
}
